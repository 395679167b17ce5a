"""Convolutions in 2D and 3D on the fastest kernels of the device; the numbers are torch's own.

All tensors are ``(batch, channel, n0, n1[, n2])``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

Sizes = Sequence[int]
"""One number per spatial axis."""


def convolution(
    in_channels: int, out_channels: int, kernel_size: Sizes, stride: Sizes, *, bias: bool = True, groups: int = 1, is_padded: bool = True
) -> nn.Module:
    """A 2D or 3D convolution, by the length of ``kernel_size``, padded so that stride 1 keeps the size.

    Without padding (``is_padded`` False) each axis loses ``kernel - 1`` voxels.
    """
    if all(k == 1 for k in kernel_size) and all(s == 1 for s in stride) and groups == 1:
        return {2: PointwiseConv2d, 3: PointwiseConv3d}[len(kernel_size)](in_channels, out_channels, 1, bias=bias)
    is_slicewise = len(kernel_size) == 3 and kernel_size[0] == stride[0] == 1
    kind = SlicewiseConv3d if is_slicewise else {2: nn.Conv2d, 3: nn.Conv3d}[len(kernel_size)]
    padding = tuple((k - 1) // 2 if is_padded else 0 for k in kernel_size)
    return kind(in_channels, out_channels, tuple(kernel_size), tuple(stride), padding, groups=groups, bias=bias)  # type: ignore[arg-type]


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution; on a CPU a matrix product, see :func:`_pointwise`."""

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, n0, n1)`` → ``(batch, out_channels, n0, n1)``."""
        return _pointwise(x, self.weight, self.bias) if x.device.type == "cpu" else super().forward(x)


class PointwiseConv3d(nn.Conv3d):
    """A 1x1x1 convolution; on a CPU a matrix product, see :func:`_pointwise`."""

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, n0, n1, n2)`` → ``(batch, out_channels, n0, n1, n2)``."""
        return _pointwise(x, self.weight, self.bias) if x.device.type == "cpu" else super().forward(x)


class SlicewiseConv3d(nn.Conv3d):
    """A 3D convolution whose kernel is flat along the first axis; on a CPU a 2D convolution over all slices of all samples.

    The same numbers. In the channels-last layout the slices are a view, and the 2D kernels are several times faster
    backwards than oneDNN's 3D ones, whose bf16 form also crashes for some flat shapes (torch 2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, n0, n1, n2)`` → ``(batch, out_channels, n0, …)``."""
        if x.device.type != "cpu":
            return super().forward(x)
        slices = F.conv2d(_as_slices(x), self.weight[:, :, 0], self.bias, self.stride[1:], self.padding[1:], groups=self.groups)
        return _as_volumes(slices, len(x))


class SlicewiseConvTranspose3d(nn.ConvTranspose3d):
    """A transposed 3D convolution that works within slices; on a CPU a 2D one over all of them, see :class:`SlicewiseConv3d`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(batch, in_channels, n0, n1, n2)`` → ``(batch, out_channels, n0, n1 * stride, n2 * stride)``."""
        if x.device.type != "cpu":
            return super().forward(x, output_size)
        slices = F.conv_transpose2d(_as_slices(x), self.weight[:, :, 0], self.bias, self.stride[1:])
        return _as_volumes(slices, len(x))


def _as_slices(x: Tensor) -> Tensor:
    """``(batch, channels, n0, n1, n2)`` → ``(batch * n0, channels, n1, n2)``; a view in the channels-last layout."""
    return x.movedim(1, -1).flatten(0, 1).movedim(-1, 1)


def _as_volumes(slices: Tensor, batch: int) -> Tensor:
    """The inverse of :func:`_as_slices` for ``batch`` samples."""
    return slices.movedim(1, -1).unflatten(0, (batch, -1)).movedim(-1, 1)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same numbers as a matrix product over channels, which is a view in the channels-last layout and faster there."""
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def transposed_convolution(in_channels: int, out_channels: int, stride: Sizes, *, bias: bool = True) -> nn.Module:
    """A 2D or 3D transposed convolution whose kernel is its stride: sizes are multiplied, nothing overlaps."""
    is_slicewise = len(stride) == 3 and stride[0] == 1
    kind = SlicewiseConvTranspose3d if is_slicewise else {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(stride)]
    return kind(in_channels, out_channels, tuple(stride), tuple(stride), bias=bias)  # type: ignore[arg-type]
