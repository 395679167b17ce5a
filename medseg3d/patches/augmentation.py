"""Random changes of a training batch: parameters are drawn first (numpy, per sample), then applied on the training device.

Those that only some plans have stand in :mod:`medseg3d.patches.further_augmentations`.
The list, its order, probabilities and ranges are those of nnU-Net 2.8.1's default trainer. Images are float32
``(batch, channel, n0, n1[, n2])``, labels ``(batch, n0, n1[, n2])``. Rotations are in the space of voxels, whatever their spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medseg3d.patches.further_augmentations import FurtherAugmentation
from medseg3d.patches.previous_stage import PreviousDraw, change_previous, draw_previous, one_hot
from medseg3d.patches.sampling import OUTSIDE, PatchBox

ANISOTROPY_THRESHOLD = 3
"""A 3D patch whose longest edge exceeds this many times its first is rotated and scaled slice by slice."""
LONG_PATCH_THRESHOLD = 1.5
"""A 2D patch whose edges differ by more is rotated by little only."""
P_ROTATION = P_SCALE = 0.2
SCALE_RANGE = (0.7, 1.4)
"""Factor on coordinates: above 1 the objects shrink."""
P_NOISE, NOISE_RANGE = 0.1, (0.0, 0.1)
P_BLUR, P_BLUR_CHANNEL, BLUR_RANGE = 0.2, 0.5, (0.5, 1.0)
BLUR_TRUNCATE = 6
"""Width of the blurring kernel in standard deviations, before rounding to an odd number of voxels."""
P_BRIGHTNESS, BRIGHTNESS_RANGE = 0.15, (0.75, 1.25)
P_CONTRAST, CONTRAST_RANGE = 0.15, (0.75, 1.25)
P_LOW_RESOLUTION, P_LOW_RESOLUTION_CHANNEL, LOW_RESOLUTION_RANGE = 0.25, 0.5, (0.5, 1.0)
P_GAMMA_INVERTED, P_GAMMA, GAMMA_RANGE = 0.1, 0.3, (0.7, 1.5)
P_MIRROR = 0.5
EPS = 1e-7
"""Keeps a constant channel from dividing by zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationPolicy:
    """What may be drawn for patches of one configuration; made by :func:`augmentation_policy`."""

    patch_size: tuple[int, ...]
    num_channels: int
    is_slicewise: bool
    max_angle: float
    mirror_axes: tuple[int, ...]
    masked_channels: tuple[int, ...] = ()
    left_right_axis: int | None = None
    label_pairs: tuple[tuple[int, int], ...] = ()
    further: tuple[FurtherAugmentation, ...] = ()
    previous_labels: tuple[int, ...] = ()
    """Of a cascade: the labels of the first stage that become a channel each, behind those of the image."""
    previous_pairs: tuple[tuple[int, int], ...] = ()
    """Its pairs of left and right labels."""
    soft_labels: int = 0
    """So many of the last channels that come with the image are the probabilities of soft labels."""
    reduction: float = 0.0
    """By this share changes are made less often, mirroring apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentationDraw:
    """The parameters of one sample; None, or an empty tuple, where a change is not made.

    ``matrix`` maps patch coordinates to image coordinates about the center, over all axes or the last two. Tuples over
    channels hold None for a channel that stays; ``blur`` holds one sigma (voxels) per axis; ``noise`` is (standard deviation,
    seed); ``mirror`` lists axes of the patch; ``further`` has one entry per further augmentation of the policy.
    """

    matrix: tuple[tuple[float, ...], ...] | None = None
    noise: tuple[float, int] | None = None
    blur: tuple[tuple[float, ...] | None, ...] = ()
    brightness: tuple[float, ...] = ()
    contrast: tuple[float, ...] = ()
    low_resolution: tuple[float | None, ...] = ()
    gamma_inverted: tuple[float, ...] = ()
    gamma: tuple[float, ...] = ()
    mirror: tuple[int, ...] = ()
    further: tuple[object, ...] = ()
    previous: PreviousDraw | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpatialCrop:
    """The voxels that a rotated or scaled patch is interpolated from.

    ``image`` ``(channel, …)``, ``labels`` and ``previous`` ``(…)``; ``center`` is where the middle of the patch lies, in voxels of the
    crop, for the axes that are resampled.
    """

    image: Tensor
    labels: Tensor
    center: tuple[float, ...]
    previous: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a loader yields: float32 ``image`` ``(batch, channel, …)``, int16 ``labels`` ``(batch, …)``, on the CPU.

    A sample with a ``crop`` is still empty in ``image`` and ``labels``; :func:`augment` fills it. Labels may be ``OUTSIDE``
    until then. ``previous``, like ``labels``, is the label map of a cascade's first stage; ``augmented`` what :func:`augment` gave ahead.
    """

    image: Tensor
    labels: Tensor
    names: tuple[str, ...]
    draws: tuple[AugmentationDraw, ...] = ()
    crops: tuple[SpatialCrop | None, ...] = ()
    previous: Tensor | None = None
    augmented: tuple[Tensor, Tensor] | None = None


