"""Label indices → cleaner label indices, by steps that validation showed to help; and the choice of those steps.

Steps are remembered as a record (JSON) with the Dice before and after each, so that a prediction can say why it was changed.
Index arrays have three axes in any order; objects are 26-connected, the background around them 6-connected, as their counterpart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from medseg3d.errors import CaseFailure, GeometryMismatchError
from medseg3d.evaluation.evaluate_case import Box, label_boxes
from medseg3d.evaluation.lesions import components
from medseg3d.evaluation.metrics import mean_of
from medseg3d.execution import run_cases
from medseg3d.labels import Labels

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

MIN_GAIN = 1e-4
"""A mean Dice must rise by more than this: smaller changes are a few voxels, not a habit of the network."""
ROUNDING = 1e-9
"""A label's mean Dice may fall by no more than floating point does."""

Operation = Literal["keep_largest_foreground", "keep_largest", "fill_holes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation; ``index`` is the label's index, None for the whole foreground."""

    operation: Operation
    index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What validation said about one step: mean Dice before and after (of ``label``, or of the foreground) over ``num_cases``."""

    step: Step
    label: str
    dice_before: float | None
    dice_after: float | None
    num_cases: int
    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Postprocessing:
    """Steps in the order in which they are applied, and every decision that led to them."""

    steps: tuple[Step, ...] = ()
    decisions: tuple[Decision, ...] = ()
    failures: tuple[CaseFailure, ...] = ()


NO_POSTPROCESSING = Postprocessing()


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedCase:
    """A case whose ``load`` gives (predicted, reference) index arrays of one shape; loaded up to three times, never kept."""

    name: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]


def apply_postprocessing(indices: np.ndarray, postprocessing: Postprocessing) -> np.ndarray:
    """Apply the steps in their order to an index array of three axes; the input is not modified.

    Without steps the input itself comes back. A label that an array does not have is left alone.
    """
    if not postprocessing.steps:
        return indices
    result = indices.copy()
    for step in postprocessing.steps:
        if step.operation == "keep_largest_foreground":
            keep_largest_foreground(result)
        elif step.index is not None:
            OPERATIONS[step.operation](result, step.index)
    return result


def keep_largest_foreground(indices: np.ndarray) -> None:
    """Set to background, in place, everything outside the largest object of all labels taken together."""
    box = _box_of(indices > 0)
    if box is not None:
        crop = indices[box]
        crop[_outside_largest(crop > 0)] = 0


def keep_largest(indices: np.ndarray, index: int) -> None:
    """Set to background, in place, all objects of a label but the largest; of equal ones the first in array order stays."""
    mask = indices == index
    box = _box_of(mask)
    if box is not None:
        indices[box][_outside_largest(mask[box])] = 0


def fill_holes(indices: np.ndarray, index: int) -> None:
    """Give, in place, to a label the background voxels that it encloses; other labels inside it stay.

    A hole is a part of the complement that cannot be left through faces of voxels; the image's border is not a wall, except
    across a single slice.
    """
    mask = indices == index
    box = _box_of(mask)
    if box is not None:
        indices[box][_holes(mask[box], _extended_axes(indices)) & (indices[box] == 0)] = index


OPERATIONS: dict[str, Callable[[np.ndarray, int], None]] = {"keep_largest": keep_largest, "fill_holes": fill_holes}


def choose_postprocessing(
    cases: Iterable[ValidatedCase], labels: Labels, *, num_workers: int | None = None, max_bytes_per_case: int = 0
) -> Postprocessing:
    """Keep the steps that make validation better, one after the other, each on top of those kept before.

    1. The largest object of the whole foreground: kept if the mean foreground Dice rises by more than ``MIN_GAIN`` and no
       label's falls.
    2. The largest object, per label (with several labels): kept if this label's mean Dice rises by more than ``MIN_GAIN``.
    3. Filled holes, per label: the same, and no other label falls.
    4. Where several labels' holes are filled, all steps are measured together, because one label's filling can take
       another's voxels; if a label falls then, no holes are filled.

    A label's mean is over the cases in which prediction or reference has it. The foreground's is the mean over cases of each
    case's mean over its labels. Cases that cannot be loaded are left out and listed in ``failures``. The rule for step 1 and
    2 is nnU-Net 2.8.1's, with a least gain.
    """
    remaining = list(cases)
    counted, failures = _count(remaining, lambda p, r: _count_objects(p, r, labels), num_workers, max_bytes_per_case)
    remaining = [case for case in remaining if case.name in counted]
    if not remaining:
        return Postprocessing(failures=tuple(failures))
    decisions: list[Decision] = []
    steps: list[Step] = []

    raw = _table([c.raw for c in counted.values()])
    merged = _table([c.merged for c in counted.values()])
    decision = _decide_foreground(raw, merged, labels)
    decisions.append(decision)
    current, kept = raw, [c.raw_kept for c in counted.values()]
    if decision.accepted:
        steps.append(decision.step)
        current, kept = merged, [c.merged_kept for c in counted.values()]
    if labels.num_classes > 2:  # with one label this is the same step again
        cleaned = _table(kept)
        for index in labels.foreground:
            decision = _decide_label(Step(operation="keep_largest", index=index), current, cleaned, labels)
            decisions.append(decision)
            if decision.accepted:
                steps.append(decision.step)

    so_far = Postprocessing(steps=tuple(steps))
    filled, more_failures = _count(remaining, lambda p, r: _count_filled(p, r, so_far, labels), num_workers, max_bytes_per_case)
    before = _table([c.before for c in filled.values()])
    fillings: list[Decision] = []
    for index in labels.foreground:
        after = _table([c.after[index - 1] for c in filled.values()])
        fillings.append(_decide_label(Step(operation="fill_holes", index=index), before, after, labels))
    fillings = _check_together(fillings, remaining, so_far, before, labels, num_workers, max_bytes_per_case)
    decisions += fillings
    steps += [d.step for d in fillings if d.accepted]
    for decision in decisions:
        logger.info("Postprocessing %s, %s: %s", decision.step.operation, decision.label, decision.reason)
    return Postprocessing(steps=tuple(steps), decisions=tuple(decisions), failures=(*failures, *more_failures))


Counts = np.ndarray
"""(labels without background, 3): voxels in both, voxels predicted, voxels in the reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ObjectCounts:
    """Counts of a case as predicted and with the largest object of the foreground; and of both with each label's largest
    object."""

    raw: Counts
    raw_kept: Counts
    merged: Counts
    merged_kept: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class _FilledCounts:
    """Counts of a case before, and after filling the holes of each label alone."""

    before: Counts
    after: tuple[Counts, ...]


def _count_objects(prediction: np.ndarray, reference: np.ndarray, labels: Labels) -> _ObjectCounts:
    merged = prediction.copy()
    keep_largest_foreground(merged)
    raw, raw_kept = _count_kept(prediction, reference, labels)
    merged_counts, merged_kept = _count_kept(merged, reference, labels)
    return _ObjectCounts(raw=raw, raw_kept=raw_kept, merged=merged_counts, merged_kept=merged_kept)


def _count_kept(prediction: np.ndarray, reference: np.ndarray, labels: Labels) -> tuple[Counts, Counts]:
    """Counts as they are and with each label's largest object only; removing one label's voxels leaves the others' counts
    alone."""
    counts = np.zeros((len(labels.foreground), 3), np.int64)
    kept = counts.copy()
    boxes = label_boxes(prediction, reference, labels.num_classes)
    for place, index in enumerate(labels.foreground):
        box = boxes[index]
        if box is not None:
            mask, truth = prediction[box] == index, reference[box] == index
            counts[place] = _overlap(mask, truth)
            mask[_outside_largest(mask)] = False
            kept[place] = _overlap(mask, truth)
    return counts, kept


def _count_filled(prediction: np.ndarray, reference: np.ndarray, so_far: Postprocessing, labels: Labels) -> _FilledCounts:
    current = apply_postprocessing(prediction, so_far)
    boxes = label_boxes(current, reference, labels.num_classes)
    before = np.zeros((len(labels.foreground), 3), np.int64)
    after = []
    for place, index in enumerate(labels.foreground):
        box = boxes[index]
        if box is not None:
            before[place] = _overlap(current[box] == index, reference[box] == index)
    for place, index in enumerate(labels.foreground):
        counts = before.copy()
        box = boxes[index]
        if box is not None:
            mask, truth = current[box] == index, reference[box] == index
            # filling takes background only, so that the other labels' counts stay
            mask |= _holes(mask, _extended_axes(current)) & (current[box] == 0)
            counts[place] = _overlap(mask, truth)
        after.append(counts)
    return _FilledCounts(before=before, after=tuple(after))


def _count_applied(prediction: np.ndarray, reference: np.ndarray, postprocessing: Postprocessing, labels: Labels) -> Counts:
    result = apply_postprocessing(prediction, postprocessing)
    boxes = label_boxes(result, reference, labels.num_classes)
    counts = np.zeros((len(labels.foreground), 3), np.int64)
    for place, index in enumerate(labels.foreground):
        box = boxes[index]
        if box is not None:
            counts[place] = _overlap(result[box] == index, reference[box] == index)
    return counts


def _overlap(mask: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    return int(np.count_nonzero(mask & truth)), int(np.count_nonzero(mask)), int(np.count_nonzero(truth))


def _count(
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
class _Dice:
    """Dice per case and label (NaN inside where neither has the label) and the means that decisions are made of."""

    per_case: np.ndarray

    def label(self, place: int) -> tuple[float | None, int]:
        mean = mean_of(float(d) for d in self.per_case[:, place] if not np.isnan(d))
        return mean.mean, mean.n

    def foreground(self) -> tuple[float | None, int]:
        mean = mean_of(mean_of(float(d) for d in row if not np.isnan(d)).mean for row in self.per_case)
        return mean.mean, mean.n


def _table(counts: Sequence[Counts]) -> _Dice:
    common, predicted, truth = np.moveaxis(np.array(counts, np.float64).reshape(len(counts), -1, 3), -1, 0)
    total = predicted + truth
    return _Dice(per_case=np.where(total > 0, 2 * common / np.maximum(total, 1), np.nan))


def _decide_foreground(before: _Dice, after: _Dice, labels: Labels) -> Decision:
    (dice_before, _), (dice_after, num_cases) = before.foreground(), after.foreground()
    fallen = _fallen(before, after, labels)
    accepted, reason = _verdict(dice_before, dice_after, fallen)
    return Decision(
        step=Step(operation="keep_largest_foreground"),
        label="foreground",
        dice_before=dice_before,
        dice_after=dice_after,
        num_cases=num_cases,
        accepted=accepted,
        reason=reason,
    )


def _decide_label(step: Step, before: _Dice, after: _Dice, labels: Labels) -> Decision:
    index = step.index or 0
    (dice_before, _), (dice_after, num_cases) = before.label(index - 1), after.label(index - 1)
    accepted, reason = _verdict(dice_before, dice_after, [])
    return Decision(
        step=step,
        label=labels.names[index],
        dice_before=dice_before,
        dice_after=dice_after,
        num_cases=num_cases,
        accepted=accepted,
        reason=reason,
    )


def _verdict(before: float | None, after: float | None, fallen: Sequence[str]) -> tuple[bool, str]:
    if before is None:
        return False, "no case has it"
    if after is None:
        return True, "everything predicted was false, and is removed"
    change = f"mean Dice {before:.4f} → {after:.4f}"
    if fallen:
        return False, f"{change}, but {', '.join(fallen)} would fall"
    if after - before > MIN_GAIN:
        return True, change
    return False, f"{change}: no gain above {MIN_GAIN:g}"


def _fallen(before: _Dice, after: _Dice, labels: Labels) -> list[str]:
    fallen = []
    for place, index in enumerate(labels.foreground):
        first, second = before.label(place)[0], after.label(place)[0]
        if first is not None and second is not None and second < first - ROUNDING:
            fallen.append(labels.names[index])
    return fallen


def _check_together(
    fillings: list[Decision],
    cases: Sequence[ValidatedCase],
    so_far: Postprocessing,
    before: _Dice,
    labels: Labels,
    num_workers: int | None,
    bytes_per_case: int,
) -> list[Decision]:
    """Nothing to check below two accepted fillings; else measure them together and take all back where a label falls."""
    accepted = tuple(d.step for d in fillings if d.accepted)
    if len(accepted) < 2:
        return fillings
    together = Postprocessing(steps=(*so_far.steps, *accepted))
    counted, _ = _count(cases, lambda p, r: _count_applied(p, r, together, labels), num_workers, bytes_per_case)
    fallen = _fallen(before, _table(list(counted.values())), labels)
    if not fallen:
        return fillings
    why = f"together with the other labels' fillings {', '.join(fallen)} would fall"
    return [replace(d, accepted=False, reason=f"{d.reason}, but {why}") if d.accepted else d for d in fillings]


def _outside_largest(mask: np.ndarray) -> np.ndarray:
    """The voxels of a bool mask that are not in its largest object."""
    numbers, count = components(mask)
    if count < 2:
        return np.zeros(mask.shape, bool)
    sizes = np.zeros(count + 1, np.int64)
    for plane in numbers:  # by planes, because counting turns numbers into eight bytes each
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    sizes[0] = 0
    outside: np.ndarray = mask & (numbers != int(np.argmax(sizes)))
    return outside


def _holes(mask: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The voxels that a bool mask encloses; ``axes`` are those along which the outside can be left."""
    border = [(1, 1) if axis in axes else (0, 0) for axis in range(3)]
    numbers, _ = components(~np.pad(mask, border), connectivity=6)
    inner = numbers[tuple(slice(low, size - high) for (low, high), size in zip(border, numbers.shape, strict=True))]
    enclosed: np.ndarray = ~mask & (inner != numbers[0, 0, 0])
    return enclosed


def _extended_axes(array: np.ndarray) -> tuple[int, ...]:
    return tuple(axis for axis in range(3) if array.shape[axis] > 1) or (0, 1, 2)


def _box_of(mask: np.ndarray) -> Box | None:
    """The smallest box that holds a bool mask; None of an empty one."""
    sides = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if found.size == 0:
            return None
        sides.append(slice(int(found[0]), int(found[-1]) + 1))
    return (sides[0], sides[1], sides[2])
