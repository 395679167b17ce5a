"""The parts that U-Nets are made of, in 2D and 3D: convolution blocks, and how weights begin.

All tensors are ``(batch, channel, n0, n1[, n2])``. In the plain style the arithmetic is that of nnU-Net 2.8.1's networks:
convolution with bias, instance norm (eps 1e-5, affine), leaky ReLU with slope 0.01, He initialization.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.style import NEGATIVE_SLOPE, Style, activation_layer, dropout_layer, gate_layer, norm_layer

PLAIN = Style()
"""Instance norm and leaky ReLU, nothing else."""
BLUR = 0.5
"""Share of the neighbors, in units of He's standard deviation, in a depthwise kernel that is not trained yet; the middle has 1 more."""
MIN_SEPARABLE_CHANNELS = 8
"""An image's few channels are convolved in full even in a separable style, as in MobileNet's first layer."""


class ConvBlock(nn.Module):
    """Convolution, dropout, norm and, unless ``is_activated`` is False, activation; odd kernels keep the size at stride 1.

    In a separable style the convolution is a :class:`SeparableConv`. ``is_padded`` False leaves out the padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        style: Style = PLAIN,
        *,
        bias: bool = True,
        is_activated: bool = True,
        is_padded: bool = True,
    ) -> None:
        super().__init__()
        dimensions = len(kernel_size)
        if style.separable and in_channels >= MIN_SEPARABLE_CHANNELS and any(k > 1 for k in kernel_size):
            self.conv: nn.Module = SeparableConv(in_channels, out_channels, kernel_size, stride, style, bias=bias, is_padded=is_padded)
        else:
            self.conv = convolution(in_channels, out_channels, kernel_size, stride, bias=bias, is_padded=is_padded)
        self.dropout = dropout_layer(style, dimensions)
        self.norm = norm_layer(style, out_channels, dimensions)
        # in place where it can be: the norm keeps its input for the backward pass, not its output
        self.activation = activation_layer(style, out_channels) if is_activated else None

    @property
    def conv_of_channels(self) -> nn.Module:
        """The convolution that makes the output's channels: the pointwise one of a separable pair."""
        return self.conv.pointwise if isinstance(self.conv, SeparableConv) else self.conv

    @property
    def end(self) -> nn.Module:
        """What makes the result zero where its weight is zero: the norm, or the convolution where there is none."""
        return self.conv_of_channels if isinstance(self.norm, nn.Identity) else self.norm

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, …)`` → ``(batch, out_channels, … / stride)``."""
        x = self.conv(x)
        if self.dropout is not None:
            x = self.dropout(x)
        x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class SeparableConv(nn.Module):
    """A depthwise convolution, norm and activation, then a pointwise convolution (MobileNet's order, Howard et al. 2017).

    Its cost is ``1 / out_channels + 1 / kernel_voxels`` of that of a full convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Sizes, stride: Sizes, style: Style, *, bias: bool, is_padded: bool
    ) -> None:
        super().__init__()
        unit = (1,) * len(kernel_size)
        depthwise: Any = convolution(in_channels, in_channels, kernel_size, stride, bias=bias, groups=in_channels, is_padded=is_padded)
        depthwise.keeps_size = style.norm == "none"
        self.depthwise: nn.Module = depthwise
        self.norm = norm_layer(style, in_channels, len(kernel_size))
        self.activation = activation_layer(style, in_channels)
        self.pointwise = convolution(in_channels, out_channels, unit, unit, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, …)`` → ``(batch, out_channels, … / stride)``."""
        x = self.pointwise(self.activation(self.norm(self.depthwise(x))))
        return x


class ConvStack(nn.Sequential):
    """Several :class:`ConvBlock` in a row, and the style's gate; the first one changes the channels and carries the stride."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Sizes, stride: Sizes, num_blocks: int, style: Style = PLAIN
    ) -> None:
        unit = (1,) * len(kernel_size)
        gate = gate_layer(style, out_channels, len(kernel_size))
        super().__init__(
            *(
                ConvBlock(out_channels if i else in_channels, out_channels, kernel_size, unit if i else stride, style)
                for i in range(num_blocks)
            ),
            *([] if gate is None else [gate]),
        )


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip, as in ResNet-D: the skip pools by averaging, then projects only if channels change.

    The style's gate weighs the convolutions' result before the sum.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sizes, stride: Sizes, style: Style = PLAIN) -> None:
        super().__init__()
        unit = (1,) * len(kernel_size)
        self.stride = tuple(stride)
        self.first = ConvBlock(in_channels, out_channels, kernel_size, stride, style)
        self.second = ConvBlock(out_channels, out_channels, kernel_size, unit, replace(style, dropout=0.0), is_activated=False)
        self.gate = gate_layer(style, out_channels, len(kernel_size))
        self.projection = (
            ConvBlock(in_channels, out_channels, unit, unit, replace(style, dropout=0.0), bias=False, is_activated=False)
            if in_channels != out_channels
            else None
        )
        self.activation = activation_layer(style, out_channels)

    def begins_at_zero(self) -> tuple[nn.Module, ...]:
        """What begins at zero, see :func:`initialize`."""
        return (self.second.end,)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, …)`` → ``(batch, out_channels, … / stride)``."""
        skip = x
        if any(s != 1 for s in self.stride):
            skip = F.avg_pool2d(skip, self.stride) if len(self.stride) == 2 else F.avg_pool3d(skip, self.stride)
        if self.projection is not None:
            skip = self.projection(skip)
        x = self.second(self.first(x))
        x = x.add_(skip) if self.gate is None else self.gate(x) + skip
        x = self.activation(x)
        return x


class ResidualStack(nn.Sequential):
    """Several :class:`ResidualBlock` in a row; the first one changes the channels and carries the stride."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Sizes, stride: Sizes, num_blocks: int, style: Style = PLAIN
    ) -> None:
        unit = (1,) * len(kernel_size)
        super().__init__(
            *(
                ResidualBlock(out_channels if i else in_channels, out_channels, kernel_size, unit if i else stride, style)
                for i in range(num_blocks)
            )
        )


