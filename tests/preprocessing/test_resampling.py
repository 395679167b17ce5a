"""Resampling equals skimage and scipy, voxel by voxel, on any shapes and spacings."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from skimage.transform import resize

from medseg3d.errors import PlanError
from medseg3d.plan import Resampling
from medseg3d.preprocessing import resampling
from medseg3d.preprocessing.resampling import (
    axis_map,
    best_order,
    coarse_axis,
    resample_image,
    resample_labels,
    resample_tensor,
    resampling_bytes,
)

DEFAULT = Resampling()
shapes = st.tuples(*[st.integers(1, 14)] * 3)
spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 1.6, 4.0])] * 3)
seeds = st.integers(0, 2**32 - 1)


def plain_resize(volume: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    return resize(volume.astype(float), shape, order, mode="edge", anti_aliasing=False)


def plain_vote(labels: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """One score per label; exact ties go to the nearest voxel's label if it is tied, else to the lowest."""
    values = np.unique(labels)
    scores = np.stack([plain_resize(labels == value, shape, order) for value in values])
    nearest = plain_resize(labels, shape, 0)
    winner = values[scores.argmax(0)]
    for value, score in zip(values, scores, strict=True):
        winner = np.where((nearest == value) & (score == scores.max(0)), value, winner)
    return winner


def plain_apart(volume: np.ndarray, shape: tuple[int, ...], axis: int, order: int, coarse_order: int, plane: Callable) -> np.ndarray:
    """Slice by slice in the plane, then ``map_coordinates`` along the axis."""
    moved = np.moveaxis(volume, axis, 0)
    in_plane = tuple(n for i, n in enumerate(shape) if i != axis)
    slices = np.stack([plane(piece, in_plane, order) for piece in moved]).astype(float)
    where = np.indices((shape[axis], *in_plane), float)
    where[0] = volume.shape[axis] / shape[axis] * (where[0] + 0.5) - 0.5
    result = slices if shape[axis] == volume.shape[axis] else map_coordinates(slices, where, order=coarse_order, mode="nearest")
    return np.moveaxis(result, 0, axis)


@settings(max_examples=60, deadline=None)
@given(shapes, shapes, spacings, spacings, st.sampled_from([0, 1, 3]), st.sampled_from([0, 1, 3]), seeds)
def test_images_equal_skimage_within_a_hundred_thousandth(shape, new_shape, spacing, new_spacing, order, coarse_order, seed):
    volume = np.random.default_rng(seed).normal(50, 20, shape).astype(np.float32)
    rule = Resampling(image_order=order, image_coarse_order=coarse_order)
    axis = coarse_axis(spacing, new_spacing, 3.0)
    if axis is None:
        expected = plain_resize(volume, new_shape, order)
    else:
        expected = plain_apart(volume, new_shape, axis, order, coarse_order, plain_resize)
    if shape == new_shape:
        expected = volume
    result = resample_image(volume[None], new_shape, spacing=spacing, new_spacing=new_spacing, resampling=rule)[0]
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(volume).max())


@settings(max_examples=60, deadline=None)
@given(shapes, shapes, spacings, spacings, st.integers(1, 6), seeds)
def test_labels_equal_the_vote_of_all_indicators_exactly(shape, new_shape, spacing, new_spacing, num_labels, seed):
    labels = (np.random.default_rng(seed).integers(0, num_labels, shape) * 7).astype(np.uint8)
    axis = coarse_axis(spacing, new_spacing, 3.0)
    expected = plain_vote(labels, new_shape, 1) if axis is None else plain_apart(labels, new_shape, axis, 1, 0, plain_vote)
    if shape == new_shape:
        expected = labels
    result = resample_labels(labels, new_shape, spacing=spacing, new_spacing=new_spacing, resampling=DEFAULT)
    assert result.dtype == labels.dtype
    np.testing.assert_array_equal(result, expected)


@settings(max_examples=15, deadline=None)
@given(shapes, shapes, spacings, spacings, st.sampled_from([(1, 0), (3, 0), (3, 1)]), seeds)
def test_tensors_are_resampled_as_arrays_are(shape, new_shape, spacing, new_spacing, orders, seed):
    torch = pytest.importorskip("torch")
    volume = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    rule = Resampling(image_order=orders[0], image_coarse_order=orders[1])
    expected = resample_image(volume, new_shape, spacing=spacing, new_spacing=new_spacing, resampling=rule)
    result = resample_tensor(
        torch.from_numpy(volume), new_shape, spacing=spacing, new_spacing=new_spacing, order=orders[0], coarse_order=orders[1]
    )
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


def test_long_axes_lose_nothing_by_the_narrow_band():
    signal = np.random.default_rng(0).normal(size=(1, 3, 300, 2)).astype(np.float32)
    result = resample_image(signal, (3, 411, 2), spacing=(1, 1, 1), new_spacing=(1, 1, 1), resampling=DEFAULT)
    np.testing.assert_allclose(result[0], plain_resize(signal[0], (3, 411, 2), 3), atol=1e-5)


