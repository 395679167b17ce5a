from __future__ import annotations

import numpy as np
import pytest

from medseg3d.data.grid_wording import describe
from medseg3d.data.reading import grid_difference
from medseg3d.geometry import geometry_of

SHAPE = (20, 30, 10)
IMAGE = np.diag([1.0, 1.0, 3.0, 1.0])


def about(axis: int, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    i, j = [a for a in range(3) if a != axis]
    turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
    return turn


def words(affine: np.ndarray) -> str:
    return describe(grid_difference(geometry_of(SHAPE, IMAGE), geometry_of(SHAPE, affine)))


FLIP_X = IMAGE * (-1, 1, 1, 1)
FLIP_XZ = IMAGE * (-1, 1, -1, 1)
SHEAR = IMAGE.copy()
SHEAR[0, 1] = np.tan(np.radians(6))
SHIFT = IMAGE.copy()
SHIFT[:3, 3] = (0.5, -2, 3)
MICRON = IMAGE * (1e-3, 1e-3, 1e-3, 1)


@pytest.mark.fault("E", "a label that is flipped, turned, sheared or in another unit", "the message names the axis, the angle or the unit")
@pytest.mark.parametrize(
    ("affine", "expected"),
    [
        (FLIP_X, "flipped: its x axis runs to the left, not to the right"),
        (FLIP_XZ, "its z axis runs to the feet, not to the head"),
        (about(2, 12) @ IMAGE, "turned by 12.0 degrees about the feet–head axis"),
        (about(0, 3) @ IMAGE, "turned by 3.0 degrees about the left–right axis"),
        (about(1, 90) @ IMAGE, "turned by 90.0 degrees about the front–back axis"),
        (about(2, 20) @ about(0, 20) @ IMAGE, "about an oblique axis"),
        (SHEAR, "sheared: its x and y axes stand at 84.0 degrees"),
        (SHIFT, "shifted 0.5 mm to the right, 2 mm to the back, 3 mm to the head"),
        (MICRON, "a thousandth: is the unit in one of the headers wrong?"),
    ],
)
def test_the_difference_of_two_grids_is_named(affine, expected) -> None:
    found = words(affine)
    assert expected in found
    assert "corners up to" in found


def test_what_is_equal_is_not_mentioned() -> None:
    found = words(SHIFT)
    assert "spacing" not in found
    assert "turned" not in found