def initialize(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """He initialization for leaky ReLU; the end of each residual block begins at zero, so the block begins as its skip.

    That end is its last norm, or its last convolution where there is no norm (Zhang et al. 2019, Fixup); otherwise each sum would
    double the squares. Depthwise convolutions begin as a slight blur of their channel: He's random signs would make each a high-pass
    filter, and a chain of them with norms between would amplify the noise of the image and of bf16 until little else is left; a test
    holds the gain down. Where no norm follows (``keeps_size``) their weights sum to 1. Dropout of a share p makes squares 1 / (1 - p)
    times as large in the mean; where no norm takes that back, the convolution of a :class:`ConvBlock` begins smaller, or half of
    everything dropped would multiply the logits of ten layers by 32.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if module.groups > 1:
                with torch.no_grad():
                    module.weight.abs_().mul_(BLUR).flatten(2)[..., math.prod(module.kernel_size) // 2] += 1
                    if getattr(module, "keeps_size", False):
                        module.weight.div_(module.weight.flatten(1).sum(1).view(-1, *(1,) * (module.weight.ndim - 1)))
    for module in network.modules():
        if isinstance(module, ConvBlock) and module.dropout is not None and isinstance(module.norm, nn.Identity):
            with torch.no_grad():
                cast(nn.Conv3d, module.conv_of_channels).weight.mul_(math.sqrt(1 - cast(nn.Dropout, module.dropout).p))
        if after := getattr(module, "after_initialization", None):
            after()
        for part in getattr(module, "begins_at_zero", tuple)():
            if isinstance(weight := getattr(part, "weight", None), nn.Parameter):
                nn.init.zeros_(weight)
