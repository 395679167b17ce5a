"""Each change is what it says, in the stated share of samples, and the same draw gives the same result."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import torch

from medseg3d.patches import augmentation
from medseg3d.patches.augmentation import (
    AugmentationDraw,
    Batch,
    SpatialCrop,
    augment,
    augmentation_policy,
    crop_box,
    draw_augmentation,
)
from medseg3d.patches.augmentation_speed import measure_augmentation
from medseg3d.patches.sampling import OUTSIDE, PatchBox, read_patch

CPU = torch.device("cpu")
PATCH = (6, 8, 7)
POLICY = augmentation_policy(PATCH, num_channels=2, mirror_axes=(0, 1, 2))


def make_batch(*draws, size=PATCH, crops=()):
    torch.manual_seed(0)
    count = len(draws)
    return Batch(
        image=torch.randn(count, 2, *size),
        labels=torch.randint(0, 4, (count, *size), dtype=torch.int16),
        names=("case",) * count,
        draws=draws,
        crops=crops or (None,) * count,
    )


def test_a_draw_of_nothing_changes_nothing_and_the_batch_stays_as_it_was():
    batch = make_batch(AugmentationDraw(), AugmentationDraw())
    before = batch.image.clone()
    image, labels = augment(batch, POLICY, CPU)
    assert torch.equal(image, batch.image)
    assert torch.equal(labels, batch.labels.long())
    everything = AugmentationDraw(noise=(0.1, 1), brightness=(2.0, 2.0), mirror=(0,))
    changed, _ = augment(replace(batch, draws=(everything, everything)), POLICY, CPU)
    assert not torch.equal(changed, before)
    assert torch.equal(batch.image, before)


def test_the_same_draw_gives_the_same_result():
    draws = tuple(draw_augmentation(POLICY, np.random.default_rng(seed)) for seed in range(20))
    draws = tuple(replace(draw, matrix=None) for draw in draws)
    assert draws == tuple(replace(draw_augmentation(POLICY, np.random.default_rng(s)), matrix=None) for s in range(20))
    first, second = (augment(make_batch(*draws), POLICY, CPU) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[0].isfinite().all()


def test_every_change_is_drawn_as_often_as_the_rule_says():
    rng = np.random.default_rng(0)
    count = 6000
    draws = [draw_augmentation(POLICY, rng) for _ in range(count)]
    shares = {
        "matrix": (sum(d.matrix is not None for d in draws), 1 - 0.8 * 0.8),
        "noise": (sum(d.noise is not None for d in draws), 0.1),
        "blur": (sum(bool(d.blur) for d in draws), 0.2),
        "blurred channel": (sum(d.blur[0] is not None for d in draws if d.blur), 0.1),
        "brightness": (sum(bool(d.brightness) for d in draws), 0.15),
        "contrast": (sum(bool(d.contrast) for d in draws), 0.15),
        "low resolution": (sum(bool(d.low_resolution) for d in draws), 0.25),
        "coarse channel": (sum(d.low_resolution[1] is not None for d in draws if d.low_resolution), 0.125),
        "inverted gamma": (sum(bool(d.gamma_inverted) for d in draws), 0.1),
        "gamma": (sum(bool(d.gamma) for d in draws), 0.3),
        "mirror": (sum(2 in d.mirror for d in draws), 0.5),
    }
    for name, (found, expected) in shares.items():
        assert found / count == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / count)), name
    gammas = np.array([g for d in draws for g in d.gamma])
    assert gammas.min() >= 0.7
    assert gammas.max() <= 1.5
    assert (gammas < 1).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("patch", "is_slicewise", "degrees"),
    [((40, 56, 40), False, 30), ((20, 320, 256), True, 180), ((64, 192, 64), False, 30), ((56, 40), False, 180), ((64, 40), False, 15)],
)
def test_angles_follow_the_shape_of_the_patch(patch, is_slicewise, degrees):
    policy = augmentation_policy(patch, num_channels=1, mirror_axes=())
    assert policy.is_slicewise == is_slicewise
    assert math.degrees(policy.max_angle) == pytest.approx(degrees)
    matrices = [draw_augmentation(policy, np.random.default_rng(s)).matrix for s in range(60)]
    drawn = [np.array(m) for m in matrices if m is not None]
    assert {len(m) for m in drawn} == {2 if is_slicewise or len(patch) == 2 else 3}
    for matrix in drawn:
        scale = np.linalg.det(matrix) ** (1 / len(matrix))
        assert 0.7 <= scale <= 1.4
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)) * scale**2, atol=1e-12)


def resample(image, labels, box, matrix, *, beyond=0):
    larger, center = crop_box(box, matrix, labels.shape)
    patch = read_patch(image, labels, larger)
    crop = SpatialCrop(image=torch.from_numpy(patch.image), labels=torch.from_numpy(patch.labels), center=center)
    return augmentation.resample_crop(crop, matrix, box.size, device=CPU, beyond=beyond)


def spatial_oracle(image, labels, box, matrix):
    """Interpolate the whole padded volume with scipy, labels as one-hot maps."""
    full = np.eye(3)
    full[3 - len(matrix) :, 3 - len(matrix) :] = matrix
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in box.size), indexing="ij"))
    middle = np.array(box.start) + (np.array(box.size) - 1) / 2
    points = np.tensordot(full, grid, 1) + middle[:, None, None, None] + 30

    def interpolate(volume):
        return scipy.ndimage.map_coordinates(np.pad(volume.astype(float), 30), points, order=1)

    one_hot = np.stack([scipy.ndimage.map_coordinates(np.pad(labels, 30) == v, points, order=1, output=float) for v in range(4)])
    return np.stack([interpolate(channel) for channel in image]), one_hot


@pytest.mark.parametrize("in_plane", [False, True])
def test_rotation_and_scaling_are_linear_interpolation_of_the_whole_volume(in_plane):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 9, 12, 11)).astype(np.float32)
    labels = rng.integers(0, 4, (9, 12, 11)).astype(np.uint8)
    policy = replace(augmentation_policy((24, 8, 7) if in_plane else PATCH, num_channels=2, mirror_axes=()), is_slicewise=in_plane)
    for start in ((1, 2, 2), (-2, 4, 5), (4, -3, -1)):
        matrix = next(
            m for m in (draw_augmentation(policy, np.random.default_rng([start[1] + 3, s])).matrix for s in range(99)) if m is not None
        )
        box = PatchBox(start=start, size=PATCH)
        found_image, found_labels = resample(image, labels, box, matrix)
        expected, one_hot = spatial_oracle(image, labels, box, matrix)
        np.testing.assert_allclose(found_image.numpy(), expected, atol=1e-4)
        score = np.take_along_axis(one_hot, found_labels.numpy()[None].astype(int), 0)[0]
        np.testing.assert_allclose(score, one_hot.max(0), atol=1e-5)


def test_beyond_the_volume_labels_get_the_value_asked_for():
    image, labels = np.ones((1, 4, 4, 4), np.float32), np.ones((4, 4, 4), np.uint8)
    matrix = ((1.4, 0.0, 0.0), (0.0, 1.4, 0.0), (0.0, 0.0, 1.4))
    _, found = resample(image, labels, PatchBox(start=(-2, -2, -2), size=(8, 8, 8)), matrix, beyond=OUTSIDE)
    assert set(found.unique().tolist()) == {OUTSIDE, 1}
    assert found[0, 0, 0] == OUTSIDE


def test_a_slicewise_crop_keeps_its_slices_and_2d_has_no_other_axis():
    box = PatchBox(start=(-1, 2, 2), size=(4, 6, 6))
    larger, center = crop_box(box, ((1.4, 0.0), (0.0, 1.4)), (9, 20, 20))
    assert larger == PatchBox(start=(-1, 1, 1), size=(4, 8, 8))
    assert center == (3.5, 3.5)


def test_augment_fills_samples_from_their_crops():
    identity = AugmentationDraw(matrix=tuple(tuple(float(i == j) for j in range(3)) for i in range(3)))
    volume = torch.randn(2, *PATCH)
    crop = SpatialCrop(image=volume, labels=torch.full(PATCH, 3, dtype=torch.int16), center=tuple((n - 1) / 2 for n in PATCH))
    image, labels = augment(make_batch(AugmentationDraw(), identity, crops=(None, crop)), POLICY, CPU)
    torch.testing.assert_close(image[1], volume)
    assert (labels[1] == 3).all()


def test_noise_has_the_deviation_drawn():
    image = torch.zeros(1, 40, 40, 40)
    augmentation.add_noise(image, 0.07, 5)
    assert float(image.std()) == pytest.approx(0.07, rel=0.02)


@pytest.mark.parametrize(("sigma", "width"), [(0.5, 3), (0.7, 5), (1.0, 7)])
def test_blur_is_a_gaussian_filter(sigma, width):
    kernel = augmentation.gaussian_kernel(sigma)
    assert len(kernel) == width
    volume = np.random.default_rng(0).normal(size=(9, 1, 8))
    expected = volume
    for axis in range(3):
        expected = scipy.ndimage.correlate1d(expected, kernel, axis=axis, mode="mirror")
    np.testing.assert_allclose(augmentation.blur(torch.from_numpy(volume), (sigma,) * 3).numpy(), expected, atol=1e-12)


def test_contrast_keeps_the_range():
    channel = torch.randn(8, 8, 8)
    stronger, weaker = augmentation.change_contrast(channel, 1.25), augmentation.change_contrast(channel, 0.75)
    assert stronger.aminmax() == channel.aminmax()
    assert float(weaker.std() / channel.std()) == pytest.approx(0.75, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.5])
def test_gamma_keeps_mean_and_deviation_and_order(gamma):
    channel = torch.randn(10, 10, 10) * 3 + 5
    changed = augmentation.change_gamma(channel, gamma)
    assert float(changed.mean()) == pytest.approx(float(channel.mean()), rel=1e-4)
    assert float(changed.std()) == pytest.approx(float(channel.std()), rel=1e-4)
    order = channel.flatten().argsort()
    assert (changed.flatten()[order].diff() >= -1e-4).all()
    if gamma == 1:
        torch.testing.assert_close(changed, channel, rtol=1e-4, atol=1e-4)


def test_gamma_of_a_constant_channel_is_that_constant():
    assert torch.equal(augmentation.change_gamma(torch.full((3, 3), 2.0), 1.3), torch.full((3, 3), 2.0))


def test_lower_resolution_keeps_shape_range_and_where_asked_the_slices():
    channel = torch.randn(6, 8, 7)
    coarse = augmentation.lower_resolution(channel, 0.5, keep_first_axis=False)
    assert coarse.shape == channel.shape
    assert coarse.min() >= channel.min()
    assert coarse.max() <= channel.max()
    by_slice = augmentation.lower_resolution(channel, 0.5, keep_first_axis=True)
    for number in range(6):
        alone = augmentation.lower_resolution(channel[number], 0.5, keep_first_axis=False)
        torch.testing.assert_close(by_slice[number], alone)
    torch.testing.assert_close(augmentation.lower_resolution(channel, 1.0, keep_first_axis=False), channel)


def test_changes_come_in_the_order_of_the_rule():
    image = torch.randn(1, 6, 6, 6)
    draw = AugmentationDraw(brightness=(1.2,), contrast=(1.25,), gamma_inverted=(0.8,), gamma=(1.4,))
    expected = augmentation.change_contrast(image[0] * 1.2, 1.25)
    expected = augmentation.change_gamma(-augmentation.change_gamma(-expected, 0.8), 1.4)
    augmentation.change_intensities(image, draw, slicewise=False)
    torch.testing.assert_close(image[0], expected)


def test_mirroring_twice_gives_the_batch_back():
    batch = make_batch(AugmentationDraw(mirror=(0, 2)))
    once = augment(batch, POLICY, CPU)
    assert torch.equal(once[0], batch.image.flip(2, 4))
    twice = augment(replace(batch, image=once[0], labels=once[1].short()), POLICY, CPU)
    assert torch.equal(twice[0], batch.image)
    assert torch.equal(twice[1], batch.labels.long())


def test_left_and_right_change_names_only_when_left_and_right_change_sides():
    policy = augmentation_policy(PATCH, num_channels=2, mirror_axes=(1, 2), left_right_axis=2, label_pairs=((1, 3),))
    batch = make_batch(AugmentationDraw(mirror=(2,)), AugmentationDraw(mirror=(1,)))
    _, labels = augment(batch, policy, CPU)
    assert torch.equal(labels[0], torch.tensor([0, 3, 2, 1])[batch.labels[0].long()].flip(2))
    assert torch.equal(labels[1], batch.labels[1].long().flip(1))


def test_masked_channels_are_zero_outside_and_labels_end_as_background():
    policy = augmentation_policy(PATCH, num_channels=2, mirror_axes=(), masked_channels=(1,))
    batch = make_batch(AugmentationDraw(noise=(0.1, 3)))
    batch.labels[:, 0] = OUTSIDE
    image, labels = augment(batch, policy, CPU)
    assert not image[:, 1, 0].any()
    assert image[:, 0, 0].all()
    assert image[:, 1, 1:].all()
    assert labels.min() == 0
    assert not labels[:, 0].any()


def test_the_speed_of_augmentation_is_measured() -> None:
    assert 1e4 < measure_augmentation(torch.device("cpu")) < 1e10  # voxels per second of any machine