def augmentation_policy(
    patch_size: Sequence[int],
    *,
    num_channels: int,
    mirror_axes: Sequence[int],
    masked_channels: Sequence[int] = (),
    left_right_axis: int | None = None,
    label_pairs: Sequence[tuple[int, int]] = (),
    further: Sequence[FurtherAugmentation] = (),
    previous_labels: Sequence[int] = (),
    previous_pairs: Sequence[tuple[int, int]] = (),
) -> AugmentationPolicy:
    """The policy for a patch: slice by slice where it is flat, angles by its dimensions and shape.

    ``masked_channels`` were normalized inside the non-zero region only, and stay 0 outside. Mirroring along ``left_right_axis``
    exchanges the labels of each pair, so that a mirrored left organ is called right.
    """
    is_slicewise = len(patch_size) == 3 and max(patch_size) / patch_size[0] > ANISOTROPY_THRESHOLD
    if len(patch_size) == 2:
        max_angle = math.radians(15 if max(patch_size) / min(patch_size) > LONG_PATCH_THRESHOLD else 180)
    else:
        max_angle = math.radians(180 if is_slicewise else 30)
    return AugmentationPolicy(
        patch_size=tuple(patch_size),
        num_channels=num_channels,
        is_slicewise=is_slicewise,
        max_angle=max_angle,
        mirror_axes=tuple(mirror_axes),
        masked_channels=tuple(masked_channels),
        left_right_axis=left_right_axis,
        label_pairs=tuple(label_pairs),
        further=tuple(further),
        previous_labels=tuple(previous_labels),
        previous_pairs=tuple(previous_pairs),
    )


def draw_augmentation(policy: AugmentationPolicy, rng: np.random.Generator) -> AugmentationDraw:
    """Draw the parameters of one sample."""
    channels = range(policy.num_channels)
    axes = range(len(policy.patch_size))
    draw = AugmentationDraw(
        matrix=_draw_matrix(policy, rng),
        noise=(rng.uniform(*NOISE_RANGE), int(rng.integers(2**62))) if rng.random() < P_NOISE else None,
        blur=tuple(tuple(rng.uniform(*BLUR_RANGE) for _ in axes) if rng.random() < P_BLUR_CHANNEL else None for _ in channels)
        if rng.random() < P_BLUR
        else (),
        brightness=_draw_factors(rng, P_BRIGHTNESS, BRIGHTNESS_RANGE, policy.num_channels),
        contrast=_draw_factors(rng, P_CONTRAST, CONTRAST_RANGE, policy.num_channels),
        low_resolution=tuple(rng.uniform(*LOW_RESOLUTION_RANGE) if rng.random() < P_LOW_RESOLUTION_CHANNEL else None for _ in channels)
        if rng.random() < P_LOW_RESOLUTION
        else (),
        gamma_inverted=_draw_factors(rng, P_GAMMA_INVERTED, GAMMA_RANGE, policy.num_channels),
        gamma=_draw_factors(rng, P_GAMMA, GAMMA_RANGE, policy.num_channels),
        mirror=tuple(axis for axis in policy.mirror_axes if rng.random() < P_MIRROR),
        further=tuple(each.augmentation.draw(rng, each.options) for each in policy.further),
        previous=draw_previous(len(policy.previous_labels), rng) if policy.previous_labels else None,
    )
    return _reduced(draw, policy.reduction, rng) if policy.reduction else draw


