"""Convolutions in 2D and 3D on the fastest kernels of the device; the numbers are torch's own.

All tensors are ``(batch, channel, n0, n1[, n2])``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from medseg3d.networks.winograd import convolve_in_tiles, scheme_for

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
    is_depthwise = len(kernel_size) == 3 and groups == in_channels == out_channels > 1 and is_padded
    kind = SlicewiseConv3d if is_slicewise else DepthwiseConv3d if is_depthwise else {2: PlaneConv2d, 3: VolumeConv3d}[len(kernel_size)]
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


class PlaneConv2d(nn.Conv2d):
    """A 2D convolution that half precision gets right on every CPU, see :func:`convolve`."""

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, n0, n1)`` → ``(batch, out_channels, n0 / stride, …)``."""
        return convolve(x, self.weight, self.bias, self.stride, _numbers(self.padding), self.dilation, self.groups)


class VolumeConv3d(nn.Conv3d):
    """A 3D convolution that half precision gets right on every CPU, see :func:`convolve`.

    A float32 training on a CPU takes fewer products, see :mod:`medseg3d.networks.winograd`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, n0, n1, n2)`` → ``(batch, out_channels, n0 / stride, …)``."""
        padding = _numbers(self.padding)
        scheme = scheme_for(x, self.weight, self.stride, padding, self.dilation, self.groups)
        if scheme is not None:
            return convolve_in_tiles(x, self.weight, self.bias, scheme)
        return convolve(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class SlicewiseConv3d(nn.Conv3d):
    """A 3D convolution whose kernel is flat along the first axis; on a CPU a 2D convolution over all slices of all samples.

    The same numbers. In the channels-last layout the slices are a view, and the 2D kernels are several times faster
    backwards than oneDNN's 3D ones, whose bf16 form also crashes for some flat shapes (torch 2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, n0, n1, n2)`` → ``(batch, out_channels, n0, …)``."""
        if x.device.type != "cpu":
            return super().forward(x)
        padding = _numbers(self.padding)[1:]
        slices = convolve(as_slices(x), self.weight[:, :, 0], self.bias, self.stride[1:], padding, self.dilation[1:], self.groups)
        return as_volumes(slices, len(x))


class DepthwiseConv3d(nn.Conv3d):
    """A padded 3D convolution of each channel by itself; on a CPU with a backward pass of its own, several times faster than torch's.

    The same numbers. torch 2.13 computes the gradients of a depthwise 3D convolution many times slower than its outputs, and
    slower in bf16 than in float32. Here the gradient of the input is a depthwise convolution again, and that of the weights is
    taken plane by plane from 2D convolutions, both of which have fast kernels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, n0, n1, n2)`` → ``(batch, channels, n0 / stride, …)``."""
        is_dilated = any(d != 1 for d in self.dilation)
        if x.device.type != "cpu" or is_dilated or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return convolve(x, self.weight, self.bias, self.stride, _numbers(self.padding), self.dilation, self.groups)
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        convolved: Tensor = _Depthwise3d.apply(x.contiguous(memory_format=torch.channels_last_3d), weight, bias, self.stride)
        return convolved


class _Depthwise3d(torch.autograd.Function):
    """Depthwise convolution with odd kernels and half of them as padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.has_bias = stride, bias is not None
        return convolve(x, weight, bias, stride, _half(weight), groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_bias = gradient.sum((0, 2, 3, 4)) if ctx.has_bias else None
        gradient = _spread(gradient, ctx.stride, x.shape[2:]).contiguous(memory_format=torch.channels_last_3d)
        flipped = weight.flip(2, 3, 4)
        of_input = convolve(gradient, flipped, None, (1, 1, 1), _half(weight), groups=x.shape[1]) if ctx.needs_input_grad[0] else None
        return of_input, _gradient_of_weight(x, gradient, weight), of_bias, None


def _half(weight: Tensor) -> tuple[int, ...]:
    return tuple(k // 2 for k in weight.shape[2:])


def _spread(gradient: Tensor, stride: Sequence[int], size: Sequence[int]) -> Tensor:
    """The gradient of a strided convolution as that of one without stride: zeros between its voxels."""
    if all(s == 1 for s in stride):
        return gradient
    spread = gradient.new_zeros((*gradient.shape[:2], *size))
    first, second, third = stride
    spread[:, :, ::first, ::second, ::third] = gradient
    return spread


def _gradient_of_weight(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """Plane by plane of the kernel: slices of the input against the slices of the gradient that this plane carries them to."""
    depth, planes = x.shape[2], weight.shape[2]
    slices, wanted = x.movedim(1, -1), gradient.movedim(1, -1)
    found = []
    for plane in range(planes):
        shift = plane - planes // 2
        if abs(shift) >= depth:
            found.append(torch.zeros_like(weight[:, :, plane]))
            continue
        image = slices[:, max(0, shift) : depth + min(0, shift)].flatten(0, 1).movedim(-1, 1)
        target = wanted[:, max(0, -shift) : depth + min(0, -shift)].flatten(0, 1).movedim(-1, 1)
        found.append(conv2d_weight(image, weight[:, :, plane].shape, target, padding=_half(weight)[1:], groups=x.shape[1]))
    return torch.stack(found, 2)


class SlicewiseConvTranspose3d(nn.ConvTranspose3d):
    """A transposed 3D convolution that works within slices; on a CPU a 2D one over all of them, see :class:`SlicewiseConv3d`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(batch, in_channels, n0, n1, n2)`` → ``(batch, out_channels, n0, n1 * stride, n2 * stride)``."""
        if x.device.type != "cpu":
            return super().forward(x, output_size)
        slices = F.conv_transpose2d(as_slices(x), self.weight[:, :, 0], self.bias, self.stride[1:])
        return as_volumes(slices, len(x))


class VolumeConvTranspose3d(nn.ConvTranspose3d):
    """A transposed 3D convolution; on a CPU in half precision a 2D one where the image is a single slice, as in :class:`VolumeConv3d`."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(batch, in_channels, n0, n1, n2)`` → ``(batch, out_channels, n0 * stride, …)``."""
        axis = lone_axis(x, self.weight)
        if axis is None:
            return super().forward(x, output_size)
        planes = self.weight.movedim(axis, 2).flatten(1, 2)  # the kernel's slices, which do not overlap, as channels
        bias = None if self.bias is None else self.bias.repeat_interleave(self.kernel_size[axis - 2])
        out = F.conv_transpose2d(x.squeeze(axis), planes, bias, _without(self.stride, axis - 2))
        return out.unflatten(1, (self.out_channels, -1)).movedim(2, axis)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, padding: Sizes, dilation: Sizes | None = None, groups: int = 1
) -> Tensor:
    """A 2D or 3D convolution ``(batch, in_channels, …)`` → ``(batch, out_channels, …)`` that half precision gets right on every CPU.

    Where an axis is shorter than the kernel, oneDNN's bf16 kernels (torch 2.13) read memory that was never written, with errors of 1 to
    1e38: of a single slice in 3D for AMX, where the number of channels is odd; in the gradient of the weights for every CPU, where the
    first of three axes is shorter than the kernel, or the last has one voxel and a stride. There an equal convolution is computed: of one
    voxel with the part of the kernel that does not lie on padding, in 3D as a 2D one; of few with the padding written out. float32 keeps
    its bits, but for images of a single channel in training, see :func:`_is_foldable`.
    """
    dilation = dilation or (1,) * len(stride)
    if x.device.type == "cpu" and _is_half_precision(x):
        x, weight, stride, padding = _met_by_single_voxels(x, weight, stride, padding, dilation)
        if weight.ndim == 5 and (flat := next((axis for axis in (2, 3, 4) if x.shape[axis] == weight.shape[axis] == 1), None)) is not None:
            within = [_without(sizes, flat - 2) for sizes in (stride, padding, dilation)]
            convolved = convolve(x.squeeze(flat), weight.squeeze(flat), bias, within[0], within[1], within[2], groups)
            return convolved.unsqueeze(flat)
        if weight.ndim == 5 and torch.is_grad_enabled():
            is_short = [n < d * (k - 1) + 1 for n, k, d in zip(x.shape[2:], weight.shape[2:], dilation, strict=True)]
            x, padding = _padded(x, padding, is_short)
    kernel = F.conv2d if weight.ndim == 4 else F.conv3d
    if is_folded := _is_foldable(x, weight, stride, padding, dilation):
        x, weight, bias = _folded(x), _folded_kernel(weight), None if bias is None else bias.repeat(2)
    convolved = kernel(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)
    return _unfolded(convolved) if is_folded else convolved


