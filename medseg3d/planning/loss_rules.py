"""The loss of a plan, checked, and which one suits a dataset: what is known of the labels goes in, a suggestion comes out.

The losses stand in :mod:`medseg3d.losses`; torch is imported for those that the default planner does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medseg3d.extensions import Registry
from medseg3d.plan import Plan, TrainingPlan
from medseg3d.planning.reasons import Decided, Explanation

DEFAULT = TrainingPlan().loss
"""It has no options, so that it is checked without torch."""


def loss_options(training: TrainingPlan) -> dict[str, float]:
    """All options of a plan's loss; raises :class:`~medseg3d.errors.PlanError` for an unknown loss, and for wrong options."""
    if training.loss == DEFAULT and not training.loss_options:
        return {}
    from medseg3d.losses import check_loss

    return check_loss(training.loss, training.loss_options)


def check_augmentations(training: TrainingPlan) -> None:
    """Raise :class:`~medseg3d.errors.PlanError` for a further augmentation that is not known, and for wrong options."""
    if training.augmentations:
        from medseg3d.patches.further_augmentations import further_augmentations

        further_augmentations(training.augmentations)


def providers_of(training: TrainingPlan) -> dict[str, str]:
    """Which extensions the loss and the further augmentations are from, by their names; without those that are built in."""
    found = {}
    if training.loss != DEFAULT:
        from medseg3d.losses import provider_of

        found[training.loss] = provider_of(training.loss)
    if training.augmentations:
        from medseg3d.patches.further_augmentations import AUGMENTATIONS

        found |= {name: AUGMENTATIONS.provider(name) for name in training.augmentations}
    return {name: provider for name, provider in found.items() if provider}


def check_extensions(plan: Plan) -> None:
    """Raise :class:`~medseg3d.errors.PlanError` that names the extension where a part of the plan is of one that is not at hand."""
    for configuration in plan.configurations.values():
        network, training = configuration.network, configuration.training
        if network.provider or training.providers:
            from medseg3d.losses import LOSSES
            from medseg3d.networks.build import NETWORKS
            from medseg3d.patches.further_augmentations import AUGMENTATIONS

            parts: list[tuple[Registry[Any], str, str]] = [
                (NETWORKS, network.family, network.provider),
                (LOSSES, training.loss, training.providers.get(training.loss, "")),
                *((AUGMENTATIONS, name, training.providers.get(name, "")) for name in training.augmentations),
            ]
            for known, name, provider in parts:
                if provider and name not in known:
                    known.find(name, provider=provider)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFacts:
    """What the choice of a loss depends on.

    ``foreground_share`` of all voxels, 0 to 1, median over cases. ``label_volume_ratio`` is the largest label's median volume over
    the smallest's, at least 1. ``absent_share`` is the share of cases without the label that is absent most often. ``elongation``
    is that of the longest label: the diagonal of the bounding box of its largest component over the cube root of its volume, both
    in mm, median over cases; a ball has 2.1. None where it is not known. ``components`` are those of the label with the most, median over
    cases, among labels whose largest component holds at most half of them; 0 where there is none such.
    """

    foreground_share: float
    label_volume_ratio: float
    absent_share: float
    elongation: float | None = None
    components: float = 0.0
    thickness_mm: float | None = None


ELONGATED = 6.0
"""A straight tube comes here at 13 times its diameter; a ball has 2.1, a pancreas some 3. Holes in vessels cost hardly any Dice."""
TINY_FOREGROUND = 0.001
"""One voxel in a thousand: a typical patch of 128³ then holds some 2000 labelled voxels, and the mean over voxels looks past them."""
OFTEN_ABSENT = 0.5
"""In every second case the Dice of such a label has next to no gradient, so that the term per voxel must carry it."""
SMALL_FOREGROUND = 0.01
"""A label that is often absent is a matter of the loss only where it is small as well; a large one is learned by cross-entropy."""
MANY_COMPONENTS = 5.0
"""Multiple sclerosis has some thirty lesions, bones and organs one or two. From five on, and none of them half of all, a lesion that is
missed costs next to no Dice."""
UNEVEN_LABELS = 1000.0
"""A label a thousand times smaller than another has no say in a mean over voxels; the Dice alone looks at it."""


