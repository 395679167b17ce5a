"""What a loss may be told, and which loss suits a dataset: names and numbers go in, checked options or a suggestion come out.

Nothing here imports torch; the formulas stand in :mod:`medseg3d.training.loss_functions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from medseg3d.errors import PlanError
from medseg3d.plan import LossName


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOption:
    """One number of a loss: its default, the closed range it must lie in, and what it does."""

    default: float
    minimum: float
    maximum: float
    meaning: str
    is_whole: bool = False


def check_loss(name: str, options: Mapping[str, float]) -> dict[str, float]:
    """The options of a loss, complete: those given, and the defaults of the others.

    Raises :class:`PlanError` for an unknown loss, an unknown option or a value outside its range; all findings at once.
    """
    known = next((table for loss, table in LOSS_OPTIONS.items() if loss == name), None)
    if known is None:
        raise PlanError(f"There is no loss {name!r}. The losses are {', '.join(LOSS_OPTIONS)}.")
    findings = []
    for option, value in options.items():
        if option not in known:
            findings.append(f"it has no option {option!r}; it has {', '.join(known) or 'none'}")
            continue
        rule = known[option]
        is_number = isinstance(value, int | float)
        if not is_number or not rule.minimum <= value <= rule.maximum or (rule.is_whole and value != int(value)):
            kind = "a whole number" if rule.is_whole else "a number"
            findings.append(f"{option} is {value!r}, must be {kind} from {rule.minimum:g} to {rule.maximum:g} ({rule.meaning})")
    if findings:
        raise PlanError(f"Loss {name}: {'; '.join(findings)}.")
    return {option: float(options.get(option, rule.default)) for option, rule in known.items()}


ALPHA = LossOption(default=0.3, minimum=0.01, maximum=1.0, meaning="weight of false positives")
"""Salehi 2017 found 0.3 and 0.7 best for lesions. A weight of 0 would let a network call everything, or nothing, foreground."""
BETA = LossOption(default=0.7, minimum=0.01, maximum=1.0, meaning="weight of false negatives")

LOSS_OPTIONS: dict[LossName, dict[str, LossOption]] = {
    "dice_ce": {},
    "dice": {},
    "dice_squared": {},
    "generalized_dice": {},
    "dice_focal": {
        # Lin 2017: 2 was best of 0 to 5
        "gamma": LossOption(default=2.0, minimum=0.0, maximum=5.0, meaning="how much less a voxel counts that is nearly right"),
        "weight": LossOption(default=1.0, minimum=0.0, maximum=100.0, meaning="factor on the focal term beside the Dice"),
    },
    "tversky": {"alpha": ALPHA, "beta": BETA},
    "focal_tversky": {
        "alpha": ALPHA,
        "beta": BETA,
        # Abraham 2019: 4/3 was best of 1 to 3
        "gamma": LossOption(default=4 / 3, minimum=1.0, maximum=3.0, meaning="1/gamma is the exponent: more for labels nearly right"),
    },
    "lovasz": {},
    "weighted_ce": {
        # the full inverse gives a label of 1 voxel in 100,000 the weight 100,000, and with it every false alarm
        "power": LossOption(default=0.5, minimum=0.0, maximum=1.0, meaning="weights are (1 / voxels of the class) ** power"),
    },
    "ohem": {
        # nnU-Net's top-k variants take the same tenth
        "share": LossOption(default=0.1, minimum=0.001, maximum=1.0, meaning="share of the voxels, the hardest ones, that count"),
    },
    "boundary": {
        # Kervadec 2019 starts here; distances are of the order of 100 voxels, so that 0.01 puts the term beside the Dice
        "weight": LossOption(default=0.01, minimum=0.0, maximum=100.0, meaning="factor on the boundary term beside the Dice"),
    },
    "cldice": {
        # Shit 2021 goes up to equal weights of Dice and clDice
        "weight": LossOption(default=1.0, minimum=0.0, maximum=100.0, meaning="factor on the clDice term beside dice_ce"),
        # the authors' own number; the work grows with it
        "iterations": LossOption(
            default=3, minimum=1, maximum=50, meaning="erosions of the skeleton, at least the largest radius in voxels", is_whole=True
        ),
    },
    "surface": {
        # both terms lie between 0 and 1, and Celaya 2023 passes through equal weights halfway
        "weight": LossOption(default=1.0, minimum=0.0, maximum=100.0, meaning="factor on the surface term beside dice_ce"),
    },
}
"""The options of every loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossFacts:
    """What the choice of a loss depends on.

    ``foreground_share`` of all voxels, 0 to 1, median over cases. ``label_volume_ratio`` is the largest label's median volume over
    the smallest's, at least 1. ``absent_share`` is the share of cases without the label that is absent most often. ``elongation``
    is that of the longest label: the diagonal of the bounding box of its largest component over the cube root of its volume, both
    in mm, median over cases; a ball has 2.1. None where it is not known.
    """

    foreground_share: float
    label_volume_ratio: float
    absent_share: float
    elongation: float | None = None


ELONGATED = 6.0
"""A straight tube comes here at 13 times its diameter; a ball has 2.1, a pancreas some 3. Holes in vessels cost hardly any Dice."""
TINY_FOREGROUND = 0.001
"""One voxel in a thousand: a typical patch of 128³ then holds some 2000 labelled voxels, and the mean over voxels looks past them."""
OFTEN_ABSENT = 0.5
"""In every second case the Dice of such a label has next to no gradient, so that the term per voxel must carry it."""
SMALL_FOREGROUND = 0.01
"""A label that is often absent is a matter of the loss only where it is small as well; a large one is learned by cross-entropy."""
UNEVEN_LABELS = 1000.0
"""A label a thousand times smaller than another has no say in a mean over voxels; the Dice alone looks at it."""


def suggest_loss(facts: LossFacts) -> tuple[LossName, str]:
    """A loss and the reason in one sentence; ``dice_ce`` unless a fact speaks clearly for another.

    Only compound losses are suggested: in the comparison of 20 losses on six datasets of Ma 2021 (Loss odyssey in medical image
    segmentation) no loss was best everywhere, and Dice together with a second term was the most robust. Thin structures come first, as
    a tube is small and uneven as well.
    """
    if facts.elongation is not None and facts.elongation >= ELONGATED:
        return "cldice", (
            f"A label is long and thin (elongation {facts.elongation:.1f}, from {ELONGATED:g} on), so gaps along its skeleton count, "
            "which the Dice hardly notices."
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
