"""How a short run trains: a plan's training numbers, made for long ones, and a number of steps go in; other numbers come out."""

from __future__ import annotations

from dataclasses import fields, replace

from medseg3d.plan import TrainingPlan
from medseg3d.planning.reasons import Decided, Explanation

SHORT_RUN = 50_000
"""Steps, 200 of nnU-Net's epochs: the presets' numbers are made for 250,000, and above this SGD catches up."""
SHARE_OF_RATE = 0.2
"""Muon's rate, which is AdamW's, as a share of SGD's: 2e-3 for the usual 0.01, twice what is usual as the cosine lowers it soon; less where
a network without norms asks for less."""
MOMENTUM = 0.95
"""Muon's usual one (Jordan et al. 2024)."""
WEIGHT_DECAY = 1e-2
"""Decoupled from the gradient, and AdamW's usual value."""
WARMUP = 0.05
"""Share of the run: the momentum, and AdamW's mean squares, are those of the first batches until some tens of steps are over."""
MEAN_AGE = 0.1
"""Of averaged weights, as a share of the run so far: long enough to smooth steps, short enough to leave the untrained ones behind."""


def recipe_for(plan: TrainingPlan, *, steps: float, keeps_rate: bool = False) -> Decided[TrainingPlan]:
    """The plan's training numbers, or those for a run of so many steps where it is short and the plan ``follows_budget``.

    A plan that has chosen another optimizer than SGD keeps it with its rate; with ``keeps_rate`` the rate is the user's, and the optimizer
    the plan's, for which it was said.
    """
    if not plan.follows_budget or steps >= SHORT_RUN:
        return Decided(plan, ())
    chosen = replace(plan, weight_averaging=plan.weight_averaging or MEAN_AGE)
    if plan.schedule == "poly":
        chosen = replace(chosen, schedule="cosine", warmup=max(plan.warmup, WARMUP))
    if plan.optimizer == "sgd" and not keeps_rate:
        rate = plan.learning_rate * SHARE_OF_RATE
        chosen = replace(chosen, optimizer="muon", learning_rate=rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    changed = [each.name for each in fields(chosen) if getattr(chosen, each.name) != getattr(plan, each.name)]
    reason = Explanation(
        quantity="recipe",
        value=", ".join(f"{name} {_text(getattr(chosen, name))}" for name in changed),
        rule=RULE,
        inputs=f"About {_rounded(steps)} steps.",
        changes_it="A longer run, or follows_budget = false in the planner's [training].",
    )
    return Decided(chosen, (reason,))


RULE = (
    f"A run of fewer than {SHORT_RUN:,} steps (--epochs, --hours or --minutes) trains with Muon instead of SGD, whose momentum takes "
    f"hundreds of steps to gain speed, with a warm-up of {WARMUP:.0%} and a cosine that reaches 0 whatever the length; averaged weights "
    "are measured beside the last ones, and the better are kept."
)
"""In words, for ``plan --explain``."""


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _rounded(steps: float) -> str:
    """To two digits: by the clock, it is an estimate."""
    return f"{float(f'{steps:.2g}'):,.0f}"