REDUCED = ("matrix", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma_inverted", "gamma")
"""What is made less often. Mirroring costs nothing and is what prediction does as well; a cascade must always learn to doubt its first
stage."""


def _reduced(draw: AugmentationDraw, share: float, rng: np.random.Generator) -> AugmentationDraw:
    """Without each of the changes with the probability ``share``, drawn last: all else is as it would be without."""
    unchanged = AugmentationDraw()
    return replace(draw, **{name: getattr(unchanged, name) for name in REDUCED if rng.random() < share})


def _draw_factors(rng: np.random.Generator, probability: float, bounds: tuple[float, float], count: int) -> tuple[float, ...]:
    """With ``probability`` one factor per channel: half of them below 1, half above, uniform on either side."""
    if rng.random() >= probability:
        return ()
    low, high = bounds
    return tuple(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high) for _ in range(count))


def _draw_matrix(policy: AugmentationPolicy, rng: np.random.Generator) -> tuple[tuple[float, ...], ...] | None:
    has_rotation, has_scale = rng.random() < P_ROTATION, rng.random() < P_SCALE
    if not (has_rotation or has_scale):
        return None
    in_plane = len(policy.patch_size) == 2 or policy.is_slicewise
    angles = rng.uniform(-policy.max_angle, policy.max_angle, 1 if in_plane else 3) if has_rotation else np.zeros(1)
    scale = rng.uniform(*SCALE_RANGE) if has_scale else 1.0
    matrix = np.eye(2 if in_plane else 3)
    for axis, angle in enumerate(angles):
        matrix = _rotation(float(angle), axis, len(matrix)) @ matrix
    return tuple(tuple(float(v) for v in row) for row in matrix * scale)


def _rotation(angle: float, axis: int, dimensions: int) -> np.ndarray:
    """A rotation about one axis of space, or in the plane."""
    matrix = np.eye(dimensions)
    first, second = (0, 1) if dimensions == 2 else [a for a in range(3) if a != axis]
    matrix[[first, second], [first, second]] = math.cos(angle)
    matrix[first, second], matrix[second, first] = -math.sin(angle), math.sin(angle)
    return matrix


def crop_box(box: PatchBox, matrix: Sequence[Sequence[float]], shape: Sequence[int] | None) -> tuple[PatchBox, tuple[float, ...]]:
    """The part of a volume of ``shape`` that a transformed patch touches, and the patch's center in voxels of that part.

    ``box`` is where the patch would lie untransformed. Axes before the matrix's are left as they are; along the others the
    part ends at the volume's border, beyond which interpolation finds zeros; nowhere where ``shape`` is None.
    """
    lead = len(box.size) - len(matrix)
    start, size, center = list(box.start[:lead]), list(box.size[:lead]), []
    for axis, row in enumerate(matrix):
        half = sum(abs(weight) * (edge - 1) / 2 for weight, edge in zip(row, box.size[lead:], strict=True))
        middle = box.start[lead + axis] + (box.size[lead + axis] - 1) / 2
        first, last = math.floor(middle - half), math.ceil(middle + half)
        if shape is not None:
            first = min(max(first, 0), shape[lead + axis] - 1)
            last = min(max(last, first), shape[lead + axis] - 1)
        start.append(first)
        size.append(last - first + 1)
        center.append(middle - first)
    return PatchBox(start=tuple(start), size=tuple(size)), tuple(center)


