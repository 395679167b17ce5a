"""Where a crop cascade looks: the label map of its first stage → a box, with a margin that validation has found to be enough.

Boxes are (start, stop) per axis, in the axes of the array that they are found in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg3d.data.cropping import nonzero_box
from medseg3d.ranges import NotNegative, Share
from medseg3d.records import Checked

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
MIN_SHARES = (0.0, 0.1, 1.0)
"""Objects of the first stage count from this share of its largest one on: all, all but specks, only the largest. The one with the smallest
boxes is taken: far false positives cost time, not voxels."""
BOXES = "boxes.json"
"""In the folder of a fold of a crop cascade: :class:`BoxChoice`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxRule(Checked):
    """From the first stage's label map to the box: ``min_share`` is that of an object in the largest one, from which it counts."""

    margin_mm: NotNegative
    min_share: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxChoice(Checked):
    """The rule, and the validation that it was chosen by.

    ``needed_mm`` is the margin that no case would be cut with, needed by ``worst``; the rule's is larger by what a voxel of the first stage
    measures. ``mean_share`` is that of the boxes in the volumes. In ``not_found`` nothing was found: they are seen whole.
    """

    rule: BoxRule
    needed_mm: NotNegative
    worst: str
    mean_share: NotNegative
    num_cases: int
    not_found: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBoxes:
    """Of a validation case: by ``MIN_SHARES`` the box of what was found, and the box of the reference's foreground; None for nothing."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    found: tuple[Box | None, ...]
    reference: Box | None


def boxes_of(found: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> FoundBoxes:
    """Of two masks on one grid: what the first stage found, and the foreground of the reference."""
    return FoundBoxes(
        shape=found.shape,
        spacing=tuple(spacing),
        found=tuple(_box_of_objects(found, share) for share in MIN_SHARES),
        reference=_plain_box(reference),
    )


def choose_box_rule(cases: Mapping[str, FoundBoxes], *, extra_mm: float) -> BoxChoice:
    """The rule with the smallest boxes of those that cut no foreground voxel of any case; ``extra_mm`` is added for unseen cases."""
    choices = [_choice(cases, number, share, extra_mm) for number, share in enumerate(MIN_SHARES)]
    return min(choices, key=lambda choice: choice.mean_share)  # the first of equals: the one that leaves out least


def _choice(cases: Mapping[str, FoundBoxes], number: int, share: float, extra_mm: float) -> BoxChoice:
    needed = {name: _needed_mm(case.found[number], case.reference, case.spacing) for name, case in cases.items()}
    worst = max(needed, key=lambda name: needed[name], default="")
    rule = BoxRule(margin_mm=needed.get(worst, 0.0) + extra_mm, min_share=share)
    shares = [_share(widened(case.found[number], rule.margin_mm, case.spacing, case.shape), case.shape) for case in cases.values()]
    return BoxChoice(
        rule=rule,
        needed_mm=needed.get(worst, 0.0),
        worst=worst,
        mean_share=float(np.mean(shares)) if shares else 1.0,
        num_cases=len(cases),
        not_found=tuple(name for name, case in cases.items() if case.found[number] is None),
    )


def find_box(mask: np.ndarray, rule: BoxRule, spacing: Sequence[float]) -> Box | None:
    """The box of what the first stage found, with its margin, inside the array; None where it found nothing."""
    return widened(_box_of_objects(mask, rule.min_share), rule.margin_mm, spacing, mask.shape)


def combined_rule(rules: Iterable[BoxRule]) -> BoxRule:
    """Of several folds, the one that leaves out least."""
    several = list(rules)
    return BoxRule(margin_mm=max(rule.margin_mm for rule in several), min_share=min(rule.min_share for rule in several))


def widened(box: Box | None, margin_mm: float, spacing: Sequence[float], shape: Sequence[int]) -> Box | None:
    """With a margin on either side, in whole voxels, cut at the ends of the volume."""
    if box is None:
        return None
    steps = [int(np.ceil(margin_mm / edge - 1e-6)) for edge in spacing]
    return _triple((max(0, low - step), min(n, high + step)) for (low, high), step, n in zip(box, steps, shape, strict=True))


def grown(box: Box, edges: Sequence[int], limits: Box) -> Box:
    """At least ``edges`` long, about its middle, as far as ``limits`` allow: a window then sees image in the place of padding."""
    found = []
    for (low, high), edge, (first, last) in zip(box, edges, limits, strict=True):
        missing = max(0, edge - (high - low))
        start = max(first, low - missing // 2)
        stop = min(last, max(high, start + edge))
        found.append((max(first, min(start, stop - edge)) if missing else low, stop if missing else high))
    return _triple(found)


def _needed_mm(found: Box | None, reference: Box | None, spacing: Sequence[float]) -> float:
    """The margin with which no voxel of the reference is cut; 0 where nothing was found, as the case is seen whole then."""
    if found is None or reference is None:
        return 0.0
    edges = zip(found, reference, spacing, strict=True)
    return max(0.0, *(max(low - true_low, true_high - high) * edge for (low, high), (true_low, true_high), edge in edges))


def _plain_box(mask: np.ndarray) -> Box | None:
    return _triple((cut.start, cut.stop) for cut in nonzero_box(mask[np.newaxis])) if mask.any() else None


def _box_of_objects(mask: np.ndarray, min_share: float) -> Box | None:
    """Of the connected components that are large enough beside the largest."""
    whole = _plain_box(mask)
    if whole is None or min_share == 0:
        return whole
    import cc3d

    part = np.ascontiguousarray(mask[tuple(slice(*edge) for edge in whole)])
    described = cc3d.statistics(cc3d.connected_components(part, connectivity=26), no_slice_conversion=True)
    sizes, boxes = described["voxel_counts"][1:].astype(np.int64), described["bounding_boxes"][1:].astype(np.int64)
    kept = boxes[sizes >= min_share * sizes.max()]
    first, last = kept[:, 0::2].min(0), kept[:, 1::2].max(0) + 1
    return _triple((low + int(a), low + int(b)) for (low, _), a, b in zip(whole, first, last, strict=True))


def _share(box: Box | None, shape: Sequence[int]) -> float:
    return 1.0 if box is None else float(np.prod([high - low for low, high in box], dtype=np.float64) / np.prod(shape, dtype=np.float64))


def _triple(edges: Iterable[tuple[int, int]]) -> Box:
    first, second, third = edges
    return first, second, third
