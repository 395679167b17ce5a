"""SwiftNet: a light ladder on a residual encoder, whose skips leave it before the activation (Orsic et al. 2019).

The encoder is a :class:`~medseg3d.networks.resnet.ResNet` (ResNet-18 as published) without dilation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg3d.networks import encoders, resnet
from medseg3d.networks.context_heads import auxiliary_head, averaged, of_one_voxel
from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.family import Family
from medseg3d.networks.resizing import resized
from medseg3d.networks.style import Style, norm_layer, style_of, whole
from medseg3d.plan import NetworkPlan, Option

GRIDS = (8, 4, 2)
"""Cells per axis of the pyramid."""


class SwiftNet(nn.Module):
    """Logits at the size of the encoder's first stage, brought to that of the input; an auxiliary head on its last but one where wanted."""

    head_weights = (1.0, 0.4)

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit, kernels = style_of(plan.options), (1,) * plan.dimensions, plan.kernel_sizes
        self.deep_supervision = plan.deep_supervision
        self.encoder = encoders.encoder_of(plan)
        width, widths = whole(plan.options, "decoder_features"), self.encoder.widths[1:]
        self.pyramid = NarrowPyramid(widths[-1], width, plan.dimensions, style)
        coarse_to_fine = list(reversed(range(len(widths) - 1)))
        self.lateral = nn.ModuleList(PreActivated(widths[stage], width, unit, style) for stage in coarse_to_fine)
        self.blend = nn.ModuleList(PreActivated(width, width, kernels[stage + 2], style) for stage in coarse_to_fine)
        self.head = PreActivated(width, plan.num_classes, unit, style, bias=True) if width != plan.num_classes else nn.Identity()
        self.auxiliary = None
        if plan.deep_supervision and len(widths) > 1:
            self.auxiliary = auxiliary_head(widths[-2], widths[-2], kernels[-2], plan.num_classes, style, bias=True)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(batch, num_classes, …)`` of the input's size."""
        size = x.shape[2:]
        x = self.encoder.stem(x)
        sums = []
        for place in range(len(self.encoder.stages)):
            before, x = self.encoder.stage_and_sum(place, x)
            sums.append(before)
            if place == len(self.encoder.stages) - 2:
                inner = x
        features = self.pyramid(sums[-1])
        for skip, lateral, blend in zip(reversed(sums[:-1]), self.lateral, self.blend, strict=True):
            features = blend(resized(features, skip.shape[2:]) + lateral(skip))
        logits = resized(self.head(features), size)
        if self.auxiliary is None or not (self.training and self.deep_supervision):
            return logits
        return [logits, self.auxiliary(inner)]


class PreActivated(nn.Sequential):
    """Norm, ReLU, convolution."""

    def __init__(self, before: int, width: int, kernel: Sizes, style: Style, *, bias: bool = False) -> None:
        super().__init__(
            norm_layer(style, before, len(kernel)), nn.ReLU(), convolution(before, width, kernel, (1,) * len(kernel), bias=bias)
        )


class NarrowPyramid(nn.Module):
    """Pyramid pooling behind a projection to few channels; the cells follow the shape of the features."""

    def __init__(self, before: int, width: int, dimensions: int, style: Style) -> None:
        super().__init__()
        unit, level = (1,) * dimensions, max(1, width // len(GRIDS))
        pooled = of_one_voxel(style)
        self.project = PreActivated(before, width, unit, style)
        self.levels = nn.ModuleList(PreActivated(width, level, unit, pooled) for _ in GRIDS)
        self.fuse = PreActivated(width + len(GRIDS) * level, width, unit, style)

    def cells(self, number: int, size: Sequence[int]) -> tuple[int, ...]:
        """As many as ``number`` along the first axis, in proportion along the others; no more than features."""
        return tuple(min(length, max(1, round(number * length / size[0]))) for length in size)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, …)`` → ``(batch, width, …)``."""
        x, size = self.project(x), tuple(x.shape[2:])
        levels = [resized(level(averaged(x, self.cells(number, size))), size) for number, level in zip(GRIDS, self.levels, strict=True)]
        fused: Tensor = self.fuse(torch.cat((x, *levels), 1))
        return fused


OPTIONS: dict[str, Option] = {**encoders.OPTIONS, "block": "basic", "output_stride": 32, "decoder_features": 128}
FAMILY = Family(name="swiftnet", build=SwiftNet, options=OPTIONS, choices=encoders.CHOICES, problems=resnet.problems)
