"""Left and right: which labels are mirror images of each other, by their names and by where they lie in the images.

In: a fingerprint and the labels. Out: pairs of label indices that mirroring must exchange, and warnings for people.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from medseg3d.fingerprint import CaseFingerprint, Fingerprint, LabelStatistics
from medseg3d.labels import Labels, left_right_pairs

Both = list[tuple[CaseFingerprint, LabelStatistics, LabelStatistics]]
"""The cases that hold both labels of a pair, with what is known of either."""

MIRROR_RATIO = 0.35
"""A pair lies mirrored where its centers differ along S and A by less than this share of what they differ along R, in mm.
Kidneys, adrenal glands, lungs, ribs and halves of the brain stay below 0.3; the ventricles of a heart, which lies askew, come to
0.5, and they are no mirror images of each other."""
VOLUME_RATIO = 2.5
"""A pair may differ by this factor in volume, as the median over cases; a diseased kidney is still a kidney."""
AGREEMENT = 0.9
"""Share of the cases in which the left one must lie on the same side."""


def left_right_pairs_by_position(fingerprint: Fingerprint, labels: Labels) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    """The pairs of label indices (left, right) that mirroring must not mix, and warnings.

    These are the pairs by name whose positions do not contradict: their centers lie mirrored and their volumes are alike, or no
    case holds both. A left one that lies on the right is worth a warning, but is a pair all the same. Labels that lie mirrored
    without names that say so are only mentioned.
    """
    named = labels.pairs or left_right_pairs(labels.names)
    pairs: list[tuple[int, int]] = []
    warnings: list[str] = []
    middles: list[float] = []
    always_swapped: list[str] = []
    for left, right in named:
        both = _cases_with(fingerprint, labels, left, right)
        title = f"{labels.names[left]} / {labels.names[right]}"
        if both and not _is_mirrored(both):
            warnings.append(
                f"{title}: a pair by name, but in the images the two do not lie mirrored or differ in size; "
                "they are treated like any two labels."
            )
            continue
        pairs.append((left, right))
        middles += [(a.center[2] + b.center[2]) / 2 for _, a, b in both]
        swapped = [case.name for case, one, other in both if case.world_position(one.center)[2] > case.world_position(other.center)[2]]
        if swapped and len(swapped) >= AGREEMENT * len(both):
            always_swapped.append(title)
        elif swapped:
            warnings.append(
                f"{title}: in {len(swapped)} of {len(both)} cases the left one lies on the right side by the header "
                f"({_some(swapped)}), in the others on the left. Check the orientation of these files."
            )
    if always_swapped:
        warnings.append(
            f"What is named left lies on the right side by the headers: {_some(always_swapped)}. "
            "Either the names or the headers are swapped; training does not suffer."
        )
    warnings += _unnamed_pairs(fingerprint, labels, {i for pair in named for i in pair}, float(np.median(middles or [0.5])))
    return tuple(pairs), tuple(warnings)


def _cases_with(fingerprint: Fingerprint, labels: Labels, first: int, second: int) -> Both:
    one, other = labels.values[first], labels.values[second]
    return [(case, case.labels[one], case.labels[other]) for case in fingerprint.cases if one in case.labels and other in case.labels]


def _is_mirrored(both: Both) -> bool:
    """Medians over cases, so that one odd case does not decide."""
    s, a, r = np.median(
        [np.abs(case.world_position(first.center) - case.world_position(second.center)) for case, first, second in both],
        axis=0,
    )
    ratio = float(np.median([math.log(first.volume_mm3 / second.volume_mm3) for _, first, second in both]))
    return bool(max(s, a) < MIRROR_RATIO * r and abs(ratio) < math.log(VOLUME_RATIO))


def _some(names: Sequence[str]) -> str:
    """The first five, and how many more."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


UNNAMED_TOLERANCE = 0.04
"""Without names to go by, a pair must lie mirrored this exactly (share of the extent), in each case."""
UNNAMED_CASES = 3
"""Fewer cases show nothing: two labels of one image may lie mirrored by chance."""


def _unnamed_pairs(fingerprint: Fingerprint, labels: Labels, named: set[int], middle: float) -> list[str]:
    warnings = []
    for first, second in combinations([index for index in labels.foreground if index not in named], 2):
        both = _cases_with(fingerprint, labels, first, second)
        if len(both) < UNNAMED_CASES or not _is_mirrored(both):
            continue
        exact = all(
            abs((a.center[2] + b.center[2]) / 2 - middle) < UNNAMED_TOLERANCE
            and max(abs(a.center[0] - b.center[0]), abs(a.center[1] - b.center[1])) < UNNAMED_TOLERANCE
            and max(a.voxels, b.voxels) < 1.25 * min(a.voxels, b.voxels)
            for _, a, b in both
        )
        if exact and len({a.center[2] < b.center[2] for _, a, b in both}) == 1:
            warnings.append(
                f"{labels.names[first]} / {labels.names[second]}: the two lie mirrored in all {len(both)} cases. If they "
                "are left and right of the same, say so in their names: mirroring in training must not mix them."
            )
    return warnings
