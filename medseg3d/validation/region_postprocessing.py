"""Which postprocessing helps a network of overlapping regions: predicted and true label maps in, steps with their reasons out.

A step on a region changes those inside of it, so that all are counted after each step, and none may fall.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from medseg3d.errors import CaseFailure
from medseg3d.label_codes import LabelCodes
from medseg3d.labels import Labels
from medseg3d.validation.postprocessing import Decision, Postprocessing, Step, apply_postprocessing
from medseg3d.validation.postprocessing_evidence import (
    Counts,
    ValidatedCase,
    count_cases,
    decide_foreground,
    decide_label,
    dice_table,
    drawn_groups,
    is_split,
    overlap_of,
)

logger = logging.getLogger(__name__)


def choose_for_regions(
    cases: Sequence[ValidatedCase], labels: Labels, *, num_workers: int | None = None, max_bytes_per_case: int = 0
) -> Postprocessing:
    """The largest object of all regions together, then of each, then filled holes of each: every step on top of those that were kept.

    The evidence that a step needs is that of labels, and no other region may fall.
    """
    first, failures = count_cases(cases, lambda p, r: _count(p, r, Postprocessing(), labels), num_workers, max_bytes_per_case)
    cases = [case for case in cases if case.name in first]
    if not cases:
        return Postprocessing(failures=tuple(failures))
    splits, _ = count_cases(cases, lambda _, r: _splits(r, labels), num_workers, max_bytes_per_case)
    num_split = np.sum(list(splits.values()), 0)
    so_far, before, decisions = Postprocessing(), dice_table(list(first.values()), drawn_groups(cases, first)), list[Decision]()
    for step in region_steps(labels):
        tried = Postprocessing(steps=(*so_far.steps, step))
        found, more = count_cases(cases, lambda p, r, tried=tried: _count(p, r, tried, labels), num_workers, max_bytes_per_case)  # type: ignore[misc]
        failures += more
        after = dice_table(list(found.values()), drawn_groups(cases, found))
        if step.index is None:
            decision = decide_foreground(before, after, labels, num_split=int(num_split[0]))
        else:
            objects = 0 if step.operation == "fill_holes" else int(num_split[step.index])
            decision = decide_label(step, before, after, labels, num_split=objects, none_may_fall=True)
        logger.info("Postprocessing %s, %s: %s", step.operation, decision.label, decision.reason)
        decisions.append(decision)
        if decision.accepted:
            so_far, before = tried, after
    return Postprocessing(steps=so_far.steps, decisions=tuple(decisions), failures=_each_once(failures))


def region_steps(labels: Labels) -> list[Step]:
    """All steps that are tried, in their order."""
    parts = {index: parts_of(labels, index) for index in labels.foreground}
    around = {index: enclosing_region(labels, index) for index in parts}
    largest = [Step(operation="keep_largest", index=index, parts=own, enclosing=around[index]) for index, own in parts.items()]
    holes = [Step(operation="fill_holes", index=index, parts=own) for index, own in parts.items()]
    return [Step(operation="keep_largest_foreground"), *(largest if len(parts) > 1 else []), *holes]


def parts_of(labels: Labels, index: int) -> tuple[int, ...]:
    """The indices of a predicted label map that make up a region."""
    return tuple(other for other in labels.foreground if labels.values[other] in labels.members(index))


def enclosing_region(labels: Labels, index: int) -> int:
    """The index of the smallest region around another one whose own value lies outside of that; 0 where there is none."""
    members = set(labels.members(index))
    around = [other for other in labels.foreground if members < set(labels.members(other)) and labels.values[other] not in members]
    return min(around, key=lambda other: len(labels.members(other)), default=0)


def _count(prediction: np.ndarray, codes: np.ndarray, postprocessing: Postprocessing, labels: Labels) -> Counts:
    result, meaning = apply_postprocessing(prediction, postprocessing), LabelCodes(labels)
    known = np.True_ if meaning.ignored is None else codes != meaning.ignored
    lacking, contents = meaning.lacking_in(codes), meaning.contents()
    counts = np.zeros((len(labels.foreground), 3), np.int64)
    for place, index in enumerate(labels.foreground):
        if index not in lacking:
            counts[place] = overlap_of(np.isin(result, parts_of(labels, index)) & known, contents[index][codes])
    return counts


def _splits(codes: np.ndarray, labels: Labels) -> tuple[bool, ...]:
    """Whether the reference has several objects: of all regions together, and of each."""
    meaning = LabelCodes(labels)
    known = None if meaning.ignored is None else codes != meaning.ignored
    contents = meaning.contents()
    masks = [contents[1:].any(0), *contents[1:]]
    return tuple(bool(mask[codes].any()) and is_split(mask[codes], known) for mask in masks)


def _each_once(failures: Sequence[CaseFailure]) -> tuple[CaseFailure, ...]:
    return tuple({failure.case: failure for failure in failures}.values())