LEAST_FOLDED = 8
"""Voxels along the last axis: half of them are still more than the kernel."""


def _is_foldable(x: Tensor, weight: Tensor, stride: Sizes, padding: Sizes, dilation: Sizes) -> bool:
    """Whether two neighbors along the last axis count as two channels of one voxel: the same sums, in a part of the time.

    oneDNN (torch 2.13) is slow with images of a single channel, most of all backwards: folded, the first convolution of a network takes a
    quarter to three quarters of its time in 3D, a seventh to a quarter in 2D. In training alone: predictions keep their bits. What is
    compiled or exported stays as it is written.
    """
    if x.device.type != "cpu" or type(x) is not Tensor or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    is_plain = x.shape[1] == 1 and {*stride, *dilation} == {1} and weight.shape[-1] == 3 and padding[-1] == 1
    return is_plain and x.shape[-1] % 2 == 0 and x.shape[-1] >= LEAST_FOLDED


def _folded(x: Tensor) -> Tensor:
    """``(batch, 1, …, n)`` → ``(batch, 2, …, n / 2)``, channels last; a view."""
    return x[:, 0].unflatten(-1, (-1, 2)).movedim(-1, 1)


def _folded_kernel(weight: Tensor) -> Tensor:
    """``(channels, 1, …, 3)`` → ``(2 * channels, 2, …, 3)``: of the outputs at even places, then of those at odd ones."""
    left, middle, right = weight.unbind(-1)
    zero = torch.zeros_like(middle)
    even = (zero, middle, zero), (left, right, zero)
    odd = (zero, left, right), (zero, middle, zero)
    return torch.cat([torch.cat([torch.stack(taps, -1) for taps in of_channels], 1) for of_channels in (even, odd)])


