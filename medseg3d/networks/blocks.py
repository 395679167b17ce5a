"""The parts that U-Nets are made of, in 2D and 3D: normalization, convolution blocks, the decoder, and how weights begin.

All tensors are ``(batch, channel, n0, n1[, n2])``. The arithmetic is that of nnU-Net 2.8.1's networks: convolution with bias,
instance norm (eps 1e-5, affine), leaky ReLU with slope 0.01, He initialization.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.01
"""Of the leaky ReLU and of the He initialization that belongs to it."""
NORM_EPS = 1e-5
"""Added to the variance (nnU-Net's value, torch's default)."""

Sizes = Sequence[int]
"""One number per spatial axis."""


class InstanceNorm(nn.Module):
    """Instance norm with learned scale and offset, in any number of dimensions and on the fastest kernel of the device.

    On a CPU it brings the activations into the channels-last layout, in which convolutions are up to three times faster, and
    runs as one batch norm per sample: the same numbers as torch's instance norm, several times faster in that layout. A
    single spatial element has no statistics; it is only scaled and shifted, where torch raises an error.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each channel of each sample over its spatial axes."""
        if x.shape[2:].numel() == 1:
            ones = (1,) * (x.ndim - 2)
            return torch.addcmul(self.bias.view(1, -1, *ones).to(x.dtype), x, self.weight.view(1, -1, *ones).to(x.dtype))
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=NORM_EPS)
        samples = x.contiguous(memory_format=channels_last(x)).split(1)
        normalized = [F.batch_norm(s, None, None, self.weight, self.bias, training=True, eps=NORM_EPS) for s in samples]
        return normalized[0] if len(normalized) == 1 else torch.cat(normalized)

    def extra_repr(self) -> str:
        """The number of channels."""
        return str(self.channels)


class ConvBlock(nn.Module):
    """Convolution, instance norm and, unless ``activation`` is False, leaky ReLU; odd kernels keep the size at stride 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        *,
        bias: bool = True,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv = convolution(in_channels, out_channels, kernel_size, stride, bias=bias)
        self.norm = InstanceNorm(out_channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, …)`` → ``(batch, out_channels, … / stride)``."""
        x = self.norm(self.conv(x))
        # in place: the norm keeps its input for the backward pass, not its output
        return F.leaky_relu_(x, NEGATIVE_SLOPE) if self.activation else x


class ConvStack(nn.Sequential):
    """Several :class:`ConvBlock` in a row; the first one changes the channels and carries the stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sizes, stride: Sizes, num_blocks: int) -> None:
        unit = (1,) * len(kernel_size)
        super().__init__(
            *(ConvBlock(out_channels if i else in_channels, out_channels, kernel_size, unit if i else stride) for i in range(num_blocks))
        )


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip, as in ResNet-D: the skip pools by averaging, then projects only if channels change."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sizes, stride: Sizes) -> None:
        super().__init__()
        unit = (1,) * len(kernel_size)
        self.stride = tuple(stride)
        self.first = ConvBlock(in_channels, out_channels, kernel_size, stride)
        self.second = ConvBlock(out_channels, out_channels, kernel_size, unit, activation=False)
        self.projection = (
            ConvBlock(in_channels, out_channels, unit, unit, bias=False, activation=False) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, …)`` → ``(batch, out_channels, … / stride)``."""
        skip = x
        if any(s != 1 for s in self.stride):
            skip = F.avg_pool2d(skip, self.stride) if len(self.stride) == 2 else F.avg_pool3d(skip, self.stride)
        if self.projection is not None:
            skip = self.projection(skip)
        return F.leaky_relu_(self.second(self.first(x)).add_(skip), NEGATIVE_SLOPE)


class ResidualStack(nn.Sequential):
    """Several :class:`ResidualBlock` in a row; the first one changes the channels and carries the stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sizes, stride: Sizes, num_blocks: int) -> None:
        unit = (1,) * len(kernel_size)
        super().__init__(
            *(
                ResidualBlock(out_channels if i else in_channels, out_channels, kernel_size, unit if i else stride)
                for i in range(num_blocks)
            )
        )


