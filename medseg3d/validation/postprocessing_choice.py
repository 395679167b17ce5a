"""Predicted and true label indices of validation cases → the postprocessing steps that they show to help, each with its reason.

A step changes every later prediction, so that it needs evidence: enough cases with the label, a gain that does not hang on one of them,
and references that do not contradict it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from medseg3d.errors import CaseFailure, GeometryMismatchError
from medseg3d.evaluation.compare import paired_difference
from medseg3d.evaluation.evaluate_case import label_boxes
from medseg3d.evaluation.lesions import components
from medseg3d.evaluation.metrics import mean_of
from medseg3d.execution import run_cases
from medseg3d.labels import Labels
from medseg3d.validation.postprocessing import (
    Decision,
    Postprocessing,
    Step,
    apply_postprocessing,
    extended_axes,
    holes,
    keep_largest_foreground,
    outside_largest,
)
from medseg3d.wording import counted

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

MIN_GAIN = 1e-4
"""A mean Dice must rise by more than this: smaller changes are a few voxels, not a habit of the network."""
ROUNDING = 1e-9
"""A label's mean Dice may fall by no more than floating point does."""
MIN_CASES = 5
"""Of validation with the label: with fewer an interval says little, and a step could remove what only other patients have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedCase:
    """A case whose ``load`` gives (predicted, reference) index arrays of one shape; loaded up to three times, never kept."""

    name: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]


def choose_postprocessing(
    cases: Iterable[ValidatedCase],
    labels: Labels,
    *,
    num_split: Mapping[int, int] | None = None,
    num_workers: int | None = None,
    max_bytes_per_case: int = 0,
) -> Postprocessing:
    """Keep the steps that make validation better, one after the other, each on top of those kept before.

    1. The largest object of the whole foreground: kept if the mean foreground Dice rises by more than ``MIN_GAIN`` and no
       label's falls.
    2. The largest object, per label (with several labels): kept if this label's mean Dice rises by more than ``MIN_GAIN``.
    3. Filled holes, per label: the same.

    Each needs ``MIN_CASES`` cases whose reference has the label, and a 95 % interval of the gain per case above 0; 1 and 2 also
    that no reference has several objects there; ``num_split`` says by index in how many cases of the whole dataset a label has.
    Where several labels' holes are filled, all steps are evaluated together, because one label's filling can take another's voxels;
    if a label falls then, no holes are filled.

    A label's mean is over the cases in which prediction or reference has it. The foreground's is the mean over cases of each
    case's mean over its labels. Cases that cannot be loaded are left out and listed in ``failures``. The rule for step 1 and
    2 is nnU-Net 2.8.1's, with a least gain.
    """
    remaining = list(cases)
    objects, failures = _count(remaining, lambda p, r: _count_objects(p, r, labels), num_workers, max_bytes_per_case)
    remaining = [case for case in remaining if case.name in objects]
    if not remaining:
        return Postprocessing(failures=tuple(failures))
    removals = _decide_removals(list(objects.values()), labels, num_split or {})
    so_far = Postprocessing(steps=tuple(decision.step for decision in removals if decision.accepted))
    filled, more_failures = _count(remaining, lambda p, r: _count_filled(p, r, so_far, labels), num_workers, max_bytes_per_case)
    before = _table([c.before for c in filled.values()])
    fillings: list[Decision] = []
    for index in labels.foreground:
        after = _table([c.after[index - 1] for c in filled.values()])
        fillings.append(_decide_label(Step(operation="fill_holes", index=index), before, after, labels))
    fillings = _check_together(fillings, remaining, so_far, before, labels, num_workers, max_bytes_per_case)
    decisions = (*removals, *fillings)
    for decision in decisions:
        logger.info("Postprocessing %s, %s: %s", decision.step.operation, decision.label, decision.reason)
    steps = tuple(decision.step for decision in decisions if decision.accepted)
    return Postprocessing(steps=steps, decisions=decisions, failures=(*failures, *more_failures))


def _decide_removals(counts: Sequence[_ObjectCounts], labels: Labels, in_dataset: Mapping[int, int]) -> list[Decision]:
    """Steps 1 and 2."""
    raw, merged = _table([c.raw for c in counts]), _table([c.merged for c in counts])
    num_split = max(sum(c.split_foreground for c in counts), in_dataset.get(1, 0) if labels.num_classes == 2 else 0)
    first = _decide_foreground(raw, merged, labels, num_split=num_split)
    decisions = [first]
    current, kept = (merged, [c.merged_kept for c in counts]) if first.accepted else (raw, [c.raw_kept for c in counts])
    if labels.num_classes > 2:  # with one label this is the same step again
        cleaned = _table(kept)
        for index in labels.foreground:
            step = Step(operation="keep_largest", index=index)
            num_split = max(sum(c.split_labels[index - 1] for c in counts), in_dataset.get(index, 0))
            decisions.append(_decide_label(step, current, cleaned, labels, num_split=num_split))
    return decisions


Counts = np.ndarray
"""(labels without background, 3): voxels in both, voxels predicted, voxels in the reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ObjectCounts:
    """Counts of a case as predicted and with the largest object of the foreground; and of both with each label's largest
    object. ``split_…``: whether the reference has several objects, of all labels together and of each."""

    raw: Counts
    raw_kept: Counts
    merged: Counts
    merged_kept: Counts
    split_foreground: bool
    split_labels: tuple[bool, ...]


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
    return _ObjectCounts(
        raw=raw,
        raw_kept=raw_kept,
        merged=merged_counts,
        merged_kept=merged_kept,
        split_foreground=_is_split(reference > 0),
        split_labels=_split_labels(reference, labels),
    )


