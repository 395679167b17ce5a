"""Two structures of one label map → how far their surfaces lie apart. Surface and distance as in ``evaluation/surfaces``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from medseg3d.errors import InputError
from medseg3d.evaluation.surfaces import surface_distances
from medseg3d.structures.records import Distance

ALL_PAIRS = "all"


def wanted_pairs(asked: Sequence[str], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The pairs of structures that ``first:second`` words name, or ``all``; raises :class:`InputError` for names that there are not.

    >>> wanted_pairs(["tumor:vessel"], ["liver", "tumor", "vessel"]), len(wanted_pairs(["all"], ["a", "b", "c"]))
    ((('tumor', 'vessel'),), 3)
    """
    if ALL_PAIRS in asked:
        return tuple(combinations(names, 2))
    found = []
    for each in asked:
        pair = next(
            (
                (first, second)
                for first in names
                for second in names
                if first != second and each.strip().casefold() == f"{first}:{second}".casefold()
            ),
            None,
        )
        if pair is None:
            raise InputError(
                f"--distances {each}: expected two labels such as tumor:vessel, or {ALL_PAIRS}; the labels are {', '.join(names)}. Their "
                "names come from a dataset.json or labels.csv (value,name) beside the label maps."
            )
        found.append(pair)
    return tuple(dict.fromkeys(found))


def distance_between(first: str, second: str, masks: tuple[np.ndarray, np.ndarray], spacing: Sequence[float]) -> Distance | None:
    """Two bool masks on one grid, cropped to the box of both; None where one of them is empty."""
    one, other = masks
    if not (one.any() and other.any()):
        return None
    found = surface_distances(one, other, spacing=spacing)
    if found is None:  # only where voxels are unknown, and none are here
        return None
    there, back = found.prediction_to_reference, found.reference_to_prediction
    return Distance(
        first=first,
        second=second,
        is_touching=are_touching(one, other),
        minimum_mm=float(min(there.min(), back.min())),
        mean_first_to_second_mm=float(there.mean(dtype=np.float64)),
        mean_second_to_first_mm=float(back.mean(dtype=np.float64)),
    )


def are_touching(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two masks have a voxel in common, or two voxels that share a face."""
    if (one & other).any():
        return True
    for axis in range(one.ndim):
        low, high = [slice(None)] * one.ndim, [slice(None)] * one.ndim
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        if (one[tuple(low)] & other[tuple(high)]).any() or (one[tuple(high)] & other[tuple(low)]).any():
            return True
    return False
