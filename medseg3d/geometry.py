"""Grids of images: shape, spacing, origin, direction; reorient, compare, and the shape after resampling.

Shapes and affines here are those of the *file*: axes ``(x, y, z)`` as nibabel gives them, affine to RAS+ millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

Affine = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A grid in space: ``shape`` (x, y, z) in voxels and ``affine`` (4x4, voxel index → RAS+ mm)."""

    shape: tuple[int, int, int]
    affine: Affine

    @property
    def matrix(self) -> np.ndarray:
        """The affine as a 4x4 float64 array."""
        return np.asarray(self.affine, np.float64)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel in mm, file axes (x, y, z)."""
        return tuple(float(s) for s in np.sqrt((self.matrix[:3, :3] ** 2).sum(0)))  # type: ignore[return-value]

    @property
    def origin(self) -> tuple[float, float, float]:
        """Position of voxel (0, 0, 0) in RAS+ mm."""
        return tuple(float(o) for o in self.matrix[:3, 3])  # type: ignore[return-value]

    @property
    def direction(self) -> np.ndarray:
        """3x3 unit vectors of the voxel axes, in columns."""
        return self.matrix[:3, :3] / np.asarray(self.spacing)


def geometry_of(shape: Sequence[int], affine: np.ndarray) -> Geometry:
    """A geometry from nibabel's ``shape[:3]`` and ``affine``."""
    rows = tuple(tuple(float(v) for v in row) for row in np.asarray(affine, np.float64))
    return Geometry(shape=(int(shape[0]), int(shape[1]), int(shape[2])), affine=rows)  # type: ignore[arg-type]


Orientation = tuple[tuple[int, int], ...]
"""For each file axis: (RAS axis that it is closest to, +1 or -1), as nibabel's ``io_orientation``."""


def orientation_of(affine: np.ndarray) -> Orientation:
    """The closest axis-aligned orientation of an affine."""
    import nibabel.orientations

    ornt = nibabel.orientations.io_orientation(np.asarray(affine))
    return tuple((int(axis), int(flip)) for axis, flip in ornt)


AS_STORED: Orientation = ((0, 1), (1, 1), (2, 1))
"""No reorientation: file axes (x, y, z) become array axes (z, y, x)."""


def axes_onto(geometry: Geometry, reference: Geometry) -> Orientation:
    """For each axis of a grid the axis of ``reference`` that it is closest to, +1 or -1; a mirror image is possible."""
    cosines = reference.direction.T @ geometry.direction
    order = max(permutations(range(3)), key=lambda axes: sum(abs(float(cosines[ref, own])) for own, ref in enumerate(axes)))
    return tuple((ref, -1 if cosines[ref, own] < 0 else 1) for own, ref in enumerate(order))


def through(first: Orientation, second: Orientation) -> Orientation:
    """The orientation that leads from the axes of ``first`` to those of ``second``, whose axes ``first`` points at.

    >>> through(((1, -1), (0, 1), (2, 1)), ((0, -1), (1, 1), (2, 1)))
    ((1, -1), (0, -1), (2, 1))
    """
    return tuple((second[axis][0], sign * second[axis][1]) for axis, sign in first)


def orientation_code(affine: np.ndarray) -> str:
    """The three letters of an affine's orientation, for instance ``LAS``."""
    return code_of(orientation_of(affine))


def code_of(orientation: Orientation) -> str:
    """The three letters of an orientation.

    >>> code_of(((0, -1), (1, 1), (2, 1)))
    'LAS'
    """
    return "".join(("LR", "PA", "IS")[axis][flip > 0] for axis, flip in orientation)


def to_canonical(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    """A file array ``(..., x, y, z)`` as a view ``(..., S, A, R)``."""
    lead = array.ndim - 3
    for axis, (_, flip) in enumerate(orientation):
        if flip < 0:
            array = np.flip(array, lead + axis)
    source = {ras: axis for axis, (ras, _) in enumerate(orientation)}
    return array.transpose(*range(lead), lead + source[2], lead + source[1], lead + source[0])


def from_canonical(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    """The inverse of :func:`to_canonical`, again a view."""
    lead = array.ndim - 3
    places = [lead + 2 - ras for ras, _ in orientation]
    array = array.transpose(*range(lead), *places)
    for axis, (_, flip) in enumerate(orientation):
        if flip < 0:
            array = np.flip(array, lead + axis)
    return array


def canonical_spacing(geometry: Geometry, orientation: Orientation) -> tuple[float, float, float]:
    """The spacing in mm in the order (S, A, R) of :func:`to_canonical`'s axes."""
    by_ras = {ras: geometry.spacing[axis] for axis, (ras, _) in enumerate(orientation)}
    return (by_ras[2], by_ras[1], by_ras[0])


def canonical_geometry(geometry: Geometry, orientation: Orientation) -> Geometry:
    """The same grid with its axes reordered and flipped to (R, A, S): shape and affine of what :func:`to_canonical` shows."""
    linear, origin = geometry.matrix[:3, :3], geometry.matrix[:3, 3].copy()
    columns, shape = np.empty((3, 3)), [0, 0, 0]
    for axis, (ras, flip) in enumerate(orientation):
        shape[ras] = geometry.shape[axis]
        columns[:, ras] = linear[:, axis] * flip
        if flip < 0:
            origin += linear[:, axis] * (geometry.shape[axis] - 1)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, origin
    return geometry_of(shape, affine)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryDifference:
    """How far two grids lie apart: shapes, and the largest distance in mm and voxels between their corners.

    ``turn`` says in words how the axes of the second point otherwise, where that was asked.
    """

    shapes: tuple[tuple[int, int, int], tuple[int, int, int]]
    spacings: tuple[tuple[float, float, float], tuple[float, float, float]]
    corner_offset_mm: float
    corner_offset_voxels: float
    origin_offset_mm: tuple[float, float, float]
    turn: str = ""

    @property
    def is_same_shape(self) -> bool:
        """Both grids have the same number of voxels along each axis."""
        return self.shapes[0] == self.shapes[1]

    def is_same_grid(self, tolerance_voxels: float) -> bool:
        """Same shape, and no corner further away than the tolerance."""
        return self.is_same_shape and self.corner_offset_voxels <= tolerance_voxels


def compare(first: Geometry, second: Geometry) -> GeometryDifference:
    """Compare two grids by the world positions of their eight corners."""
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float64)
    scale = np.array([*(n - 1 for n in first.shape), 1], np.float64)
    a = (corners * scale) @ first.matrix.T
    b = (corners * scale) @ second.matrix.T
    offset = float(np.sqrt(((a - b)[:, :3] ** 2).sum(1)).max())
    return GeometryDifference(
        shapes=(first.shape, second.shape),
        spacings=(first.spacing, second.spacing),
        corner_offset_mm=offset,
        corner_offset_voxels=offset / max(min(first.spacing), 1e-12),
        origin_offset_mm=tuple(float(d) for d in np.subtract(second.origin, first.origin)),  # type: ignore[arg-type]
    )


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """``round(shape * spacing / target)``, half to even as numpy rounds, at least 1 (nnU-Net 2.8.1 ``compute_new_shape``).

    >>> resampled_shape((10, 20, 20), (5.0, 1.0, 1.0), (5.0, 0.8, 0.8))
    (10, 25, 25)
    """
    return tuple(max(1, round(s / t * n)) for n, s, t in zip(shape, spacing, target, strict=True))