def _split_labels(reference: np.ndarray, labels: Labels) -> tuple[bool, ...]:
    boxes = label_boxes(reference, reference, labels.num_classes)
    return tuple((box := boxes[index]) is not None and _is_split(reference[box] == index) for index in labels.foreground)


def _is_split(mask: np.ndarray) -> bool:
    return components(mask)[1] > 1


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
            mask[outside_largest(mask)] = False
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
            mask |= holes(mask, extended_axes(current)) & (current[box] == 0)
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
    """Dice per case and label (NaN inside where neither has the label), whether the reference has it, and the means."""

    per_case: np.ndarray
    is_there: np.ndarray

    def label(self, place: int) -> tuple[float | None, int]:
        mean = mean_of(float(d) for d in self.per_case[:, place] if not np.isnan(d))
        return mean.mean, mean.n

    def foreground(self) -> tuple[float | None, int]:
        mean = mean_of(self.of_cases())
        return mean.mean, mean.n

    def of_cases(self) -> list[float | None]:
        return [mean_of(float(d) for d in row if not np.isnan(d)).mean for row in self.per_case]

    def of_label(self, place: int) -> list[float | None]:
        return [None if np.isnan(d) else float(d) for d in self.per_case[:, place]]


def _table(counts: Sequence[Counts]) -> _Dice:
    common, predicted, truth = np.moveaxis(np.array(counts, np.float64).reshape(len(counts), -1, 3), -1, 0)
    total = predicted + truth
    return _Dice(per_case=np.where(total > 0, 2 * common / np.maximum(total, 1), np.nan), is_there=truth > 0)


def _decide_foreground(before: _Dice, after: _Dice, labels: Labels, *, num_split: int) -> Decision:
    (dice_before, _), (dice_after, num_cases) = before.foreground(), after.foreground()
    accepted, reason = _verdict(dice_before, dice_after)
    fallen = _fallen(before, after, labels)
    if fallen:
        accepted, reason = False, f"{reason.partition(':')[0]}, but {', '.join(fallen)} would fall"
    if accepted:
        num_there = int(before.is_there.any(1).sum())
        accepted, reason = _with_evidence(reason, before.of_cases(), after.of_cases(), num_there, num_split)
    return Decision(
        step=Step(operation="keep_largest_foreground"),
        label="foreground",
        dice_before=dice_before,
        dice_after=dice_after,
        num_cases=num_cases,
        accepted=accepted,
        reason=reason,
    )


def _decide_label(step: Step, before: _Dice, after: _Dice, labels: Labels, *, num_split: int = 0) -> Decision:
    index = step.index or 0
    place = index - 1
    (dice_before, _), (dice_after, num_cases) = before.label(place), after.label(place)
    accepted, reason = _verdict(dice_before, dice_after)
    if accepted:
        num_there = int(before.is_there[:, place].sum())
        accepted, reason = _with_evidence(reason, before.of_label(place), after.of_label(place), num_there, num_split)
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
    change: str, before: Sequence[float | None], after: Sequence[float | None], num_there: int, num_split: int
) -> tuple[bool, str]:
    """Whether a gain of the means is enough to change every later prediction."""
    if num_split:
        return False, f"{change}, but {counted(num_split, 'reference')} has several objects".replace("references has", "references have")
    if num_there < MIN_CASES:
        return False, f"{change}, but only {counted(num_there, 'case')} with it in the reference, and {MIN_CASES} are needed"
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    gain = paired_difference([a for _, a in pairs], [b for b, _ in pairs])
    if gain.low is None or gain.high is None:
        return False, f"{change}, but too few cases can be compared"
    interval = f"95 % interval of the gain {gain.low:+.4f} to {gain.high:+.4f}, {counted(gain.n, 'case')}"
    return (True, f"{change} ({interval})") if gain.low > 0 else (False, f"{change}, but not clearly ({interval})")


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
    """Nothing to check below two accepted fillings; else evaluate them together and take all back where a label falls."""
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
