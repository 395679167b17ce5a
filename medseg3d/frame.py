"""One assignment of axes for a dataset: which axis of each file becomes S, A and R of its array.

In: the directions and spacings of grids. Out: a :class:`Frame`, the mean directions of a dataset's axes, and for any file its
:data:`~medseg3d.geometry.Orientation` against that frame. Bringing each case to the nearest anatomical axes on its own breaks oblique
stacks: their slices would land on another axis in some cases. So slices of thick-slice cases come first, then the least rotation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medseg3d.geometry import Geometry, Orientation

Direction = tuple[float, float, float]
"""A unit vector in RAS+ world axes."""

THICK_SLICE_RATIO = 1.5
"""Slices are thick where the coarsest spacing is this many times the next: below, no axis of a grid stands out."""
MAX_SLICE_ANGLE = 60.0
"""Degrees between the slices of a case and those of its dataset up to which they share an axis. Stacks that are planned on the anatomy
(heart, knee, prostate) vary by less; sagittal among axial stacks is 90."""
TIE_DEGREES = 1.0
"""Rotations that differ by less are equal: the axes that are closer to those of the file win."""
FAR_DEGREES = 75.0
"""A grid that lies further from the frame in every reading says little about its signs, and ..."""
FAR_TIE_DEGREES = 10.0
"""... rotations that differ by less than this are then equal."""
SETTLED_DEGREES = 10.0
"""Where the anatomical axes give no larger mean rotation than this, no other start is tried."""
CANONICAL_DEGREES = 20.0
"""A dataset whose mean lies closer to the anatomical axes is named by them; beyond, the names mean little and the order in the files
is kept where it is common to most cases."""
COMMON_SHARE = 2 / 3
"""The share of the cases that has to store its axes alike for their order to count."""
MAX_SEEDS = 16
"""Cases whose directions the search starts from."""
MAX_ITERATIONS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The axes of a dataset's arrays in space.

    ``directions`` are the unit vectors of (S, A, R) in RAS+ world axes; the default is the anatomical axes themselves.
    ``slice_axis`` (0 is S, 1 is A, 2 is R) holds the slices of thick-slice cases, None where the dataset has none; ``max_slice_angle``
    in degrees is below 90 where the dataset has cases whose slices cannot lie there.
    """

    directions: tuple[Direction, Direction, Direction] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    slice_axis: int | None = None
    max_slice_angle: float = 90.0

    @property
    def rotation(self) -> np.ndarray:
        """3x3, the directions of R, A and S in columns."""
        return np.asarray(self.directions[::-1], np.float64).T

    @property
    def is_canonical(self) -> bool:
        """The axes are the anatomical ones."""
        return self.directions == CANONICAL_FRAME.directions

    @property
    def left_right(self) -> tuple[float, float, float]:
        """How far each of the axes (S, A, R) runs from left to right: the absolute cosine, 1 for R of the anatomical axes."""
        s, a, r = (abs(direction[0]) for direction in self.directions)
        return s, a, r

    @property
    def tilt(self) -> float:
        """Degrees between the frame and the anatomical axes."""
        return float(_angles(self.rotation[None], np.eye(3))[0])

    @property
    def obliqueness(self) -> float:
        """Degrees between the frame and the nearest one whose axes are anatomical, whatever they are called."""
        proper = _MATRICES[_DETERMINANTS > 0]
        return float(_angles(self.rotation @ proper, np.eye(3)).min())


CANONICAL_FRAME = Frame()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What decides the axes of a case: ``direction`` holds the unit vectors of the file's axes (x, y, z), ``spacing`` is in mm."""

    direction: tuple[Direction, Direction, Direction]
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]

    @property
    def slice_axis(self) -> int | None:
        """The file axis along which slices are thick, or which has a single slice; None where no axis stands out."""
        singles = [axis for axis in range(3) if self.shape[axis] == 1]
        if len(singles) == 1:
            return singles[0]
        coarse = int(np.argmax(self.spacing))
        others = [self.spacing[axis] for axis in range(3) if axis != coarse]
        return coarse if self.spacing[coarse] >= THICK_SLICE_RATIO * max(others) else None


def grid_of(geometry: Geometry) -> Grid:
    """The grid of a file."""
    x, y, z = (tuple(round(float(v), 6) for v in column) for column in geometry.direction.T)
    return Grid(direction=(x, y, z), spacing=geometry.spacing, shape=geometry.shape)  # type: ignore[arg-type]


def orientation_in(frame: Frame, grid: Grid) -> Orientation:
    """For each file axis the frame's axis that it becomes (0 is R, 1 is A, 2 is S) and its sign.

    The slices of a thick-slice case go onto the frame's slice axis, if they lie within its ``max_slice_angle``; then the least rotation
    decides. The result is never a mirror image.
    """
    choice, _ = _assign(_Candidates.of([grid]), frame)
    return ORIENTATIONS[int(choice[0])]


