"""How two grids differ, in words: which axis is flipped, by how many degrees one is turned or sheared, where it is shifted to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg3d.geometry import Geometry, GeometryDifference

MIN_ANGLE_DEGREES = 0.05
"""Smaller angles are the rounding of headers."""
_TOWARDS = (("the left", "the right"), ("the back", "the front"), ("the feet", "the head"))
_AXES = ("left–right", "front–back", "feet–head")
_UNITS = {1000.0: "a thousand times as large", 0.001: "a thousandth", 10.0: "ten times as large", 0.1: "a tenth"}


def describe(difference: GeometryDifference) -> str:
    """Shapes, spacings, directions and offset of two grids, the second against the first, in words."""
    if not difference.is_same_shape:
        return (
            f"shape {_times(difference.shapes[1])} at {_times(difference.spacings[1])} mm "
            f"against {_times(difference.shapes[0])} at {_times(difference.spacings[0])} mm"
        )
    parts = [f"corners up to {difference.corner_offset_mm:.3g} mm ({difference.corner_offset_voxels:.3g} voxels) apart"]
    if difference.turn:
        parts.append(difference.turn)
    first, second = (np.asarray(spacing) for spacing in difference.spacings)
    if np.abs(second / first - 1).max() > 1e-4:
        parts.append(f"spacing {_times(difference.spacings[1])} against {_times(difference.spacings[0])} mm{_unit(second / first)}")
    if np.abs(difference.origin_offset_mm).max() > 1e-4:
        parts.append(f"shifted {_shift(difference.origin_offset_mm)}")
    return "; ".join(parts)


def turn_in_words(first: Geometry, second: Geometry, canonical: Geometry | None = None) -> str:
    """How the axes of the second grid point otherwise than those of the first; empty where they do not.

    The axes are compared one by one, as they are stored; ``canonical`` is the second grid with its axes brought to those of the first,
    for what is left then where more than flips tell the two apart.
    """
    ours, theirs = first.direction, second.direction
    angles = [_angle(ours[:, axis], theirs[:, axis]) for axis in range(3)]
    flipped = [axis for axis in range(3) if angles[axis] > 180 - MIN_ANGLE_DEGREES]
    if flipped and all(axis in flipped or angles[axis] < MIN_ANGLE_DEGREES for axis in range(3)):
        return "; ".join(
            f"flipped: its {'xyz'[axis]} axis runs to {_towards(theirs[:, axis])}, not to {_towards(ours[:, axis])}" for axis in flipped
        )
    if canonical is not None:
        return turn_in_words(first, canonical)
    if max(angles) < MIN_ANGLE_DEGREES:
        return ""
    if _skew(theirs) > _skew(ours) + MIN_ANGLE_DEGREES:
        x, y = max(((0, 1), (0, 2), (1, 2)), key=lambda pair: abs(90 - _angle(theirs[:, pair[0]], theirs[:, pair[1]])))
        return f"sheared: its {'xyz'[x]} and {'xyz'[y]} axes stand at {_angle(theirs[:, x], theirs[:, y]):.1f} degrees"
    turn = theirs @ np.linalg.inv(ours)
    if np.linalg.det(turn) < 0:
        return "mirrored and turned: " + "; ".join(f"its {'xyz'[a]} axis runs to {_towards(theirs[:, a])}" for a in range(3))
    angle = float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
    return f"turned by {angle:.1f} degrees{_about(turn, angle)}"


def _angle(first: np.ndarray, second: np.ndarray) -> float:
    """Between two unit vectors, in degrees; exact for small angles too."""
    return float(np.degrees(2 * np.arctan2(np.linalg.norm(first - second), np.linalg.norm(first + second))))


def _skew(direction: np.ndarray) -> float:
    """The largest deviation from a right angle between two axes, in degrees."""
    return max(abs(90 - _angle(direction[:, i], direction[:, j])) for i, j in ((0, 1), (0, 2), (1, 2)))


def _towards(vector: np.ndarray) -> str:
    axis = int(np.abs(vector).argmax())
    return _TOWARDS[axis][int(vector[axis] > 0)]


def _about(turn: np.ndarray, angle: float) -> str:
    """The anatomical axis that a rotation goes about, where it is close to one."""
    if angle > 179.9:  # the antisymmetric part vanishes
        vector = np.sqrt(np.clip((np.diag(turn) + 1) / 2, 0, 1))
    else:
        vector = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
        vector /= np.linalg.norm(vector)
    axis = int(np.abs(vector).argmax())
    return f" about the {_AXES[axis]} axis" if abs(vector[axis]) > np.cos(np.radians(10)) else " about an oblique axis"


def _unit(ratios: np.ndarray) -> str:
    """What a ratio that is the same for all axes and close to that of two units means."""
    for factor, words in _UNITS.items():
        if np.abs(ratios / factor - 1).max() < 1e-3:
            return f" ({words}: is the unit in one of the headers wrong?)"
    return ""


def _shift(offset: Sequence[float]) -> str:
    parts = [f"{abs(mm):.4g} mm to {_TOWARDS[axis][int(mm > 0)]}" for axis, mm in enumerate(offset) if abs(mm) > 1e-4]
    return ", ".join(parts)


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{v:g}" for v in values)
