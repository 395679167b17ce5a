"""Restored label maps are the arg-max of plainly resampled logits, on the grid of the raw case."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize

from medseg3d.plan import Resampling
from medseg3d.prediction import restore
from medseg3d.preprocessing.preprocess_case import Restoration
from medseg3d.preprocessing.resampling import coarse_axis

FINE, COARSE = (1.0, 1.1, 0.9), (4.0, 1.0, 1.0)
ORDERS = [(0, 1, 2), (1, 0, 2), (2, 0, 1)]


def restoration(cropped, resampled, *, order=(0, 1, 2), margin=(0, 0, 0), spacing=FINE, resampled_spacing=FINE) -> Restoration:
    whole = [n + 2 * m for n, m in zip(cropped, margin, strict=True)]
    original = [0, 0, 0]
    for place, axis in enumerate(order):
        original[axis] = whole[place]
    return Restoration(
        original_shape=tuple(original),
        axis_order=order,
        box=tuple((m, m + n) for n, m in zip(cropped, margin, strict=True)),
        spacing=spacing,
        resampled_shape=tuple(resampled),
        resampled_spacing=resampled_spacing,
        resampling=Resampling(),
    )


def plain_logits(logits: np.ndarray, record: Restoration) -> np.ndarray:
    """All classes at full size in float64, on the crop."""
    shape = record.cropped_shape
    axis = coarse_axis(record.resampled_spacing, record.spacing, 3.0)
    values = logits.astype(np.float64)
    if axis is not None:
        places = (np.arange(shape[axis]) + 0.5) * (values.shape[1 + axis] / shape[axis]) - 0.5
        values = values.take(np.clip(np.floor(places + 0.5), 0, values.shape[1 + axis] - 1).astype(int), 1 + axis)
    return np.stack([resize(channel, shape, 1, mode="edge", anti_aliasing=False) for channel in values])


def whole(logits, record: Restoration, **options) -> np.ndarray:
    return restore.restore_label_maps([logits], len(logits), record, **options)[0]


def in_slabs(logits: np.ndarray, cuts: list[int]):
    """Slabs that are overwritten once the next one is asked for."""
    edges = [0, *sorted(min(cut, logits.shape[1]) for cut in cuts), logits.shape[1]]
    for start, stop in itertools.pairwise(edges):
        slab = logits[:, start:stop].copy()
        yield slab
        slab[...] = np.nan


def on_raw_grid(crop: np.ndarray, record: Restoration) -> np.ndarray:
    whole = np.zeros([record.original_shape[axis] for axis in record.axis_order], crop.dtype)
    whole[tuple(slice(*pair) for pair in record.box)] = crop
    return whole.transpose(np.argsort(record.axis_order))


sizes = st.tuples(*[st.integers(1, 12)] * 3)


@settings(max_examples=60, deadline=None)
@given(
    sizes, sizes, st.sampled_from(ORDERS), st.tuples(*[st.integers(0, 2)] * 3), st.sampled_from([FINE, COARSE]),
    st.sampled_from([FINE, COARSE]), st.integers(1, 6), st.sampled_from([0.0, 5.0]), st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 12), max_size=4),
)  # fmt: skip
def test_restored_labels_are_the_argmax_of_resampled_logits(
    cropped, resampled, order, margin, spacing, resampled_spacing, num_classes, spread, seed, cuts
):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(num_classes, *resampled)) + spread * generator.normal(size=(num_classes, 1, 1, 1))
    logits = logits.astype(np.float16)
    record = restoration(cropped, resampled, order=order, margin=margin, spacing=spacing, resampled_spacing=resampled_spacing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "TILE", (3, 4, 5))
        result = restore.restore_label_maps(in_slabs(logits, cuts), num_classes, record)[0]
        assert np.array_equal(result, whole(logits, record)), "slabs change nothing"
    plain = plain_logits(logits, record)
    expected = on_raw_grid(plain.argmax(0), record)
    best = np.sort(plain, axis=0)[::-1]
    is_clear = best[0] - best[min(1, num_classes - 1)] > 1e-5
    if num_classes == 1:
        is_clear[:] = True
    differs = result != expected
    assert result.shape == record.original_shape
    assert not (differs & on_raw_grid(is_clear, record)).any()
    assert (result[~on_raw_grid(np.ones(record.cropped_shape, bool), record)] == 0).all()


@settings(max_examples=20, deadline=None)
@given(
    sizes, sizes, st.sampled_from(ORDERS), st.sampled_from([FINE, COARSE]), st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 12), max_size=4), st.booleans(),
)  # fmt: skip
def test_restored_probabilities_are_those_of_resampled_logits(cropped, resampled, order, spacing, seed, cuts, is_regions):
    logits = np.random.default_rng(seed).normal(size=(3, *resampled)).astype(np.float32) * 3
    record = restoration(cropped, resampled, order=order, margin=(1, 0, 2), spacing=spacing)
    plain = plain_logits(logits, record)
    expected = 1 / (1 + np.exp(-plain)) if is_regions else np.exp(plain) / np.exp(plain).sum(0)
    found = np.full((4, *record.cropped_shape), np.nan)
    blocks = restore.restored_probabilities(in_slabs(logits, cuts), 3, record, is_regions=is_regions)
    for rows, block in blocks:
        found[:, rows] = block
    np.testing.assert_allclose(found[:3], expected, atol=1e-5)
    labels = whole(logits, record, is_regions=is_regions)
    assert np.array_equal(on_raw_grid(found[3], record), labels)


def test_regions_are_painted_in_their_order():
    logits = np.array([[1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, 1.0, -1.0]], np.float32).reshape(2, 1, 1, 4)
    record = restoration((1, 1, 4), (1, 1, 4))
    assert whole(logits, record, is_regions=True).ravel().tolist() == [1, 2, 2, 0]


def test_two_label_maps_come_from_one_stream():
    logits = np.random.default_rng(0).normal(size=(6, 9, 8, 7)).astype(np.float32)
    record = restoration((17, 15, 13), (9, 8, 7))
    found = restore.restore_label_maps(in_slabs(logits, [4]), 3, record, num_maps=2)
    for labels, part in zip(found, (logits[:3], logits[3:]), strict=True):
        assert np.array_equal(labels, whole(part, record))


def test_missing_rows_are_a_defect_and_not_background():
    with pytest.raises(ValueError, match="missing"):
        whole(np.zeros((2, 3, 4, 4), np.float32), restoration((8, 8, 8), (4, 4, 4)))


def test_equal_logits_go_to_the_lowest_index():
    logits = np.ones((4, 3, 3, 3), np.float32)
    assert (whole(logits, restoration((7, 5, 9), (3, 3, 3))) == 0).all()


def test_the_result_does_not_depend_on_threads_tiles_or_container(monkeypatch):
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(3).normal(size=(5, 9, 8, 7)).astype(np.float16)
    record = restoration((17, 15, 13), (9, 8, 7))
    expected = whole(logits, record, num_threads=1)
    monkeypatch.setattr(restore, "TILE", (5, 5, 5))
    for given_logits in (logits, torch.from_numpy(logits), torch.from_numpy(logits).float()):
        np.testing.assert_array_equal(whole(given_logits, record, num_threads=3), expected)


def test_more_than_256_classes_need_uint16():
    logits = np.zeros((300, 2, 2, 2), np.float16)
    logits[299] = 1
    result = whole(logits, restoration((3, 3, 3), (2, 2, 2)))
    assert result.dtype == np.uint16
    assert (result == 299).all()
