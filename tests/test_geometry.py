from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.geometry import (
    canonical_geometry,
    canonical_spacing,
    compare,
    from_canonical,
    geometry_of,
    orientation_code,
    orientation_of,
    resampled_shape,
    to_canonical,
)

SHAPE = (3, 4, 5)
ORIENTATIONS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], *, is_oblique: bool = False) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (ras, sign) in enumerate(zip(order, signs, strict=True)):
        affine[ras, axis] = sign * (0.5 + axis)
    affine[:3, 3] = (11, -7, 3)
    if is_oblique:
        c, s = np.cos(0.3), np.sin(0.3)
        affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ affine
    return affine


@pytest.mark.parametrize("is_oblique", [False, True])
def test_all_48_orientations_come_back_and_agree_with_nibabel(is_oblique) -> None:
    array = np.arange(2 * 60).reshape(2, *SHAPE)
    codes = set()
    for order, signs in ORIENTATIONS:
        affine = affine_of(order, signs, is_oblique=is_oblique)
        orientation = orientation_of(affine)
        canonical = to_canonical(array, orientation)
        np.testing.assert_array_equal(from_canonical(canonical, orientation), array)
        expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(array[1].astype(np.int16), affine))
        np.testing.assert_array_equal(canonical[1].transpose(2, 1, 0), np.asarray(expected.dataobj))
        geometry = canonical_geometry(geometry_of(SHAPE, affine), orientation)
        np.testing.assert_allclose(geometry.matrix, expected.affine, atol=1e-12)
        assert geometry.shape == expected.shape
        assert geometry.spacing == pytest.approx(canonical_spacing(geometry_of(SHAPE, affine), orientation)[::-1])
        assert orientation_code(affine) == "".join(nibabel.aff2axcodes(affine))
        codes.add(orientation_code(affine))
    assert len(codes) == 48


def test_reordering_makes_no_copy() -> None:
    array = np.zeros(SHAPE)
    assert np.shares_memory(to_canonical(array, orientation_of(affine_of((2, 0, 1), (-1, 1, -1)))), array)


def test_spacing_origin_and_direction_make_up_the_affine() -> None:
    geometry = geometry_of(SHAPE, affine_of((1, 2, 0), (1, -1, 1), is_oblique=True))
    np.testing.assert_allclose(geometry.direction * geometry.spacing, geometry.matrix[:3, :3])
    np.testing.assert_allclose(geometry.direction.T @ geometry.direction, np.eye(3), atol=1e-12)
    assert geometry.origin == pytest.approx(tuple(geometry.matrix[:3, 3]))


@given(offset=st.tuples(*[st.floats(-50, 50)] * 3))
def test_a_shift_is_the_offset_of_all_corners(offset) -> None:
    first = affine_of((0, 1, 2), (1, 1, 1))
    second = first.copy()
    second[:3, 3] += offset
    difference = compare(geometry_of(SHAPE, first), geometry_of(SHAPE, second))
    assert difference.corner_offset_mm == pytest.approx(float(np.linalg.norm(offset)), abs=1e-9)
    assert difference.origin_offset_mm == pytest.approx(offset, abs=1e-9)
    assert difference.corner_offset_voxels == pytest.approx(difference.corner_offset_mm / 0.5)


def test_a_slightly_other_spacing_shows_at_the_far_corner() -> None:
    difference = compare(geometry_of((101, 2, 2), np.eye(4)), geometry_of((101, 2, 2), np.diag([1.01, 1, 1, 1])))
    assert difference.corner_offset_mm == pytest.approx(1.0)
    assert not difference.is_same_grid(0.1)
    assert difference.is_same_grid(1.1)


def test_other_shapes_are_other_grids() -> None:
    assert not compare(geometry_of((2, 2, 2), np.eye(4)), geometry_of((2, 2, 3), np.eye(4))).is_same_grid(100)


@given(
    shape=st.tuples(*[st.integers(1, 600)] * 3),
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    target=st.tuples(*[st.floats(0.1, 10)] * 3),
)
def test_a_resampled_shape_covers_the_same_extent_within_half_a_voxel(shape, spacing, target) -> None:
    for n, s, t, m in zip(shape, spacing, target, resampled_shape(shape, spacing, target), strict=True):
        assert m >= 1
        assert m == 1 or abs(n * s - m * t) <= 0.5001 * t