def suggest_loss(facts: LossFacts) -> tuple[str, str]:
    """A loss and the reason in one sentence; ``dice_ce`` unless a fact speaks clearly for another.

    Only compound losses are suggested: in the comparison of 20 losses on six datasets of Ma 2021 (Loss odyssey in medical image
    segmentation) no loss was best everywhere, and Dice together with a second term was the most robust. Thin structures come first, as
    a tube is small and uneven as well, and then what comes in many pieces (CC-DiceCE found more small lesions without losing Dice).
    """
    if facts.elongation is not None and facts.elongation >= ELONGATED:
        return "skeleton_recall", (
            f"A label is long and thin (elongation {facts.elongation:.1f}, from {ELONGATED:g} on), so gaps along its skeleton count, "
            "which the Dice hardly notices. cldice asks the same of the prediction's skeleton as well, and takes many times the memory."
        )
    if facts.components >= MANY_COMPONENTS:
        return "cc_dice_ce", (
            f"A label comes in {facts.components:g} pieces, none of them half of it (from {MANY_COMPONENTS:g} on), so every piece should "
            "count the same: the Dice of all together hardly notices a small one."
        )
    share = f"{100 * facts.foreground_share:.2g} % of the voxels are labelled"
    if facts.foreground_share <= TINY_FOREGROUND:
        return "dice_focal", (
            f"Only {share} (at most {100 * TINY_FOREGROUND:g} %), so voxels that are easily right are weighed down beside the few others."
        )
    if facts.absent_share >= OFTEN_ABSENT and facts.foreground_share <= SMALL_FOREGROUND:
        return "dice_focal", (
            f"A label is absent from {100 * facts.absent_share:.0f} % of the cases (from {100 * OFTEN_ABSENT:g} % on) and {share} (at most "
            f"{100 * SMALL_FOREGROUND:g} %), so the term per voxel looks at hard voxels, as the Dice is blind where there is no label."
        )
    if facts.label_volume_ratio >= UNEVEN_LABELS:
        return "dice_focal", (
            f"The largest label is {facts.label_volume_ratio:.0f} times as large as the smallest (from {UNEVEN_LABELS:g} on), so the "
            "voxels of large labels that are easily right are weighed down."
        )
    shape = "unknown" if facts.elongation is None else f"{facts.elongation:.1f}"
    return "dice_ce", (
        f"Nothing speaks for another loss: {share}, the largest label is {facts.label_volume_ratio:.0f} times as large as the smallest, "
        f"a label is absent from {100 * facts.absent_share:.0f} % of the cases at most, elongation {shape}."
    )


ALIKE = {"cldice": "skeleton_recall"}
"""A loss of a planner that answers the same question as the one that is suggested."""


def planned_loss(training: TrainingPlan, facts: LossFacts | None) -> Decided[str]:
    """The planner's loss stays; what the dataset's labels would suggest is said beside it."""
    options = loss_options(training)
    value = ", ".join([training.loss, *(f"{name} {number:.4g}" for name, number in options.items())])
    inputs = (
        "The fingerprint does not describe whole labels (nnU-Net's never does; with an ignore label nobody knows), so no loss is suggested."
    )
    if facts is not None:
        inputs = _facts_in_words(facts)
        suggested, why = suggest_loss(facts)
        if suggested not in (training.loss, ALIKE.get(training.loss)):
            value, inputs = f"{value}; suggested: {suggested}", f"{inputs} {why}"
    reason = Explanation(
        quantity="loss",
        value=value,
        rule=(
            "The planner's, the same for all datasets; the dataset only suggests one. "
            f"skeleton_recall: elongation of a label from {ELONGATED:g} on (a ball has 2.1). "
            f"cc_dice_ce: {MANY_COMPONENTS:g} pieces of a label or more, none of them half of it. "
            f"dice_focal: at most {100 * TINY_FOREGROUND:g} % of the voxels labelled; or a label absent from "
            f"{100 * OFTEN_ABSENT:g} % of the cases or more, with at most {100 * SMALL_FOREGROUND:g} % labelled; or the largest label "
            f"{UNEVEN_LABELS:g} times as large as the smallest or more. dice_ce otherwise."
        ),
        inputs=inputs,
        changes_it="training.loss and training.loss_options of the planner; other labels change what is suggested.",
    )
    return Decided(training.loss, (reason,))


def _facts_in_words(facts: LossFacts) -> str:
    elongation = "unknown" if facts.elongation is None else f"{facts.elongation:.1f}"
    return (
        f"{100 * facts.foreground_share:.3g} % of the voxels of a median case are labelled; the largest label is "
        f"{facts.label_volume_ratio:,.1f} times as large as the smallest; the rarest label is absent from "
        f"{100 * facts.absent_share:.0f} % of the cases; elongation of the longest label: {elongation}; pieces of a label in many: "
        f"{facts.components:g}."
    )