def augment(batch: Batch, policy: AugmentationPolicy, device: torch.device) -> tuple[Tensor, Tensor]:
    """Apply a batch's draws on a device: float32 image ``(batch, channel, …)`` and int64 labels ``(batch, …)`` ready for a loss.

    The same batch gives the same result on the same kind of device; noise differs between kinds. The label map of a cascade's first
    stage moves with the image and comes as further channels of it, whose values nothing else changes. With soft labels, the last channels
    of the batch's image are their probabilities, and float32 probabilities ``(batch, class, …)`` come in the place of labels.
    """
    if batch.augmented is not None:
        return batch.augmented
    image = batch.image.to(device, non_blocking=True, copy=True)
    num_images = image.shape[1] - policy.soft_labels
    labels = batch.labels.to(device, non_blocking=True, copy=True)
    previous = None if batch.previous is None else batch.previous.to(device, non_blocking=True, copy=True)
    beyond = OUTSIDE if policy.masked_channels else 0
    for sample, draw in enumerate(batch.draws):
        crop = batch.crops[sample] if batch.crops else None
        if crop is not None and draw.matrix is not None:
            image[sample], labels[sample] = resample_crop(crop, draw.matrix, policy.patch_size, device=device, beyond=beyond)
            if previous is not None and crop.previous is not None:
                first = replace(crop, labels=crop.previous)
                previous[sample] = resample_labels(first, draw.matrix, policy.patch_size, device=device, beyond=0)
        change_intensities(image[sample, :num_images], draw, slicewise=policy.is_slicewise)
        if draw.mirror:
            image[sample] = image[sample].flip([1 + axis for axis in draw.mirror])
            labels[sample] = mirror_labels(labels[sample], draw.mirror, policy)
            if policy.soft_labels and policy.left_right_axis in draw.mirror:
                exchange_sides(image[sample, num_images:], policy.label_pairs)
            if previous is not None:
                previous[sample] = mirror_labels(previous[sample], draw.mirror, replace(policy, label_pairs=policy.previous_pairs))
        for each, drawn in zip(policy.further, draw.further, strict=False):
            if drawn is not None:
                if previous is not None:  # where it moves voxels, those of the first stage move along
                    _, previous[sample] = each.augmentation.apply(image[sample].clone(), previous[sample], drawn)
                image[sample], labels[sample] = each.augmentation.apply(image[sample], labels[sample], drawn)
    if policy.masked_channels:
        outside = labels < 0
        for channel in policy.masked_channels:
            image[:, channel].masked_fill_(outside, 0)
    target = labels.clamp_(min=0).long()
    if policy.soft_labels:
        soft, image = image[:, num_images:], image[:, :num_images].contiguous()
        target = torch.cat(((1 - soft.sum(1, keepdim=True)).clamp_min(0), soft), 1)
    if previous is not None:
        image = torch.cat((image, _previous_channels(previous, batch.draws, policy)), 1)
    return image, target


