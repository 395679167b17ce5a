"""What validation says for and against a step of postprocessing: counts of voxels per case and label in, a decision with its reason out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from medseg3d.errors import CaseFailure, GeometryMismatchError
from medseg3d.evaluation.compare import groups_of, paired_difference
from medseg3d.evaluation.lesions import components
from medseg3d.evaluation.metrics import mean_of
from medseg3d.execution import run_cases
from medseg3d.labels import Labels
from medseg3d.validation.postprocessing import Decision, Step
from medseg3d.wording import counted

Result = TypeVar("Result")

MIN_GAIN = 1e-4
"""A mean Dice must rise by more than this: smaller changes are a few voxels, not a habit of the network."""
ROUNDING = 1e-9
"""A label's mean Dice may fall by no more than floating point does."""
MIN_CASES = 5
"""Of validation with the label: with fewer an interval says little, and a step could remove what only other patients have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedCase:
    """A case whose ``load`` gives the predicted indices and the reference's codes, arrays of one shape; loaded up to three times, or once
    for each step of regions, never kept."""

    name: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    patient: str = ""
    """Empty where the case is the only one of its patient, as far as is known."""


Counts = np.ndarray
"""(labels without background, 3): voxels in both, voxels predicted, voxels in the reference."""


def overlap_of(mask: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    return int(np.count_nonzero(mask & truth)), int(np.count_nonzero(mask)), int(np.count_nonzero(truth))


def count_cases(
    cases: Sequence[ValidatedCase],
    count: Callable[[np.ndarray, np.ndarray], Result],
    num_workers: int | None,
    bytes_per_case: int,
) -> tuple[dict[str, Result], list[CaseFailure]]:
    """One pass over the cases; results by name in the given order, whatever finished first."""

    def work(case: ValidatedCase) -> Result:
        prediction, reference = case.load()
        if prediction.shape != reference.shape:
            raise GeometryMismatchError(
                f"{case.name}: the prediction has shape {prediction.shape}, the reference {reference.shape}. Predict this case again."
            )
        return count(prediction, reference)

    results: dict[str, Result] = {}
    failures: list[CaseFailure] = []
    for done in run_cases(
        work,
        cases,
        name_of=lambda case: case.name,
        stage="postprocessing",
        bytes_of=lambda _: bytes_per_case,
        num_workers=num_workers,
    ):
        if done.result is not None:
            results[done.item.name] = done.result
        elif done.failure is not None:
            failures.append(done.failure)
    return {case.name: results[case.name] for case in cases if case.name in results}, failures


@dataclass(frozen=True, slots=True, kw_only=True)
class DiceTable:
    """Dice per case and label (NaN inside where neither has the label), whether the reference has it, whose image it is, and the means."""

    per_case: np.ndarray
    is_there: np.ndarray
    groups: tuple[str, ...]

    def label(self, place: int) -> tuple[float | None, int]:
        mean = mean_of(float(d) for d in self.per_case[:, place] if not np.isnan(d))
        return mean.mean, mean.n

    def foreground(self) -> tuple[float | None, int]:
        mean = mean_of(self.of_cases())
        return mean.mean, mean.n

    def of_cases(self) -> list[float | None]:
        return [mean_of(float(d) for d in row if not np.isnan(d)).mean for row in self.per_case]

    def num_patients(self, rows: np.ndarray) -> int:
        """How many patients the cases of these rows are of."""
        return len({group for group, is_one in zip(self.groups, rows, strict=True) if is_one})

    def of_label(self, place: int) -> list[float | None]:
        return [None if np.isnan(d) else float(d) for d in self.per_case[:, place]]


def drawn_groups(cases: Sequence[ValidatedCase], names: Iterable[str]) -> tuple[str, ...]:
    """The patient (or the case itself) of each of the named cases."""
    return groups_of(list(names), {case.name: case.patient for case in cases if case.patient})


def dice_table(counts: Sequence[Counts], groups: Sequence[str]) -> DiceTable:
    """``groups`` names the patient (or the case) of each."""
    common, predicted, truth = np.moveaxis(np.array(counts, np.float64).reshape(len(counts), -1, 3), -1, 0)
    total = predicted + truth
    return DiceTable(per_case=np.where(total > 0, 2 * common / np.maximum(total, 1), np.nan), is_there=truth > 0, groups=tuple(groups))


def decide_foreground(before: DiceTable, after: DiceTable, labels: Labels, *, num_split: int) -> Decision:
    (dice_before, _), (dice_after, num_cases) = before.foreground(), after.foreground()
    accepted, reason = _verdict(dice_before, dice_after)
    fallen = fallen_labels(before, after, labels)
    if fallen:
        accepted, reason = False, f"{reason.partition(':')[0]}, but {', '.join(fallen)} would fall"
    if accepted:
        num_there = before.num_patients(before.is_there.sum(1) > 0)
        accepted, reason = _with_evidence(reason, before.of_cases(), after.of_cases(), before.groups, num_there, num_split)
    return Decision(
        step=Step(operation="keep_largest_foreground"),
        label="foreground",
        dice_before=dice_before,
        dice_after=dice_after,
        num_cases=num_cases,
        accepted=accepted,
        reason=reason,
    )


def decide_label(
    step: Step, before: DiceTable, after: DiceTable, labels: Labels, *, num_split: int = 0, none_may_fall: bool = False
) -> Decision:
    """Whether a step helps its label; ``none_may_fall``: other labels count as well."""
    index = step.index or 0
    place = index - 1
    (dice_before, _), (dice_after, num_cases) = before.label(place), after.label(place)
    accepted, reason = _verdict(dice_before, dice_after)
    if accepted and none_may_fall and (fallen := fallen_labels(before, after, labels)):
        accepted, reason = False, f"{reason}, but {', '.join(fallen)} would fall"
    if accepted:
        num_there = before.num_patients(before.is_there[:, place])
        accepted, reason = _with_evidence(reason, before.of_label(place), after.of_label(place), before.groups, num_there, num_split)
    return Decision(
        step=step,
        label=labels.names[index],
        dice_before=dice_before,
        dice_after=dice_after,
        num_cases=num_cases,
        accepted=accepted,
        reason=reason,
    )


def _verdict(before: float | None, after: float | None) -> tuple[bool, str]:
    """By the means alone."""
    if before is None:
        return False, "no case has it"
    if after is None:
        return True, "everything predicted was false, and is removed"
    change = f"mean Dice {before:.4f} → {after:.4f}"
    if after - before > MIN_GAIN:
        return True, change
    return False, f"{change}: no gain above {MIN_GAIN:g}"


def _with_evidence(
    change: str,
    before: Sequence[float | None],
    after: Sequence[float | None],
    groups: Sequence[str],
    num_there: int,
    num_split: int,
) -> tuple[bool, str]:
    """Whether a gain of the means is enough to change every later prediction; ``num_there`` patients have the label."""
    if num_split:
        return False, f"{change}, but {counted(num_split, 'reference')} has several objects".replace("references has", "references have")
    if num_there < MIN_CASES:
        unit = "patient" if len(set(groups)) < len(groups) else "case"
        return False, f"{change}, but only {counted(num_there, unit)} with it in the reference, and {MIN_CASES} are needed"
    rows = [(b, a, g) for b, a, g in zip(before, after, groups, strict=True) if b is not None and a is not None]
    gain = paired_difference([a for _, a, _ in rows], [b for b, _, _ in rows], groups=[g for _, _, g in rows])
    if gain.low is None or gain.high is None:
        return False, f"{change}, but too few cases can be compared"
    interval = f"95 % interval of the gain {gain.low:+.4f} to {gain.high:+.4f}, {counted(gain.n, 'case')}"
    return (True, f"{change} ({interval})") if gain.low > 0 else (False, f"{change}, but not clearly ({interval})")


def fallen_labels(before: DiceTable, after: DiceTable, labels: Labels) -> list[str]:
    fallen = []
    for place, index in enumerate(labels.foreground):
        first, second = before.label(place)[0], after.label(place)[0]
        if first is not None and second is not None and second < first - ROUNDING:
            fallen.append(labels.names[index])
    return fallen


def is_split(mask: np.ndarray, known: np.ndarray | None = None) -> bool:
    """Whether a mask has several objects, also if all voxels that are not known belonged to it."""
    if known is None:
        return components(mask)[1] > 1
    numbers, _ = components(mask | ~known)
    return len(np.unique(numbers[mask])) > 1