def dissenters(frame: Frame, grids: Sequence[Grid]) -> tuple[int, ...]:
    """The places of thick-slice cases whose slices do not lie along the frame's slice axis."""
    if frame.slice_axis is None:
        return ()
    wanted = 2 - frame.slice_axis
    return tuple(
        place
        for place, grid in enumerate(grids)
        if grid.slice_axis is not None and orientation_in(frame, grid)[grid.slice_axis][0] != wanted
    )


def common_frame(grids: Sequence[Grid], *, previous: Frame | None = None) -> Frame:
    """The frame that all grids agree with best: the least sum of squared rotations, slices of thick-slice cases on one axis.

    A dataset near the anatomical axes gets exactly those. ``previous`` is kept where it gives every grid the same axes, so that a new
    case does not change how the others are read.
    """
    if not grids:
        return CANONICAL_FRAME
    candidates = _Candidates.of(grids)
    found = _named(_search(candidates), candidates)
    for simpler in (replace(found, directions=CANONICAL_FRAME.directions), *((previous,) if previous else ())):
        is_near = simpler is previous or found.tilt <= CANONICAL_DEGREES
        same_rule = (simpler.slice_axis, simpler.max_slice_angle) == (found.slice_axis, found.max_slice_angle)
        if is_near and same_rule and np.array_equal(_assign(candidates, simpler)[0], _assign(candidates, found)[0]):
            return simpler
    return found


# --- candidates


