"""Where one structure is and how large: a mask with its affine goes in, centroid, box, diameter and objects come out.

Index axes are those of the array, whatever they are; ``affine`` (4 x 4) leads from them to RAS+ mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medseg3d.evaluation.lesions import components
from medseg3d.evaluation.surfaces import surface
from medseg3d.structures.records import Point

MAX_PAIRS = 4_000_000
"""Distances at once: 32 MB. The corners of a hull are compared block by block."""
FLAT = 1e-6
"""A set of points has no width along an axis whose standard deviation is this share of the largest: above the rounding of squares in
float64 (1e-8), and below one voxel in a million."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a mask with at least one voxel; see :class:`~medseg3d.structures.records.Structure`."""

    voxels: int
    centroid_mm: Point
    box_low_mm: Point
    box_high_mm: Point
    diameter_mm: float
    num_objects: int
    largest_object: int


def shape_of(mask: np.ndarray, affine: np.ndarray) -> Shape:
    """Measure a bool mask of three axes; raises ``ValueError`` for an empty one."""
    voxels = int(np.count_nonzero(mask))
    if not voxels:
        raise ValueError("an empty mask has no shape")
    linear, origin = affine[:3, :3], affine[:3, 3]
    points = np.argwhere(surface(mask)) @ linear.T + origin
    half = np.abs(linear).sum(1) / 2  # of the box that holds one voxel, whichever way it is turned
    numbers, count = components(mask)
    sizes = np.bincount(numbers.ravel())[1:] if count > 1 else np.array([voxels])
    return Shape(
        voxels=voxels,
        centroid_mm=_point(linear @ _mean_index(mask, voxels) + origin),
        box_low_mm=_point(points.min(0) - half),
        box_high_mm=_point(points.max(0) + half),
        diameter_mm=diameter(points),
        num_objects=count,
        largest_object=int(sizes.max()),
    )


def diameter(points: np.ndarray) -> float:
    """The largest distance between two of some points (point, axis); that of a single one is 0.

    Only corners of the convex hull can be as far apart; points in a plane or on a line are brought into as many axes as they need.
    """
    from scipy.spatial import ConvexHull
    from scipy.spatial.distance import cdist

    centered = points - points.mean(0)
    _, widths, axes = np.linalg.svd(centered.T @ centered)
    kept = axes[np.sqrt(np.maximum(widths, 0)) > FLAT * max(1.0, float(np.sqrt(widths[0])))]
    if not len(kept):
        return 0.0
    flat = centered @ kept.T
    if len(kept) == 1:
        return float(np.ptp(flat))
    corners = flat[ConvexHull(flat).vertices] if len(flat) > len(kept) + 1 else flat
    block = max(1, MAX_PAIRS // len(corners))
    return max(float(cdist(corners[start : start + block], corners).max()) for start in range(0, len(corners), block))


def _mean_index(mask: np.ndarray, voxels: int) -> np.ndarray:
    """The mean index along each axis, from the counts of its planes: no list of voxels is made."""
    planes = [np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    return np.array([float(np.arange(len(plane)) @ plane) / voxels for plane in planes])


def _point(values: np.ndarray) -> Point:
    first, second, third = (float(value) for value in values)
    return (first, second, third)
