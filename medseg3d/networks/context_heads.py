"""Heads that see context at several scales: atrous spatial pyramid pooling and pyramid pooling, in 2D and 3D."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.convolutions import Sizes, convolution, convolve
from medseg3d.networks.resizing import window_means
from medseg3d.networks.style import Style, activation_layer, dropout_layer, norm_layer


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling with image pooling (Chen et al. 2017): context at the distances of ``rates`` voxels, and of all.

    A rate that exceeds the features along an axis is that axis' length less one there: the kernel's outer weights would see padding only.
    The branches are merged by a pointwise convolution, or one of ``merge_kernel``.
    """

    def __init__(
        self, before: int, width: int, kernel: Sizes, rates: Sequence[int], style: Style, *, dropout: float, merge_kernel: Sizes = ()
    ) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        self.point = ConvBlock(before, width, unit, unit, style, bias=False)
        self.branches = nn.ModuleList(AtrousBlock(before, width, kernel, rate, style) for rate in rates)
        self.image = nn.Sequential(
            convolution(before, width, unit, unit, bias=False),
            norm_layer(of_one_voxel(style), width, len(kernel)),
            activation_layer(style, width),
        )
        self.merge = ConvBlock((len(rates) + 2) * width, width, merge_kernel or unit, unit, style, bias=False)
        self.dropout = dropout_layer(replace(style, dropout=dropout), len(kernel))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, …)`` → ``(batch, width, …)``."""
        image = self.image(x.mean(tuple(range(2, x.ndim)), keepdim=True)).expand(-1, -1, *x.shape[2:])
        merged: Tensor = self.merge(torch.cat((self.point(x), *(branch(x) for branch in self.branches), image), 1))
        return merged if self.dropout is None else self.dropout(merged)


class AtrousBlock(nn.Module):
    """A convolution whose kernel is spread to ``rate``, norm and activation."""

    reads_weights_itself = True

    def __init__(self, before: int, width: int, kernel: Sizes, rate: int, style: Style) -> None:
        super().__init__()
        self.rate = rate
        self.conv = convolution(before, width, kernel, (1,) * len(kernel), bias=False)
        self.norm = norm_layer(style, width, len(kernel))
        self.activation = activation_layer(style, width)

    def rates(self, size: Sequence[int]) -> tuple[int, ...]:
        """The rate per axis for features of a size."""
        return tuple(max(1, min(self.rate, length - 1)) for length in size)

    def forward(self, x: Tensor) -> Tensor:
        """The size stays."""
        rates = self.rates(x.shape[2:])
        weight: Tensor = self.conv.weight  # type: ignore[assignment]
        padding = tuple((k - 1) // 2 * rate for k, rate in zip(weight.shape[2:], rates, strict=True))
        activated: Tensor = self.activation(self.norm(convolve(x, weight, None, (1,) * len(rates), padding, rates)))
        return activated


class PyramidPooling(nn.Module):
    """Pyramid pooling (Zhao et al. 2017): means over grids of ``bins`` cells per axis, projected, brought back and put beside the input.

    An axis has no more cells than features.
    """

    def __init__(self, before: int, width: int, bins: Sequence[int], dimensions: int, style: Style, *, is_activated: bool = True) -> None:
        super().__init__()
        unit = (1,) * dimensions
        self.bins = tuple(bins)
        self.projections = nn.ModuleList(
            nn.Sequential(
                convolution(before, width, unit, unit, bias=False),
                norm_layer(of_one_voxel(style), width, dimensions),
                *([activation_layer(style, width)] if is_activated else []),
            )
            for _ in self.bins
        )

    def cells(self, number: int, size: Sequence[int]) -> tuple[int, ...]:
        """Cells per axis for features of a size."""
        return tuple(min(number, length) for length in size)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, …)`` → ``(batch, before + len(bins) · width, …)``."""
        size = tuple(x.shape[2:])
        mode = "bilinear" if len(size) == 2 else "trilinear"
        pooled = [
            F.interpolate(project(averaged(x, self.cells(number, size))), size, mode=mode, align_corners=False)
            for number, project in zip(self.bins, self.projections, strict=True)
        ]
        return torch.cat((x, *pooled), 1)


def auxiliary_head(before: int, width: int, kernel: Sizes, num_classes: int, style: Style, *, bias: bool = False) -> nn.Sequential:
    """The logits of an inner stage, for training alone: a convolution, dropout of a tenth, a pointwise convolution."""
    unit = (1,) * len(kernel)
    return nn.Sequential(
        ConvBlock(before, width, kernel, unit, style, bias=bias), nn.Dropout(0.1), convolution(width, num_classes, unit, unit)
    )


def averaged(x: Tensor, cells: Sequence[int]) -> Tensor:
    """Means over a grid of cells: torch's adaptive average pooling."""
    lengths = [int(length) for length in x.shape[2:]]
    return window_means(x, [[(c * n // num, -(-(c + 1) * n // num)) for c in range(num)] for n, num in zip(lengths, cells, strict=True)])


def of_one_voxel(style: Style) -> Style:
    """Instance and group norms have nothing to divide by where one voxel is left; there is none then."""
    return style if style.norm == "batch" else replace(style, norm="none")