def exchange_sides(soft: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
    """Exchange, in place, the probabilities ``(label, …)`` of each pair of label indices; there is no background among them."""
    for left, right in pairs:
        soft[[left - 1, right - 1]] = soft[[right - 1, left - 1]]


def _previous_channels(previous: Tensor, draws: Sequence[AugmentationDraw], policy: AugmentationPolicy) -> Tensor:
    channels = one_hot(previous, policy.previous_labels)
    for sample, draw in zip(channels, draws, strict=False):
        if draw.previous is not None:
            change_previous(sample, draw.previous)
    return channels


def change_intensities(image: Tensor, draw: AugmentationDraw, *, slicewise: bool) -> None:
    """Everything that leaves voxels where they are, in order, in place on one sample ``(channel, …)``."""
    if draw.noise is not None:
        add_noise(image, *draw.noise)
    for channel, sigmas in zip(image, draw.blur, strict=False):
        if sigmas is not None:
            channel.copy_(blur(channel, sigmas))
    for channel, factor in zip(image, draw.brightness, strict=False):
        channel.mul_(factor)
    for channel, factor in zip(image, draw.contrast, strict=False):
        channel.copy_(change_contrast(channel, factor))
    for channel, scale in zip(image, draw.low_resolution, strict=False):
        if scale is not None:
            channel.copy_(lower_resolution(channel, scale, keep_first_axis=slicewise))
    for channel, gamma in zip(image, draw.gamma_inverted, strict=False):
        channel.copy_(-change_gamma(-channel, gamma))
    for channel, gamma in zip(image, draw.gamma, strict=False):
        channel.copy_(change_gamma(channel, gamma))


def resample_crop(
    crop: SpatialCrop,
    matrix: Sequence[Sequence[float]],
    patch_size: Sequence[int],
    *,
    device: torch.device,
    beyond: int,
) -> tuple[Tensor, Tensor]:
    """Interpolate a patch from a crop: image linearly, zero beyond; labels by the largest linear weight, ``beyond`` beyond.

    The label of a voxel is the one whose one-hot map, interpolated linearly, is largest there, which is what nnU-Net
    computes. Only voxels whose neighbors disagree need the vote, so the cost does not grow with the number of labels.
    """
    image, position = crop.image.to(device, non_blocking=True), _positions(crop, matrix, patch_size, device)
    sizes = image.shape[-len(matrix) :]
    edges = torch.tensor(sizes, device=device, dtype=torch.float32)
    grid = ((2 * position + 1) / edges - 1).flip(-1)
    resampled = F.grid_sample(image.reshape(1, -1, *sizes), grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
    labels = resample_labels(crop, matrix, patch_size, device=device, beyond=beyond)
    return resampled.reshape(image.shape[0], *patch_size), labels


def resample_labels(
    crop: SpatialCrop, matrix: Sequence[Sequence[float]], patch_size: Sequence[int], *, device: torch.device, beyond: int
) -> Tensor:
    """The labels of :func:`resample_crop`."""
    labels, position = crop.labels.to(device, non_blocking=True), _positions(crop, matrix, patch_size, device)
    sizes = labels.shape[-len(matrix) :]
    return _vote(labels.reshape(-1, *sizes), position.reshape(-1, len(matrix)), beyond).reshape(tuple(patch_size))


def _positions(crop: SpatialCrop, matrix: Sequence[Sequence[float]], patch_size: Sequence[int], device: torch.device) -> Tensor:
    """Where each voxel of the patch lies in the crop, ``(n0, …, axis)``."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) - (n - 1) / 2 for n in tuple(patch_size)[-len(matrix) :]]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    turn = torch.tensor(matrix, device=device, dtype=torch.float32)
    return offsets @ turn.T + torch.tensor(crop.center, device=device, dtype=torch.float32)


def _vote(labels: Tensor, position: Tensor, beyond: int) -> Tensor:
    """Labels ``(slices, …)`` at positions ``(points, axes)`` → ``(slices, points)``, by linear weight."""
    dimensions = position.shape[1]
    # one voxel before and two after hold every neighbor of a position that is clamped to [-1, size]
    padded = F.pad(labels, (1, 2) * dimensions, value=beyond)
    flat = padded.reshape(labels.shape[0], -1)
    position = torch.minimum(position.clamp(min=-1), torch.tensor(labels.shape[1:], device=labels.device)) + 1
    low = position.floor()
    strides = torch.tensor([math.prod(padded.shape[2 + axis :]) for axis in range(dimensions)], device=labels.device)
    base = (low.long() * strides).sum(1)
    corners = torch.tensor(list(product((0, 1), repeat=dimensions)), device=labels.device)
    neighbors = [flat.index_select(1, base + step) for step in (corners * strides).sum(1)]
    result = neighbors[0].clone()
    disagree = torch.stack([found != result for found in neighbors[1:]]).any(0).nonzero(as_tuple=True)
    candidates = torch.stack([found[disagree] for found in neighbors])
    share = (position - low)[disagree[1]]
    weights = torch.stack([torch.where(corner.bool(), share, 1 - share).prod(1) for corner in corners])
    scores = torch.stack([(weights * (candidates == candidate)).sum(0) for candidate in candidates])
    result[disagree] = candidates.gather(0, scores.argmax(0, keepdim=True))[0]
    return result


def add_noise(image: Tensor, deviation: float, seed: int) -> None:
    """Add Gaussian noise in place, the same for the same seed and kind of device."""
    source = torch.Generator(image.device).manual_seed(seed)
    image.add_(torch.randn(image.shape, generator=source, device=image.device), alpha=deviation)


def blur(channel: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Blur each axis with its own Gaussian (sigma in voxels), reflecting at the borders."""
    for axis, sigma in enumerate(sigmas):
        kernel = gaussian_kernel(sigma)
        size, radius = channel.shape[axis], len(kernel) // 2
        padded = channel.index_select(axis, _reflected(size, radius, channel.device))
        channel = sum(padded.narrow(axis, place, size) * weight for place, weight in enumerate(kernel))  # type: ignore[assignment]
    return channel


def gaussian_kernel(sigma: float) -> list[float]:
    """Weights with the sum 1 over the odd number of voxels nearest to ``BLUR_TRUNCATE * sigma + 0.5``."""
    radius = max(0, math.floor((BLUR_TRUNCATE * sigma + 0.5) / 2))
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    return [weight / sum(weights) for weight in weights]


def _reflected(size: int, radius: int, device: torch.device) -> Tensor:
    """Indices of an axis with ``radius`` more on either side, reflected as often as needed, edge voxels not repeated."""
    index = torch.arange(-radius, size + radius, device=device)
    if size == 1:
        return index.zero_()
    index = index.remainder(2 * (size - 1))
    return torch.where(index < size, index, 2 * (size - 1) - index)


def change_contrast(channel: Tensor, factor: float) -> Tensor:
    """Stretch the values about their mean, clipped to the range that they had."""
    mean = channel.mean()
    return ((channel - mean) * factor + mean).clamp_(*channel.aminmax())


def lower_resolution(channel: Tensor, scale: float, *, keep_first_axis: bool) -> Tensor:
    """Take every 1/scale-th voxel, then interpolate linearly back: what a coarser scan of the same would show."""
    shape = list(channel.shape)
    small = [max(1, round(n * scale)) for n in shape]
    if keep_first_axis:
        small[0] = shape[0]
    coarse = F.interpolate(channel[None, None], small, mode="nearest-exact")
    return F.interpolate(coarse, shape, mode="bilinear" if len(shape) == 2 else "trilinear")[0, 0]


def change_gamma(channel: Tensor, gamma: float) -> Tensor:
    """Raise the values, scaled to [0, 1], to a power; mean and standard deviation stay as they were."""
    low, high = channel.aminmax()
    extent = high - low
    changed = ((channel - low) / extent.clamp(min=EPS)).pow_(gamma).mul_(extent).add_(low)
    return (changed - changed.mean()).mul_(channel.std() / changed.std().clamp(min=EPS)).add_(channel.mean())


def mirror_labels(labels: Tensor, axes: Sequence[int], policy: AugmentationPolicy) -> Tensor:
    """Labels ``(…)`` mirrored along spatial axes; along the left-right axis the labels of each pair change places."""
    flipped = labels.flip(list(axes))
    if policy.left_right_axis in axes and policy.label_pairs:
        mirrored = flipped.clone()
        for left, right in policy.label_pairs:
            mirrored[flipped == left] = right
            mirrored[flipped == right] = left
        return mirrored
    return flipped
