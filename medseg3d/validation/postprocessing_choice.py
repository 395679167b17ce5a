"""Predicted and true label indices of validation cases → the postprocessing steps that they show to help, each with its reason.

A step changes every later prediction, so that it needs evidence: enough cases with the label, a gain that does not hang on one of them,
and references that do not contradict it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medseg3d.data.cropping import Box
from medseg3d.evaluation.label_masks import label_boxes
from medseg3d.label_codes import LabelCodes
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
from medseg3d.validation.postprocessing_evidence import (
    Counts,
    DiceTable,
    ValidatedCase,
    count_cases,
    decide_foreground,
    decide_label,
    dice_table,
    drawn_groups,
    fallen_labels,
    is_split,
    overlap_of,
)
from medseg3d.validation.region_postprocessing import choose_for_regions

logger = logging.getLogger(__name__)


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
    if labels.regions:
        return choose_for_regions(remaining, labels, num_workers=num_workers, max_bytes_per_case=max_bytes_per_case)
    objects, failures = count_cases(remaining, lambda p, r: _count_objects(p, r, labels), num_workers, max_bytes_per_case)
    remaining = [case for case in remaining if case.name in objects]
    if not remaining:
        return Postprocessing(failures=tuple(failures))
    groups = drawn_groups(remaining, objects)
    removals = _decide_removals(list(objects.values()), groups, labels, num_split or {})
    so_far = Postprocessing(steps=tuple(decision.step for decision in removals if decision.accepted))
    filled, more_failures = count_cases(remaining, lambda p, r: _count_filled(p, r, so_far, labels), num_workers, max_bytes_per_case)
    groups = drawn_groups(remaining, filled)
    before = dice_table([c.before for c in filled.values()], groups)
    fillings: list[Decision] = []
    for index in labels.foreground:
        after = dice_table([c.after[index - 1] for c in filled.values()], groups)
        fillings.append(decide_label(Step(operation="fill_holes", index=index), before, after, labels))
    fillings = _check_together(fillings, remaining, so_far, before, labels, num_workers, max_bytes_per_case)
    decisions = (*removals, *fillings)
    for decision in decisions:
        logger.info("Postprocessing %s, %s: %s", decision.step.operation, decision.label, decision.reason)
    steps = tuple(decision.step for decision in decisions if decision.accepted)
    return Postprocessing(steps=steps, decisions=decisions, failures=(*failures, *more_failures))


def _decide_removals(
    counts: Sequence[_ObjectCounts], groups: Sequence[str], labels: Labels, in_dataset: Mapping[int, int]
) -> list[Decision]:
    """Steps 1 and 2."""
    raw, merged = (dice_table(each, groups) for each in ([c.raw for c in counts], [c.merged for c in counts]))
    num_split = max(sum(c.split_foreground for c in counts), in_dataset.get(1, 0) if labels.num_classes == 2 else 0)
    first = decide_foreground(raw, merged, labels, num_split=num_split)
    decisions = [first]
    current, kept = (merged, [c.merged_kept for c in counts]) if first.accepted else (raw, [c.raw_kept for c in counts])
    if labels.num_classes > 2:  # with one label this is the same step again
        cleaned = dice_table(kept, groups)
        for index in labels.foreground:
            step = Step(operation="keep_largest", index=index)
            num_split = max(sum(c.split_labels[index - 1] for c in counts), in_dataset.get(index, 0))
            decisions.append(decide_label(step, current, cleaned, labels, num_split=num_split))
    return decisions


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


@dataclass(frozen=True, slots=True)
class _Truth:
    """A reference as label indices; ``known`` is where somebody has annotated, None for everywhere; ``lacking`` are indices that nobody has
    looked for, which are nowhere in it and are not counted."""

    indices: np.ndarray
    known: np.ndarray | None = None
    lacking: tuple[int, ...] = ()

    def overlap(self, mask: np.ndarray, index: int, box: Box) -> tuple[int, int, int]:
        """The counts of a predicted mask of a label in a box."""
        if index in self.lacking:
            return (0, 0, 0)
        truth = self.indices[box] == index
        return overlap_of(mask if self.known is None else mask & self.known[box], truth)

    def is_split(self, index: int | None) -> bool:
        """Whether a label, or all of them, has several objects for sure: what nobody has annotated may join them."""
        mask = self.indices > 0 if index is None else self.indices == index
        return is_split(mask, self.known)


def truth_of(codes: np.ndarray, labels: Labels) -> _Truth:
    """The codes of a reference, read (no regions)."""
    meaning = LabelCodes(labels)
    if meaning.are_indices:
        return _Truth(codes)
    known = None if meaning.ignored is None else codes != meaning.ignored
    indices = codes % meaning.num_values
    if known is not None:
        indices[~known] = 0
    return _Truth(indices, known if known is not None and not known.all() else None, meaning.lacking_in(codes))


def _count_objects(prediction: np.ndarray, reference: np.ndarray, labels: Labels) -> _ObjectCounts:
    merged, truth = prediction.copy(), truth_of(reference, labels)
    keep_largest_foreground(merged)
    raw, raw_kept = _count_kept(prediction, truth, labels)
    merged_counts, merged_kept = _count_kept(merged, truth, labels)
    return _ObjectCounts(
        raw=raw,
        raw_kept=raw_kept,
        merged=merged_counts,
        merged_kept=merged_kept,
        split_foreground=truth.is_split(None),
        split_labels=_split_labels(truth, labels),
    )


def _split_labels(truth: _Truth, labels: Labels) -> tuple[bool, ...]:
    if truth.known is not None:
        return tuple(truth.is_split(index) for index in labels.foreground)
    boxes = label_boxes(truth.indices, truth.indices, labels.num_classes)
    return tuple((box := boxes[index]) is not None and is_split(truth.indices[box] == index) for index in labels.foreground)


def _count_kept(prediction: np.ndarray, truth: _Truth, labels: Labels) -> tuple[Counts, Counts]:
    """Counts as they are and with each label's largest object only; removing one label's voxels leaves the others' counts
    alone."""
    counts = np.zeros((len(labels.foreground), 3), np.int64)
    kept = counts.copy()
    boxes = label_boxes(prediction, truth.indices, labels.num_classes)
    for place, index in enumerate(labels.foreground):
        box = boxes[index]
        if box is not None:
            mask = prediction[box] == index
            counts[place] = truth.overlap(mask, index, box)
            mask[outside_largest(mask)] = False
            kept[place] = truth.overlap(mask, index, box)
    return counts, kept


def _count_filled(prediction: np.ndarray, reference: np.ndarray, so_far: Postprocessing, labels: Labels) -> _FilledCounts:
    current, truth = apply_postprocessing(prediction, so_far), truth_of(reference, labels)
    boxes = label_boxes(current, truth.indices, labels.num_classes)
    before = np.zeros((len(labels.foreground), 3), np.int64)
    after = []
    for place, index in enumerate(labels.foreground):
        box = boxes[index]
        if box is not None:
            before[place] = truth.overlap(current[box] == index, index, box)
    for place, index in enumerate(labels.foreground):
        counts = before.copy()
        box = boxes[index]
        if box is not None:
            mask = current[box] == index
            # filling takes background only, so that the other labels' counts stay
            mask |= holes(mask, extended_axes(current)) & (current[box] == 0)
            counts[place] = truth.overlap(mask, index, box)
        after.append(counts)
    return _FilledCounts(before=before, after=tuple(after))


def _count_applied(prediction: np.ndarray, reference: np.ndarray, postprocessing: Postprocessing, labels: Labels) -> Counts:
    result, truth = apply_postprocessing(prediction, postprocessing), truth_of(reference, labels)
    boxes = label_boxes(result, truth.indices, labels.num_classes)
    counts = np.zeros((len(labels.foreground), 3), np.int64)
    for place, index in enumerate(labels.foreground):
        box = boxes[index]
        if box is not None:
            counts[place] = truth.overlap(result[box] == index, index, box)
    return counts


def _check_together(
    fillings: list[Decision],
    cases: Sequence[ValidatedCase],
    so_far: Postprocessing,
    before: DiceTable,
    labels: Labels,
    num_workers: int | None,
    bytes_per_case: int,
) -> list[Decision]:
    """Nothing to check below two accepted fillings; else evaluate them together and take all back where a label falls."""
    accepted = tuple(d.step for d in fillings if d.accepted)
    if len(accepted) < 2:
        return fillings
    together = Postprocessing(steps=(*so_far.steps, *accepted))
    counted, _ = count_cases(cases, lambda p, r: _count_applied(p, r, together, labels), num_workers, bytes_per_case)
    fallen = fallen_labels(before, dice_table(list(counted.values()), drawn_groups(cases, counted)), labels)
    if not fallen:
        return fillings
    why = f"together with the other labels' fillings {', '.join(fallen)} would fall"
    return [replace(d, accepted=False, reason=f"{d.reason}, but {why}") if d.accepted else d for d in fillings]
