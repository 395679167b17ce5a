"""How a configuration is trained: a planner's numbers go in, and come out with their reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from medseg3d.extensions import source_text
from medseg3d.plan import TrainingPlan
from medseg3d.planning.loss_rules import providers_of
from medseg3d.planning.reasons import Decided, Explanation
from medseg3d.planning.recipe_rules import RULE


def training(plan: TrainingPlan) -> Decided[TrainingPlan]:
    """The planner's, the same for all datasets, with the extensions that its parts are from."""
    momentum = f", momentum {plan.momentum:g}" if plan.optimizer != "adamw" else ""
    providers = providers_of(plan)
    loss = plan.loss + _source(providers.get(plan.loss))
    named = (f"{name} ({_numbers(options)}){_source(providers.get(name))}" for name, options in plan.augmentations.items())
    further = f"; further augmentations {', '.join(named)}" if plan.augmentations else ""
    reason = Explanation(
        quantity="training",
        value=(
            f"{plan.epochs} epochs of {plan.iterations_per_epoch} iterations, {plan.optimizer} with learning rate {plan.learning_rate:g}"
            f"{momentum}, weight decay {plan.weight_decay:g}, loss {loss}, {plan.foreground_oversampling:.0%} of the patches on "
            f"foreground, gradients clipped at {plan.gradient_clip:g}{further}"
        ),
        rule=(
            f"The planner's numbers, the same for all datasets; the learning rate {_schedule(plan)}, and each epoch ends with "
            f"{plan.validation_iterations} validation batches." + (f" {RULE}" if plan.follows_budget else "")
        ),
        inputs="The planner alone: nothing of the dataset enters.",
        changes_it="training.* of the planner, or --epochs and --iterations of train.",
    )
    return Decided(replace(plan, providers=providers), (reason,))


def _numbers(options: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in options.items()) or "its defaults"


def _source(provider: str | None) -> str:
    """The extension that a part is from."""
    return f" of {source_text(provider)}" if provider else ""


def _schedule(plan: TrainingPlan) -> str:
    """How the learning rate runs, in words."""
    runs = {
        "poly": f"falls as (1 - progress) ** {plan.poly_exponent:g}",
        "cosine": "falls along half a cosine to 0",
        "cosine_restarts": f"falls along half a cosine to 0, {plan.cycles} times",
        "cyclical": f"rises and falls in {plan.cycles} triangles",
    }[plan.schedule]
    return f"rises over the first {plan.warmup:.0%} of the run, then {runs}" if plan.warmup else runs


def batch_dice(configuration: str, *, has_lowres: bool) -> Decided[bool]:
    """Dice over the whole batch steadies small patches; where a patch sees most of a case, the case's own Dice is meant."""
    is_over_batch = configuration == "2d" or (configuration == "3d_fullres" and has_lowres)
    reason = Explanation(
        quantity="batch dice",
        value="over the whole batch" if is_over_batch else "per sample",
        rule=(
            "2d: over the batch, as single slices often lack a label. 3d_fullres: over the batch only if 3d_lowres exists, as its "
            "patches then see small parts of a case. 3d_lowres: per sample."
        ),
        inputs=f"3d_lowres is {'planned' if has_lowres else 'not planned'}.",
        changes_it="Whether 3d_lowres is planned.",
    )
    return Decided(is_over_batch, (reason,))
