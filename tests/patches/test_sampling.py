"""Boxes lie where they should, foreground is met as promised, and reading a box equals padding and cutting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.patches.sampling import OUTSIDE, PatchBox, generator, is_forced, place_patch, read_patch

edges = st.tuples(*[st.integers(1, 9)] * 3)


def test_numbers_of_forced_samples_are_those_of_the_rule():
    counts = {b: sum(is_forced(j, batch_size=b, iteration=7, share=0.33) for j in range(b)) for b in (2, 3, 4, 5, 6, 9, 12)}
    assert counts == {2: 1, 3: 1, 4: 1, 5: 2, 6: 2, 9: 3, 12: 4}
    assert [is_forced(j, batch_size=3, iteration=0, share=0.33) for j in range(3)] == [False, False, True]


@given(share=st.floats(0, 1), iterations=st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_a_batch_of_one_never_falls_behind_its_share(share, iterations):
    forced = sum(is_forced(0, batch_size=1, iteration=i, share=share) for i in range(iterations))
    assert share * iterations - 1 < forced <= share * iterations + 1e-9


@given(shape=edges, patch=edges, seed=st.integers(0, 1000), has_foreground=st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_box_overhangs_only_where_the_volume_is_smaller(shape, patch, seed, has_foreground):
    rng = np.random.default_rng(seed)
    voxel = np.array([[rng.integers(n) for n in shape]])
    box = place_patch(shape, patch, foreground={1: voxel} if has_foreground else None, rng=rng)
    assert box.size == patch
    for start, size, n, v in zip(box.start, patch, shape, voxel[0], strict=True):
        if n >= size:
            assert 0 <= start <= n - size
        else:
            assert start <= 0
            assert start + size >= n
            assert abs(-start - (start + size - n)) <= 1
        if has_foreground:
            assert start <= v < start + size


def test_every_uniform_position_is_drawn():
    rng = np.random.default_rng(0)
    boxes = {place_patch((5, 4, 3), (3, 4, 4), foreground=None, rng=rng).start for _ in range(200)}
    assert boxes == {(a, 0, c) for a in (0, 1, 2) for c in (-1, 0)}


def test_classes_are_drawn_evenly_however_large_they_are():
    rng = np.random.default_rng(0)
    foreground = {1: np.zeros((1000, 3), int), 2: np.full((1, 3), 9), 3: np.zeros((0, 3), int)}
    starts = [place_patch((10, 10, 10), (1, 1, 1), foreground=foreground, rng=rng).start for _ in range(600)]
    assert 240 < sum(start == (9, 9, 9) for start in starts) < 360


def test_a_case_without_foreground_is_sampled_uniformly():
    box = place_patch((8, 8, 8), (4, 4, 4), foreground={}, rng=np.random.default_rng(0))
    assert box.size == (4, 4, 4)


def test_a_2d_patch_is_one_slice_through_its_voxel():
    box = place_patch((10, 20, 20), (8, 8), foreground={1: np.array([[7, 10, 10]])}, rng=np.random.default_rng(0))
    assert box == PatchBox(start=(7, 6, 6), size=(1, 8, 8))


@given(shape=edges, size=edges, start=st.tuples(*[st.integers(-9, 9)] * 3), marks=st.booleans())
@settings(max_examples=150, deadline=None)
def test_reading_equals_padding_and_cutting(shape, size, start, marks):
    rng = np.random.default_rng(1)
    image = rng.normal(size=(2, *shape)).astype(np.float16)
    labels = rng.integers(0, 3, shape).astype(np.uint8)
    outside = rng.random(shape) < 0.5
    patch = read_patch(image, labels, PatchBox(start=start, size=size), outside=outside, mark_outside=marks)
    marked = np.where(outside & (labels == 0), OUTSIDE, labels.astype(int)) if marks else labels.astype(int)
    cut = tuple(slice(20 + s, 20 + s + n) for s, n in zip(start, size, strict=True))
    expected_image = np.pad(image.astype(np.float32), [(0, 0), *[(20, 20)] * 3])[(slice(None), *cut)]
    expected_labels = np.pad(marked, 20, constant_values=OUTSIDE if marks else 0)[cut]
    np.testing.assert_array_equal(patch.image, expected_image)
    np.testing.assert_array_equal(patch.labels, expected_labels)
    assert (patch.image.dtype, patch.labels.dtype) == (np.float32, np.int16)


def test_a_patch_is_a_copy_of_the_volume():
    image, labels = np.zeros((1, 2, 2, 2), np.float32), np.zeros((2, 2, 2), np.int16)
    patch = read_patch(image, labels, PatchBox(start=(0, 0, 0), size=(2, 2, 2)))
    patch.image[:], patch.labels[:] = 1, 1
    assert not image.any()
    assert not labels.any()


@pytest.mark.parametrize("stream", [(0, 0, 1), (0, 1, 0), (1, 0, 0)])
def test_every_stream_has_numbers_of_its_own(stream):
    assert generator(3, 0, 0, 0).random() == generator(3, 0, 0, 0).random()
    assert generator(3, 0, 0, 0).random() != generator(3, *stream).random()
