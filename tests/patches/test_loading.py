"""Batches depend on the seed, the epoch and the iteration alone, and errors and early ends are handled."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medseg3d.patches.augmentation import Batch, SpatialCrop, augment, augmentation_policy, crop_box, draw_augmentation
from medseg3d.patches.loading import PatchLoader, augmented_ahead
from medseg3d.patches.sampling import PatchBox

CPU = torch.device("cpu")


def make_cases(count=4, shape=(10, 12, 9)):
    rng = np.random.default_rng(0)
    cases = []
    for number in range(count):
        labels = (rng.random(shape) < 0.02).astype(np.uint8)
        image = (rng.normal(size=(1, *shape)) + 10 * number).astype(np.float16)
        cases.append(
            SimpleNamespace(
                name=f"case{number}", image=image, labels=labels, outside=None, foreground={1: np.argwhere(labels == 1)}, annotated=None
            )
        )
    return cases


def make_loader(cases, *, patch=(6, 8, 8), augmented=True, **others):
    policy = augmentation_policy(patch, num_channels=1, mirror_axes=(0, 1)) if augmented else None
    return PatchLoader(cases, patch_size=patch, batch_size=3, seed=5, policy=policy, **others)


def contents(loader, epoch, count, **others):
    return [
        (batch.names, *(augment(batch, loader.policy, CPU) if loader.policy else (batch.image, batch.labels)))
        for batch in loader.batches(epoch, count, **others)
    ]


def assert_same(first, second):
    assert len(first) == len(second)
    for (names, image, labels), (other_names, other_image, other_labels) in zip(first, second, strict=True):
        assert names == other_names
        assert torch.equal(image, other_image)
        assert torch.equal(labels, other_labels)


def test_threads_and_prefetching_do_not_change_the_batches():
    cases = make_cases()
    assert_same(contents(make_loader(cases), 1, 8), contents(make_loader(cases, num_threads=3, prefetch=5), 1, 8))


def test_a_resumed_epoch_goes_on_with_the_same_batches():
    cases = make_cases()
    assert_same(contents(make_loader(cases), 2, 6)[4:], contents(make_loader(cases), 2, 6, first=4))


def test_epochs_and_streams_differ():
    cases = make_cases()
    images = [
        contents(loader, epoch, 1)[0][1]
        for loader, epoch in ((make_loader(cases), 0), (make_loader(cases), 1), (make_loader(cases, stream=1), 0))
    ]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


@pytest.mark.parametrize("patch", [(6, 8, 8), (16, 16, 16), (8, 8), (2, 10, 9)])
def test_batches_have_the_patch_size_and_only_labels_of_the_cases(patch):
    loader = make_loader(make_cases(), patch=patch)
    for names, image, labels in contents(loader, 0, 6):
        assert image.shape == (3, 1, *patch)
        assert labels.shape == (3, *patch)
        assert image.isfinite().all()
        assert set(labels.unique().tolist()) <= {0, 1}
        assert set(names) <= {f"case{n}" for n in range(4)}


@pytest.mark.parametrize("patch", [(6, 8, 8), (4, 4)])
def test_forced_samples_hold_foreground(patch):
    loader = make_loader(make_cases(), patch=patch, augmented=False, foreground_share=1.0)
    for batch in loader.batches(0, 10):
        assert batch.labels.flatten(1).any(1).all()


def test_without_a_policy_patches_are_voxels_of_the_case():
    cases = make_cases()
    loader = make_loader(cases, augmented=False)
    for batch in loader.batches(0, 5):
        for name, image in zip(batch.names, batch.image, strict=True):
            assert np.isin(image.numpy(), cases[int(name[-1])].image.astype(np.float32)).all()


def test_an_error_while_reading_reaches_the_consumer():
    cases = make_cases(1)
    cases[0].labels = SimpleNamespace(shape=(10, 12, 9))  # cannot be sliced
    with pytest.raises(TypeError, match="not subscriptable"):
        next(make_loader(cases).batches(0, 3))


def test_leaving_early_ends_the_threads():
    batches = make_loader(make_cases()).batches(0, 100)
    next(batches)
    assert any(thread.name.startswith("patches") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("patches") for thread in threading.enumerate())


def test_waiting_is_measured():
    cases = make_cases(1)

    class Slow:
        shape = cases[0].image.shape

        def __getitem__(self, key):
            time.sleep(0.01)
            return real[key]

    real, cases[0].image = cases[0].image, Slow()
    loader = make_loader(cases)
    began = time.perf_counter()
    for _ in loader.batches(0, 4):
        pass
    whole = time.perf_counter() - began
    waited = loader.reader.waited_seconds
    assert 0.01 <= waited <= whole


def test_augmentation_ahead_of_time_gives_the_same_bits_and_only_where_it_does() -> None:
    policy = augmentation_policy((6, 8, 7), num_channels=1, mirror_axes=(0, 1, 2))
    rng, box, threads = np.random.default_rng(0), PatchBox(start=(0, 0, 0), size=(6, 8, 7)), torch.get_num_threads()
    cpu, draws = CPU, [draw_augmentation(policy, rng) for _ in range(12)]
    crops = []
    for draw in draws:
        part, center = crop_box(box, draw.matrix, None) if draw.matrix else (box, ())
        labels = torch.zeros(part.size, dtype=torch.int16)
        crops.append(SpatialCrop(image=torch.rand(1, *part.size), labels=labels, center=center) if draw.matrix else None)
    batch = Batch(
        image=torch.rand(12, 1, 6, 8, 7),
        labels=torch.randint(0, 3, (12, 6, 8, 7), dtype=torch.int16),
        names=("case",) * 12,
        draws=tuple(draws),
        crops=tuple(crops),
    )
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(augmented_ahead, batch, policy, cpu).result()
        assert ahead.augmented is not None
        assert all(a.equal(b) for a, b in zip(augment(ahead, policy, cpu), augment(batch, policy, cpu), strict=True))
        torch.set_num_threads(2)
        assert augmented_ahead(batch, policy, cpu) is batch
    finally:
        torch.set_num_threads(threads)
