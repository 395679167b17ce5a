"""MSFNet: features of every stage pooled to all coarser sizes and fused, and two streams up, for classes and for their boundaries.

Si et al. 2019, "Real-Time Semantic Segmentation via Multiply Spatial Fusion Network". The encoder is a
:class:`~medseg3d.networks.resnet.ResNet` (ResNet-18 as published). The authors published no code; sizes that the paper leaves open are
options here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg3d.networks import encoders, resnet
from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.family import Family
from medseg3d.networks.resizing import resized, widely_pooled
from medseg3d.networks.style import Style, style_of, whole
from medseg3d.plan import NetworkPlan, Option

FINEST = 1
"""Of the stages after the stem, the one at whose size the streams end: an eighth of the input's. A quarter would cost four times as
much."""


class MSFNet(nn.Module):
    """Logits at an eighth of the resolution, brought to the size of the input; with ``deep_supervision`` those of the boundaries follow.

    The boundary stream shares the fused features, and is left out of predictions.
    """

    head_weights = (1.0, 1.0)
    """Both streams count alike."""
    head_targets = ("labels", "boundaries")
    """The second head learns the labels of voxels that touch another label, and background elsewhere."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style = style_of(plan.options)
        self.deep_supervision = plan.deep_supervision
        self.encoder = encoders.encoder_of(plan)
        width, widths = whole(plan.options, "decoder_features"), self.encoder.widths[1:]
        self.finest = min(FINEST, len(widths) - 1)
        kernels = plan.kernel_sizes[2:]
        self.fusions = nn.ModuleList(
            SpatialFusion(sum(widths[: stage + 1]), width, kernels[stage], style) for stage in range(self.finest, len(widths))
        )
        self.classes = Stream(len(self.fusions), width, kernels[self.finest], plan.num_classes, style)
        self.boundaries = Stream(len(self.fusions), width, kernels[self.finest], plan.num_classes, style) if plan.deep_supervision else None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(batch, num_classes, …)`` of the input's size."""
        stages = self.encoder(x)[1:]
        fused = [fusion(stages[: self.finest + place + 1]) for place, fusion in enumerate(self.fusions)]
        logits = resized(self.classes(fused), x.shape[2:])
        if self.boundaries is None or not (self.training and self.deep_supervision):
            return logits
        return [logits, resized(self.boundaries(fused), x.shape[2:])]


class SpatialFusion(nn.Module):
    """All finer stages at the size of one: spatial aware pooling, then a pointwise convolution and one of the stage's kernel."""

    def __init__(self, before: int, width: int, kernel: Sizes, style: Style) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        self.narrow = ConvBlock(before, width, unit, unit, style, bias=False)
        self.mix = ConvBlock(width, width, kernel, unit, style, bias=False)

    def forward(self, stages: list[Tensor]) -> Tensor:
        """Features of the stages up to this one, finest first → ``(batch, width, …)`` of the last one's size."""
        size = stages[-1].shape[2:]
        fused: Tensor = self.mix(self.narrow(torch.cat([widely_pooled(stage, size) for stage in stages], 1)))
        return fused


class Stream(nn.Module):
    """From the coarsest fused features to the finest: brought up, put beside the next, convolved; logits at the end."""

    def __init__(self, num_stages: int, width: int, kernel: Sizes, num_classes: int, style: Style) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        self.merge = nn.ModuleList(ConvBlock(2 * width, width, kernel, unit, style, bias=False) for _ in range(num_stages - 1))
        self.head = nn.Sequential(ConvBlock(width, width, kernel, unit, style, bias=False), convolution(width, num_classes, unit, unit))

    def forward(self, fused: list[Tensor]) -> Tensor:
        """Fused features, finest first → logits of the finest's size."""
        x = fused[-1]
        for merge, finer in zip(self.merge, reversed(fused[:-1]), strict=True):
            x = merge(torch.cat((finer, resized(x, finer.shape[2:])), 1))
        logits: Tensor = self.head(x)
        return logits


OPTIONS: dict[str, Option] = {**encoders.OPTIONS, "block": "basic", "output_stride": 32, "decoder_features": 128}
FAMILY = Family(name="msfnet", build=MSFNet, options=OPTIONS, choices=encoders.CHOICES, problems=resnet.problems)
