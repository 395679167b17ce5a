"""Which patches training draws: the planner's choice stays; what the dataset's labels would suggest is said beside it."""

from __future__ import annotations

from medseg3d.plan import TrainingPlan
from medseg3d.planning.loss_rules import OFTEN_ABSENT, LossFacts
from medseg3d.planning.reasons import Decided, Explanation


def planned_sampling(training: TrainingPlan, facts: LossFacts | None) -> Decided[str]:
    """How cases and labels are drawn, in words."""
    value = sampling_in_words(training)
    inputs = "The fingerprint does not describe the labels, so nothing is suggested."
    if facts is not None:
        inputs = f"The rarest label is absent from {100 * facts.absent_share:.0f} % of the cases."
        if facts.absent_share >= OFTEN_ABSENT and not training.balanced_classes:
            value += "; suggested: balanced_classes"
            inputs += " Drawn by case, a patch is centered on it in few batches only; drawn by label, it has its share of them."
    reason = Explanation(
        quantity="sampling",
        value=value,
        rule=(
            "The planner's, the same for all datasets. balanced_classes is suggested where a label is absent from "
            f"{100 * OFTEN_ABSENT:g} % of the cases or more; balanced_cases suits runs of few patches per case; hard_cases suits cases "
            "that differ in how hard they are, where all labels can be trusted."
        ),
        inputs=inputs,
        changes_it="training.foreground_oversampling, balanced_classes, balanced_cases and hard_cases of the planner.",
    )
    return Decided(value, (reason,))


def sampling_in_words(training: TrainingPlan) -> str:
    """What is drawn.

    >>> sampling_in_words(TrainingPlan())
    'cases by chance, 33 % of the patches on a label of the case'
    """
    cases = "cases in turn" if training.balanced_cases else "cases by chance"
    label = "a label of the dataset, drawn before the case" if training.balanced_classes else "a label of the case"
    hard = f", {training.hard_cases:.0%} by how badly a case is known" if training.hard_cases else ""
    return f"{cases}, {training.foreground_oversampling:.0%} of the patches on {label}{hard}".replace("%", " %").replace("  %", " %")
