"""The store gives back what was written, and writes atomically."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.errors import InputError, StorageError
from medseg3d.plan import Resampling
from medseg3d.preprocessing import store as store_module
from medseg3d.preprocessing.chunked_array import BLOCK_BYTES, CHUNK_BYTES, chunk_shapes
from medseg3d.preprocessing.preprocess_case import PreprocessedCase, Restoration
from medseg3d.preprocessing.store import Store, compact, foreground_index

SHAPE = (9, 20, 17)


@pytest.fixture
def case() -> PreprocessedCase:
    generator = np.random.default_rng(0)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 3:9, 4:12] = 1
    labels[6, 10, 11] = 3
    return PreprocessedCase(
        name="case_1",
        image=generator.normal(size=(2, *SHAPE)).astype(np.float32),
        labels=labels,
        outside=labels == 0,
        restoration=Restoration(
            original_shape=SHAPE, axis_order=(0, 1, 2), box=((0, 9), (0, 20), (0, 17)), spacing=(1.0, 1.0, 1.0),
            resampled_shape=SHAPE, resampled_spacing=(1.0, 1.0, 1.0), resampling=Resampling(),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_case_comes_back_as_it_was_written(tmp_path, case, in_memory):
    store = Store(tmp_path, patch_size=(8, 8, 8))
    store.write(case, "digest")
    stored = store.read("case_1", in_memory=in_memory)
    np.testing.assert_allclose(stored.image[:, 2:7, 5:, :3], case.image[:, 2:7, 5:, :3], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(stored.labels[1:8], case.labels[1:8])
    np.testing.assert_array_equal(stored.outside[:], case.outside)
    assert (stored.image.dtype, stored.labels.dtype) == (np.float16, np.uint8)
    assert (stored.shape, stored.restoration, store.names()) == (SHAPE, case.restoration, ("case_1",))


def test_torch_loads_cases_from_a_store_by_their_order(tmp_path, case):
    store = Store(tmp_path)
    store.write(replace(case, name="case_2", image=2 * case.image), "digest")
    store.write(case, "digest")
    loaded = list(torch.utils.data.DataLoader(store, batch_size=1))
    assert len(store) == len(loaded) == 2
    for factor, (image, labels) in zip((1, 2), loaded, strict=True):
        assert (image.dtype, labels.dtype) == (torch.float32, torch.int64)
        np.testing.assert_allclose(image[0], factor * case.image, rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(labels[0], case.labels)


def test_a_store_says_which_case_has_no_label_map(tmp_path, case):
    store = Store(tmp_path)
    store.write(replace(case, labels=None, outside=None), "digest")
    with pytest.raises(InputError, match="case_1: the preprocessed case has no label map"):
        store[0]
    with pytest.raises(IndexError):
        store[1]


def test_the_foreground_index_points_at_its_labels(tmp_path, case):
    Store(tmp_path).write(case, "digest")
    foreground = Store(tmp_path).read("case_1").foreground
    assert set(foreground) == {1, 3}
    for label, voxels in foreground.items():
        assert (case.labels[tuple(voxels.T)] == label).all()
        assert len(np.unique(voxels, axis=0)) == len(voxels) == (case.labels == label).sum()


def test_a_large_label_is_sampled_without_replacement_and_always_the_same(monkeypatch):
    monkeypatch.setattr(store_module, "MIN_FOREGROUND_VOXELS", 50)
    labels = np.zeros((30, 40, 50), np.uint16)
    labels[3:20, 2:30, 5:40] = 300
    first, second = (foreground_index(labels, np.random.default_rng(5))[300] for _ in range(2))
    assert len(np.unique(first, axis=0)) == len(first) == -(-17 * 28 * 35 // 100)
    np.testing.assert_array_equal(first, second)


def test_a_case_is_current_only_for_its_digest(tmp_path, case):
    store = Store(tmp_path)
    assert not store.is_current("case_1", "a")
    store.write(case, "a")
    assert store.is_current("case_1", "a")
    assert not store.is_current("case_1", "b")
    store.write(case, "b")
    assert store.is_current("case_1", "b")
    (tmp_path / "case_1" / "case.json").write_text("{", encoding="utf-8")
    assert not store.is_current("case_1", "b")


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()], ids=["emptied", "lost"])
@pytest.mark.parametrize("file", ["image.b2nd", "labels.b2nd", "foreground.npz"])
def test_a_case_that_a_power_failure_emptied_is_made_again(tmp_path, case, file, damage):
    store = Store(tmp_path)
    store.write(case, "a")
    damage(tmp_path / "case_1" / file)
    assert not store.is_current("case_1", "a")
    store.write(case, "a")
    assert store.is_current("case_1", "a")


def test_a_failed_write_leaves_the_old_case(tmp_path, case, monkeypatch):
    store = Store(tmp_path)
    store.write(case, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="disk is full"):
        store.write(case, "new")
    assert store.is_current("case_1", "old")
    assert [p.name for p in tmp_path.iterdir()] == ["case_1"]


def test_what_a_crash_left_is_removed_and_the_last_whole_case_kept(tmp_path, case):
    store = Store(tmp_path)
    store.write(case, "old")
    (tmp_path / "case_1").rename(tmp_path / ".00.old.case_1")
    (tmp_path / ".00.tmp.case_1").mkdir()
    for left in tmp_path.iterdir():
        os.utime(left, (0, 0))
    (tmp_path / ".01.tmp.case_2").mkdir()
    store.remove_leftovers()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".01.tmp.case_2", "case_1"], "another process may be writing case_2"


def test_a_case_that_another_process_wrote_meanwhile_is_no_error(tmp_path, case, monkeypatch):
    store = Store(tmp_path)
    rename = os.replace

    def late(source, target):
        if Path(target).name == "case_1" and ".tmp." in Path(source).name:
            monkeypatch.setattr(os, "replace", rename)
            Store(tmp_path).write(case, "theirs")
        rename(source, target)

    monkeypatch.setattr(os, "replace", late)
    store.write(case, "ours")
    assert store.is_current("case_1", "theirs")
    assert [p.name for p in tmp_path.iterdir()] == ["case_1"]


def test_threads_and_pickled_handles_read_the_same(tmp_path, case):
    store = Store(tmp_path)
    store.write(case, "digest")
    stored = store.read("case_1")
    expected = stored.image[:]
    wrong = []

    def check() -> None:
        for start in range(5):
            if not np.array_equal(stored.image[:, start:], expected[:, start:]):
                wrong.append(start)

    threads = [threading.Thread(target=check) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stored.image))[:], expected)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([0.0, 1.0, -2.5], np.float16), ([0.0, 1e6], np.float32), ([10_000.0, 10_001.5], np.float32), ([7.0, 7.0], np.float16)],
)
def test_float32_is_stored_only_where_float16_would_lose(values, dtype):
    assert compact(np.resize(np.array(values, np.float32), (1, 4, 4, 4))).dtype == dtype


def test_a_missing_case_is_named(tmp_path):
    with pytest.raises(InputError, match="preprocess"):
        Store(tmp_path).read("nobody")


def test_a_store_that_is_not_there_says_so_when_it_is_read(tmp_path, case):
    store = Store(tmp_path / "store")
    assert case.name not in store
    for read in (store.names, lambda: len(store), lambda: store[0]):
        with pytest.raises(InputError, match="store: there is no store of preprocessed cases here"):
            read()
    store.write(case, "digest")
    assert case.name in store
    assert "nobody" not in store


@given(st.tuples(*[st.integers(1, 600)] * 3), st.tuples(*[st.integers(1, 300)] * 3), st.sampled_from([1, 2, 4]))
def test_chunks_and_blocks_keep_their_limits(shape, patch, itemsize):
    chunks, blocks = chunk_shapes((2, *shape), itemsize, patch)
    assert np.prod(chunks) * itemsize <= CHUNK_BYTES
    assert np.prod(blocks) * itemsize <= BLOCK_BYTES
    assert all(1 <= b <= c <= n for b, c, n in zip(blocks, chunks, (2, *shape), strict=True))