def _all_orientations() -> tuple[Orientation, ...]:
    """All 48, those first that change least: the order of the axes, the sign of the third, of the others."""
    found = [
        tuple(zip(order, signs, strict=True))
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    return tuple(sorted(found, key=lambda o: (sum(ras != i for i, (ras, _) in enumerate(o)), o[2][1] < 0, sum(s < 0 for _, s in o))))


ORIENTATIONS = _all_orientations()


def _matrix(orientation: Orientation) -> np.ndarray:
    """The signed permutation that brings columns (x, y, z) into the order (R, A, S)."""
    matrix = np.zeros((3, 3))
    for axis, (ras, sign) in enumerate(orientation):
        matrix[axis, ras] = sign
    return matrix


_MATRICES = np.stack([_matrix(orientation) for orientation in ORIENTATIONS])
_DETERMINANTS = np.rint(np.linalg.det(_MATRICES))


@dataclass(frozen=True, slots=True)
class _Candidates:
    """``rotations`` (case, orientation, 3, 3) of the array's axes (R, A, S) under every orientation; ``is_proper`` (case, orientation):
    no mirror image; ``slices_at`` (case, orientation): the axis (0 is R) of the slices, -1 for a case without thick ones."""

    rotations: np.ndarray
    is_proper: np.ndarray
    slices_at: np.ndarray

    @classmethod
    def of(cls, grids: Sequence[Grid]) -> _Candidates:
        directions = np.stack([_nearest_orthogonal(np.asarray(grid.direction, np.float64).T) for grid in grids])
        handedness = np.sign(np.linalg.det(directions))
        axes = np.array([[ras for ras, _ in orientation] for orientation in ORIENTATIONS])
        slices = [grid.slice_axis for grid in grids]
        return cls(
            np.einsum("nij,kjl->nkil", directions, _MATRICES),
            handedness[:, None] * _DETERMINANTS[None] > 0,
            np.stack([np.full(len(axes), -1) if axis is None else axes[:, axis] for axis in slices]),
        )


def _nearest_orthogonal(matrix: np.ndarray) -> np.ndarray:
    """The orthogonal matrix closest to one that may be sheared (polar decomposition)."""
    left, _, right = np.linalg.svd(matrix)
    return left @ right


def _angles(rotations: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Degrees between rotations (..., 3, 3) and one rotation."""
    trace = np.einsum("...ij,ij->...", rotations, reference)
    return np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))


def _assign(candidates: _Candidates, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """The place in :data:`ORIENTATIONS` that each case gets, and its rotation against the frame in degrees."""
    angles = np.where(candidates.is_proper, _angles(candidates.rotations, frame.rotation), np.inf)
    if frame.slice_axis is not None:
        place = 2 - frame.slice_axis
        along = np.abs(np.einsum("nki,i->nk", candidates.rotations[..., :, place], frame.rotation[:, place]))
        slice_angle = np.degrees(np.arccos(np.clip(along, 0, 1)))
        at_place = candidates.slices_at == place
        can_agree = (at_place & (slice_angle <= frame.max_slice_angle + TIE_DEGREES)).any(1)
        angles = np.where(can_agree[:, None] & ~at_place, np.inf, angles)
    best = angles.min(1)
    tie = np.where(best > FAR_DEGREES, FAR_TIE_DEGREES, TIE_DEGREES)
    choice = np.argmax(angles <= (best + tie)[:, None], axis=1)
    return choice, angles[np.arange(len(choice)), choice]


# --- the search


def _search(candidates: _Candidates) -> Frame:
    """The best frame over several starts, up to its names: which of its axes is called S is not decided here."""
    num_cases = len(candidates.rotations)
    has_slices = bool((candidates.slices_at >= 0).any())
    nearest, _ = _assign(candidates, CANONICAL_FRAME)
    seeds = np.unique(np.linspace(0, num_cases - 1, min(num_cases, MAX_SEEDS)).astype(int))
    starts = [np.eye(3), *(candidates.rotations[case, nearest[case]] for case in seeds)]
    best, least = CANONICAL_FRAME, np.inf
    for start in starts:
        for slice_axis in (0, 1, 2) if has_slices else (None,):
            limit = MAX_SLICE_ANGLE if slice_axis is not None else 90.0
            frame = _converge(candidates, Frame(directions=_directions(start), slice_axis=slice_axis, max_slice_angle=limit))
            choice, angles = _assign(candidates, frame)
            cost = float((angles**2).sum()) + MAX_SLICE_ANGLE**2 * _num_dissenting(candidates, choice, frame)
            if cost < least - 1e-3 * num_cases:  # equally good ones: the first, the anatomical axes before others
                best, least = frame, cost
        if least <= SETTLED_DEGREES**2 * num_cases and best.tilt <= CANONICAL_DEGREES:
            break
    return best


def _converge(candidates: _Candidates, frame: Frame) -> Frame:
    """Assign, average, until the assignment stays."""
    before = None
    for _ in range(MAX_ITERATIONS):
        choice, _ = _assign(candidates, frame)
        if before is not None and np.array_equal(choice, before):
            break
        before = choice
        agreeing = ~_is_dissenting(candidates, choice, frame)
        chosen = candidates.rotations[np.arange(len(choice)), choice]
        mean = _nearest_orthogonal((chosen[agreeing] if agreeing.any() else chosen).sum(0))
        if np.linalg.det(mean) > 0:
            frame = replace(frame, directions=_directions(mean))
    return frame


def _is_dissenting(candidates: _Candidates, choice: np.ndarray, frame: Frame) -> np.ndarray:
    at = candidates.slices_at[np.arange(len(choice)), choice]
    return (at >= 0) & (at != (2 - frame.slice_axis if frame.slice_axis is not None else at))


def _num_dissenting(candidates: _Candidates, choice: np.ndarray, frame: Frame) -> int:
    return int(_is_dissenting(candidates, choice, frame).sum())


def _directions(rotation: np.ndarray) -> tuple[Direction, Direction, Direction]:
    s, a, r = (tuple(round(float(v), 6) + 0.0 for v in column) for column in rotation.T[::-1])
    return s, a, r  # type: ignore[return-value]


def _named(frame: Frame, candidates: _Candidates) -> Frame:
    """The same frame with its axes called S, A and R: by the anatomy, or far from it by the order that most files have."""
    choice, _ = _assign(candidates, frame)
    dissenting = _num_dissenting(candidates, choice, frame)
    proper = [k for k in range(len(ORIENTATIONS)) if _DETERMINANTS[k] > 0]
    turned = {k: frame.rotation @ _MATRICES[k] for k in proper}
    best = min(proper, key=lambda k: round(float(_angles(turned[k][None], np.eye(3))[0])))
    if _angles(turned[best][None], np.eye(3))[0] > CANONICAL_DEGREES:
        stored = _common_order(choice)
        kept = [k for k in proper if stored and all(ORIENTATIONS[k][frame_axis][0] == file for file, frame_axis in enumerate(stored))]
        best = min(kept or [best], key=lambda k: float(_angles(turned[k][None], np.eye(3))[0]))
    slice_axis = None if frame.slice_axis is None else 2 - ORIENTATIONS[best][2 - frame.slice_axis][0]
    limit = MAX_SLICE_ANGLE if dissenting else 90.0
    return Frame(directions=_directions(turned[best]), slice_axis=slice_axis, max_slice_angle=limit)


def _common_order(choice: np.ndarray) -> tuple[int, ...] | None:
    """For each file axis the frame axis (0 is R) that it became in most cases; None where no order is common."""
    orders = [tuple(ras for ras, _ in ORIENTATIONS[k]) for k in choice]
    most = max(sorted(set(orders)), key=orders.count)
    return most if orders.count(most) >= COMMON_SHARE * len(orders) else None