def test_a_label_map_in_many_slabs_equals_one_in_one(monkeypatch):
    labels = np.random.default_rng(0).integers(0, 4, (9, 11, 7)).astype(np.uint8)
    whole = resample_labels(labels, (15, 9, 12), spacing=(1, 1, 1), new_spacing=(1, 1, 1), resampling=DEFAULT)
    monkeypatch.setattr("medseg3d.preprocessing.resampling.UNIFORM_SLAB_VOXELS", 200)
    slabs = resample_labels(labels, (15, 9, 12), spacing=(1, 1, 1), new_spacing=(1, 1, 1), resampling=DEFAULT)
    np.testing.assert_array_equal(slabs, whole)


@pytest.mark.parametrize(
    ("spacing", "new_spacing", "axis"),
    [((1, 1, 1), (1, 1, 1), None), ((3, 1, 1), (3, 1, 1), None), ((3.1, 1, 1), (1, 1, 1), 0), ((1, 1, 1), (1, 4, 1), 1),
     ((4, 4, 1), (1, 5, 1), None), ((1, 1, 4), (5, 1, 1), 2)],
)  # fmt: skip
def test_the_coarse_axis_is_that_of_the_old_spacing_before_the_new(spacing, new_spacing, axis):
    assert coarse_axis(spacing, new_spacing, 3.0) == axis


def test_axes_that_shrink_come_first():
    assert best_order([axis_map(10, 40, 3), axis_map(100, 20, 3), axis_map(50, 60, 3)])[0] == 1


def test_unknown_spline_orders_are_refused():
    image = np.zeros((1, 3, 3, 3), np.float32)
    with pytest.raises(PlanError, match="order 2"):
        resample_image(image, (4, 4, 4), spacing=(1, 1, 1), new_spacing=(1, 1, 1), resampling=Resampling(image_order=2))
    with pytest.raises(PlanError, match="order 0 or 1"):
        resample_labels(image[0], (4, 4, 4), spacing=(1, 1, 1), new_spacing=(1, 1, 1), resampling=Resampling(label_order=3))


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(2, 14)] * 3), st.tuples(*[st.integers(2, 14)] * 3), st.sampled_from([(1.0, 1.0, 1.0), (5.0, 1.0, 1.0)]))
def test_a_torch_device_resamples_images_as_numpy_does(shape, new_shape, spacing):
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    new_spacing = tuple(s * n / m for s, n, m in zip(spacing, shape, new_shape, strict=True))
    options = {"spacing": spacing, "new_spacing": new_spacing, "resampling": Resampling()}
    here = resample_image(image, new_shape, **options)
    np.testing.assert_allclose(resample_image(image, new_shape, **options, device="cpu"), here, atol=2e-6)


def test_a_volume_that_a_device_cannot_hold_is_resampled_here(monkeypatch, caplog):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(resampling, "resample_tensor", full)
    image = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    options = {"spacing": (1.0, 1.0, 1.0), "new_spacing": (0.5, 1.0, 1.0), "resampling": Resampling()}
    with caplog.at_level("WARNING"):
        found = resample_image(image, (8, 5, 6), **options, device="cpu")
    assert np.array_equal(found, resample_image(image, (8, 5, 6), **options))
    assert "does not fit the memory" in caplog.text


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize(
    ("shape", "new_shape", "spacing"),
    [
        ((20, 18, 16), (100, 90, 80), (5.0, 5.0, 5.0)),
        ((20, 40, 36), (200, 40, 36), (10.0, 1.0, 1.0)),
        ((40, 20, 18), (40, 90, 80), (1.0, 5.0, 5.0)),
        ((60, 60, 60), (30, 30, 30), (0.5, 0.5, 0.5)),
        ((30, 96, 96), (30, 48, 48), (1.0, 0.5, 0.5)),
        ((90, 64, 64), (30, 128, 128), (1 / 3, 2.0, 2.0)),
    ],
    ids=["all axes", "the first", "two of three", "all shrink", "two shrink", "one shrinks"],
)
def test_no_more_memory_is_taken_than_is_foretold(num_channels, shape, new_shape, spacing):
    image = np.random.default_rng(0).normal(size=(num_channels, *shape)).astype(np.float32)
    resample_image(image, new_shape, spacing=spacing, new_spacing=(1.0, 1.0, 1.0), resampling=DEFAULT)  # matrices are kept from here on
    tracemalloc.start()
    resample_image(image, new_shape, spacing=spacing, new_spacing=(1.0, 1.0, 1.0), resampling=DEFAULT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    told = resampling_bytes(image.shape, new_shape)
    assert 0.4 * told < peak <= told
    assert resampling_bytes(image.shape, shape) == 0
