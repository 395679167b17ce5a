"""Sizes down and up without learned weights, with a factor per axis: pooling, interpolation, and interpolation as a transposed convolution,
fixed or as the beginning of a learned one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pooled(x: Tensor, stride: Sequence[int], *, is_whole: bool = True) -> Tensor:
    """The maxima of windows that are as large as the stride; unless ``is_whole`` also of an incomplete window at the end."""
    pool = F.max_pool2d if len(stride) == 2 else F.max_pool3d
    return pool(x, tuple(stride), ceil_mode=not is_whole)


def overlapping_pooled(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The maxima of windows of 3 where the stride is 2, as in ResNet; in general of ``2 stride - 1``."""
    kernel = tuple(2 * s - 1 for s in stride)
    pool = F.max_pool2d if len(kernel) == 2 else F.max_pool3d
    return pool(x, kernel, tuple(stride), tuple((k - 1) // 2 for k in kernel))


def widely_pooled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Means of overlapping windows of ``2 s + 1`` voxels at every ``s``-th, so that the result has a coarser ``size`` (MSFNet's pooling).

    What lies beyond the border does not count.
    """
    windows = []
    for length, wanted in zip(x.shape[2:], size, strict=True):
        reach = -(-int(length) // wanted) if wanted < length else 0
        centers = (place * int(length) // wanted for place in range(wanted))
        windows.append([(max(0, center - reach), min(int(length), center + reach + 1)) for center in centers])
    return window_means(x, windows)


def window_means(x: Tensor, windows: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    """Means over a grid of windows, each axis with its own first and end voxels: a small matrix per axis, which ONNX can express."""
    for axis, ranges in enumerate(windows, start=2):
        share = torch.zeros(int(x.shape[axis]), len(ranges), dtype=x.dtype, device=x.device)
        for cell, (first, end) in enumerate(ranges):
            share[first:end, cell] = 1 / (end - first)
        x = (x.movedim(axis, -1) @ share).movedim(-1, axis)
    return x


def resized(x: Tensor, size: Iterable[int]) -> Tensor:
    """Linear interpolation to a size; the same tensor where it has it."""
    size = tuple(size)
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size, mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False)


def kernel_of(factor: int) -> Tensor:
    """The weights of an interpolation by a whole factor along an axis; its stride is the factor, its padding ``(len - factor) / 2``.

    >>> kernel_of(2).tolist(), kernel_of(3).tolist()[:2]
    ([0.25, 0.75, 0.75, 0.25], [0.3333333432674408, 0.6666666865348816])
    """
    length = 2 * factor - factor % 2
    middle = (length - 1) / 2
    return 1 - (torch.arange(length, dtype=torch.float32) - middle).abs() / factor


def upsampled(x: Tensor, factors: Sequence[int]) -> Tensor:
    """``(batch, channel, …)`` with ``factors`` as many voxels along each axis: a transposed convolution with fixed weights."""
    for axis, factor in enumerate(factors, start=2):
        if factor == 1:
            continue
        kernel = kernel_of(factor).to(x)
        lines = x.movedim(axis, -1)
        flat = lines.reshape(-1, 1, lines.shape[-1])
        wide = F.conv_transpose1d(flat, kernel.view(1, 1, -1), stride=factor, padding=(len(kernel) - factor) // 2)
        x = wide.view(*lines.shape[:-1], -1).movedim(-1, axis)
    return x


def bilinear_up(channels: int, factors: Sequence[int]) -> nn.Module:
    """A transposed convolution of each channel by itself, to be filled by :func:`fill` and then learned."""
    if all(factor == 1 for factor in factors):
        return nn.Identity()
    lengths = [2 * factor - factor % 2 for factor in factors]
    padding = [(length - factor) // 2 for length, factor in zip(lengths, factors, strict=True)]
    kind = nn.ConvTranspose2d if len(factors) == 2 else nn.ConvTranspose3d
    return kind(channels, channels, tuple(lengths), tuple(factors), tuple(padding), groups=channels, bias=False)  # type: ignore[arg-type]


def fill(module: nn.ConvTranspose2d | nn.ConvTranspose3d) -> None:
    """Let a transposed convolution begin as an interpolation."""
    weights = torch.ones(())
    for factor in module.stride:
        weights = weights[..., None] * kernel_of(factor)
    with torch.no_grad():
        module.weight.copy_(weights.expand_as(module.weight))