def _unfolded(x: Tensor) -> Tensor:
    """``(batch, 2 * channels, …, n / 2)`` → ``(batch, channels, …, n)``; a view of the channels-last layout."""
    return x.movedim(1, -1).unflatten(-1, (2, -1)).flatten(-3, -2).movedim(-1, 1)


def _met_by_single_voxels(
    x: Tensor, weight: Tensor, stride: Sizes, padding: Sizes, dilation: Sizes
) -> tuple[Tensor, Tensor, tuple[int, ...], tuple[int, ...]]:
    """An equal convolution whose kernel has one voxel along the axes along which the image has one: the one that meets it.

    Where the result has more than one voxel there, or the kernel meets the image nowhere, the padding is written out instead.
    """
    strides, paddings, is_written_out = list(stride), list(padding), [False] * len(stride)
    for axis, (pad, step) in enumerate(zip(padding, dilation, strict=True)):
        extent = weight.shape[axis + 2]
        if x.shape[axis + 2] > 1 or extent == 1:
            continue
        place, rest = divmod(pad, step)
        if rest or place >= extent or not 0 <= 2 * pad - step * (extent - 1) < stride[axis]:
            is_written_out[axis] = True
        else:
            weight = weight.narrow(axis + 2, place, 1)
            strides[axis], paddings[axis] = 1, 0
    x, written = _padded(x, paddings, is_written_out)
    return x, weight, tuple(strides), written


def _padded(x: Tensor, padding: Sizes, is_written_out: Sequence[bool]) -> tuple[Tensor, tuple[int, ...]]:
    """The image with the padding of some axes written out, and the padding that is left."""
    if not any(is_written_out):
        return x, tuple(padding)
    widths = [n if is_out else 0 for n, is_out in zip(padding, is_written_out, strict=True)]
    left = tuple(0 if is_out else n for n, is_out in zip(padding, is_written_out, strict=True))
    return F.pad(x, [n for width in reversed(widths) for n in (width, width)]), left


def lone_axis(x: Tensor, weight: Tensor) -> int | None:
    """The first axis of ``(batch, channel, n0, n1, n2)`` along which the image has one voxel and the kernel more.

    None in float32 and on other devices than a CPU.
    """
    if x.device.type != "cpu" or not _is_half_precision(x):
        return None
    return next((axis for axis in (2, 3, 4) if x.shape[axis] == 1 and weight.shape[axis] > 1), None)


def _is_half_precision(x: Tensor) -> bool:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") and x.dtype == torch.float32 else x.dtype
    return dtype in (torch.bfloat16, torch.float16)


def _without(sizes: Sizes, axis: int) -> tuple[int, ...]:
    return tuple(n for a, n in enumerate(sizes) if a != axis)


def _numbers(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    """The padding of a convolution that was made with numbers."""
    if isinstance(padding, str):
        raise TypeError(f"padding is expected in numbers here, found {padding!r}")
    return padding


def as_slices(x: Tensor) -> Tensor:
    """``(batch, channels, n0, n1, n2)`` → ``(batch * n0, channels, n1, n2)``; a view in the channels-last layout."""
    return x.movedim(1, -1).flatten(0, 1).movedim(-1, 1)


def as_volumes(slices: Tensor, batch: int) -> Tensor:
    """The inverse of :func:`as_slices` for ``batch`` samples."""
    return slices.movedim(1, -1).unflatten(0, (batch, -1)).movedim(-1, 1)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same numbers as a matrix product over channels, which is a view in the channels-last layout and faster there.

    A single product of two matrices: left to itself, torch takes another kernel, with other last digits, where the weights ask for
    gradients, and so for a network that was loaded than for its copy.
    """
    voxels = x.movedim(1, -1)
    product = F.linear(voxels.reshape(-1, x.shape[1]), weight.flatten(1), bias)
    return product.view(*voxels.shape[:-1], -1).movedim(-1, 1)


def transposed_convolution(in_channels: int, out_channels: int, stride: Sizes, *, bias: bool = True) -> nn.Module:
    """A 2D or 3D transposed convolution whose kernel is its stride: sizes are multiplied, nothing overlaps."""
    is_slicewise = len(stride) == 3 and stride[0] == 1
    kind = SlicewiseConvTranspose3d if is_slicewise else {2: nn.ConvTranspose2d, 3: VolumeConvTranspose3d}[len(stride)]
    return kind(in_channels, out_channels, tuple(stride), tuple(stride), bias=bias)  # type: ignore[arg-type]
