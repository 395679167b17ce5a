"""Numbers that can be read but hardly meant: single voxels far beyond all others, voxels of another unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

EXTREME_RATIO = 1e4
"""A voxel this many times the usual range away from the middle: metal in a CT lies 20 ranges away, a bladder in a PET a hundred."""
SMALL_SPACING_MM, LARGE_SPACING_MM = 0.01, 50.0
"""Geometric mean of the edges of a voxel. Below, it is microscopy or a unit that is none; nothing that is scanned has voxels above."""


def extreme_voxels(array: np.ndarray, sample: np.ndarray) -> str:
    """Words for voxels that lie far beyond all others; empty where there are none. ``sample`` are finite values of the array.

    They make the mean and standard deviation of the image their own, so that everything else becomes flat.
    """
    low, middle, high = (float(value) for value in np.percentile(sample, (1, 50, 99)))
    if high <= low:  # mostly background: the range of the rest
        rest = sample[sample != middle]
        if rest.size < 100:
            return ""
        low, high = (float(value) for value in np.percentile(rest, (5, 95)))
    reach = EXTREME_RATIO * (high - low)
    if not 0 < reach < np.inf:
        return ""
    if max(float(np.fmax.reduce(array, axis=None)) - middle, middle - float(np.fmin.reduce(array, axis=None))) <= reach:
        return ""
    with np.errstate(invalid="ignore", over="ignore"):
        is_far = np.isfinite(array) & (np.abs(array - np.float32(middle)) > reach)
    count = int(np.count_nonzero(is_far))
    if not count:
        return ""
    worst = float(array[is_far][np.abs(array[is_far]).argmax()])
    voxels = "one voxel" if count == 1 else f"{count} voxels"
    return f"{voxels} far beyond all others, up to {worst:.4g}, where nearly all lie between {low:.4g} and {high:.4g}; replace them"


def is_far_beyond(minimum: float, maximum: float, low: float, high: float) -> bool:
    """Whether an image reaches far beyond a usual range ``low`` to ``high``, of which nothing is known where it is empty."""
    reach = EXTREME_RATIO * (high - low)
    return reach > 0 and max(maximum - high, low - minimum) > reach


def spacing_doubt(mean_edge_mm: float) -> str:
    """Words for a voxel whose mean edge can hardly be meant in mm; empty for all others."""
    if mean_edge_mm < SMALL_SPACING_MM:
        return f"voxels of {mean_edge_mm:.3g} mm (mean edge): fine for microscopy; else the unit is wrong (micrometers?)"
    if mean_edge_mm > LARGE_SPACING_MM:
        return f"voxels of {mean_edge_mm:.3g} mm (mean edge): nothing that is scanned has voxels as large; the unit is wrong (meters?)"
    return ""


USUAL_OF_CT = -200.0
"""What the least values of most cases lie below where a channel is in Hounsfield units: air and fat are in nearly each image."""
MIN_CASES_TO_COMPARE = 3


def lost_intercepts(least: Mapping[str, float]) -> list[str]:
    """The cases that reach no value below 0 where most others reach far below; ``least`` is the least value (or nearly) of each.

    >>> lost_intercepts({"a": -1024, "b": -1000, "c": 0}), lost_intercepts({"a": 0, "b": 0, "c": 0}), lost_intercepts({"a": -3, "b": 0})
    (['c'], [], [])
    """
    if len(least) < MIN_CASES_TO_COMPARE or sorted(least.values())[(len(least) - 1) // 2] > USUAL_OF_CT:
        return []
    return [name for name, value in least.items() if value >= 0]


LOST_INTERCEPT = (
    "no value below 0, where most other cases reach far below, as CT does: its rescale intercept was lost (add it, mostly -1024), or it is "
    "another modality"
)


def is_ct_without_air(channel: str, least: Iterable[float]) -> bool:
    """Whether a channel is called CT and no image of it reaches below 0, where water is.

    >>> is_ct_without_air("CT", [0, 0]), is_ct_without_air("CT", [-1024, 0]), is_ct_without_air("T1", [0])
    (True, False, False)
    """
    values = list(least)
    return channel.casefold() == "ct" and bool(values) and min(values) >= 0


CT_WITHOUT_AIR = (
    "is called CT, but no image of it has a value below 0: these are no Hounsfield units. Rescaled on purpose that is fine, "
    "as long as all images that will be predicted are rescaled alike; where the rescale intercept was lost, add it (mostly -1024)"
)