class Decoder(nn.Module):
    """From the deepest features back to the finest: transposed convolution, the skip beside it, convolutions, a head per stage.

    All arguments list the stages finest first, as the plan does, except ``num_blocks``, which runs coarse to fine. A stage
    convolves with the kernel of the encoder stage that its skip comes from. Heads exist for every stage whether or not deep
    supervision is used, so that weights fit either way. A network of one stage has no decoder, only a head on its encoder.
    """

    def __init__(
        self, features: Sizes, kernel_sizes: Sequence[Sizes], strides: Sequence[Sizes], num_blocks: Sizes, num_classes: int
    ) -> None:
        super().__init__()
        depth = len(features) - 1
        unit = (1,) * len(kernel_sizes[0])
        self.up = nn.ModuleList(
            transposed_convolution(features[fine + 1], features[fine], strides[fine + 1]) for fine in reversed(range(depth))
        )
        self.stages = nn.ModuleList(
            ConvStack(2 * features[fine], features[fine], kernel_sizes[fine], unit, num_blocks[depth - 1 - fine])
            for fine in reversed(range(depth))
        )
        heads = list(reversed(range(depth))) or [0]
        self.heads = nn.ModuleList(convolution(features[fine], num_classes, unit, unit, bias=True) for fine in heads)

    def forward(self, skips: Sequence[Tensor], *, all_heads: bool) -> list[Tensor]:
        """Features of all encoder stages, finest first → logits, finest first: of every stage, or of the finest alone."""
        x = skips[-1]
        if not len(self.stages):
            return [self.heads[0](x)]
        logits: list[Tensor] = []
        for place, (up, stage, head) in enumerate(zip(self.up, self.stages, self.heads, strict=True)):
            x = stage(torch.cat((up(x), skips[-2 - place]), 1))
            if all_heads or place == len(self.stages) - 1:
                logits.append(head(x))
        return logits[::-1]


def channels_last(x: Tensor) -> torch.memory_format:
    """The layout of ``x``'s number of dimensions in which the channels of a voxel lie beside each other."""
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d


def convolution(in_channels: int, out_channels: int, kernel_size: Sizes, stride: Sizes, *, bias: bool) -> nn.Module:
    """A 2D or 3D convolution, by the length of ``kernel_size``, padded so that stride 1 keeps the size."""
    if all(k == 1 for k in kernel_size) and all(s == 1 for s in stride):
        return {2: PointwiseConv2d, 3: PointwiseConv3d}[len(kernel_size)](in_channels, out_channels, 1, bias=bias)
    is_slicewise = len(kernel_size) == 3 and kernel_size[0] == stride[0] == 1
    kind = SlicewiseConv3d if is_slicewise else {2: nn.Conv2d, 3: nn.Conv3d}[len(kernel_size)]
    padding = tuple((k - 1) // 2 for k in kernel_size)
    return kind(in_channels, out_channels, tuple(kernel_size), tuple(stride), padding, bias=bias)  # type: ignore[arg-type]


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
        slices = F.conv2d(_as_slices(x), self.weight[:, :, 0], self.bias, self.stride[1:], self.padding[1:])
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


def transposed_convolution(in_channels: int, out_channels: int, stride: Sizes) -> nn.Module:
    """A 2D or 3D transposed convolution whose kernel is its stride: sizes are multiplied, nothing overlaps."""
    is_slicewise = len(stride) == 3 and stride[0] == 1
    kind = SlicewiseConvTranspose3d if is_slicewise else {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(stride)]
    return kind(in_channels, out_channels, tuple(stride), tuple(stride), bias=True)  # type: ignore[arg-type]


def initialize(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """He initialization for leaky ReLU; the last norm of each residual block begins at zero, so the block begins as its skip."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.second.norm.weight)
