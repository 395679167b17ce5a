"""The crop box and mask against nnU-Net's own steps: OR over channels, ``binary_fill_holes``, bounding box."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg3d.data.cropping import nonzero_box, nonzero_mask


def filled_by_scipy(image: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_fill_holes

    return binary_fill_holes((image != 0).any(axis=0))


def box_of(mask: np.ndarray) -> tuple[slice, ...]:
    if not mask.any():
        return tuple(slice(0, n) for n in mask.shape)
    places = np.argwhere(mask)
    return tuple(slice(int(low), int(high) + 1) for low, high in zip(places.min(0), places.max(0), strict=True))


sparse_images = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, -0.0, 1.0, -3.5]), fill=st.just(0.0))
)


@settings(max_examples=200, deadline=None)
@given(sparse_images)
def test_box_and_mask_are_those_of_scipy(image: np.ndarray) -> None:
    mask = filled_by_scipy(image)
    np.testing.assert_array_equal(nonzero_mask(image), mask)
    assert nonzero_box(image) == box_of(mask)


def test_random_dense_masks_are_filled_as_scipy_fills_them() -> None:
    rng = np.random.default_rng(0)
    for density in (0.4, 0.6, 0.75, 0.9):
        image = (rng.random((1, 9, 10, 11)) < density).astype(np.float32)
        np.testing.assert_array_equal(nonzero_mask(image), filled_by_scipy(image))


def test_a_closed_shell_is_filled_and_an_open_one_is_not() -> None:
    image = np.zeros((1, 7, 7, 7), np.float32)
    image[0, 1:6, 1:6, 1:6] = 1
    image[0, 2:5, 2:5, 2:5] = 0
    assert nonzero_mask(image).sum() == 125
    image[0, 1, 3, 3] = 0
    assert nonzero_mask(image).sum() == 125 - 27 - 1


def test_each_channel_widens_the_box() -> None:
    image = np.zeros((2, 5, 6, 7), np.float32)
    image[0, 1, 2, 3] = -1
    image[1, 3, 1, 6] = 2
    assert nonzero_box(image) == (slice(1, 4), slice(1, 3), slice(3, 7))


def test_the_box_of_an_image_of_zeros_is_the_whole_volume() -> None:
    image = np.zeros((1, 3, 4, 5), np.float32)
    assert nonzero_box(image) == (slice(0, 3), slice(0, 4), slice(0, 5))
    assert not nonzero_mask(image).any()


def test_the_image_is_not_changed() -> None:
    image = np.pad(np.ones((1, 3, 3, 3), np.float32), ((0, 0), (1, 1), (1, 1), (1, 1)))
    image[0, 2, 2, 2] = 0
    before = image.copy()
    nonzero_mask(image)
    np.testing.assert_array_equal(image, before)
