"""BiSeNet: a shallow path that keeps details and a deep one that sees context, refined by attention and fused (Yu et al. 2018).

The context path is a :class:`~medseg3d.networks.resnet.ResNet` (ResNet-18 as published); the spatial path takes the strides of up to three
stages after the first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg3d.networks import encoders, resnet
from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.context_heads import of_one_voxel
from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.family import Family
from medseg3d.networks.resizing import resized
from medseg3d.networks.style import Style, activation_layer, norm_layer, style_of, whole
from medseg3d.plan import NetworkPlan, Option

SPATIAL_STAGES, REFINED = 3, 2


class BiSeNet(nn.Module):
    """Logits at the size of the spatial path, brought to that of the input; with ``deep_supervision`` those of the refined follow."""

    head_weights = (1.0, 1.0, 1.0)
    """As published."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit, kernels = style_of(plan.options), (1,) * plan.dimensions, plan.kernel_sizes
        self.deep_supervision = plan.deep_supervision
        self.context = encoders.encoder_of(plan)
        width, inner = whole(plan.options, "context_features"), plan.features[1]
        fine = min(SPATIAL_STAGES, len(plan.features) - 1)
        wide = tuple(resnet.STEM_KERNEL if kernel > 1 else 1 for kernel in kernels[1])
        self.spatial = nn.Sequential(
            *(
                ConvBlock(
                    inner if stage > 1 else plan.in_channels,
                    inner,
                    kernels[stage] if stage > 1 else wide,
                    plan.strides[stage],
                    style,
                    bias=False,
                )
                for stage in range(1, fine + 1)
            ),
            ConvBlock(inner, width, unit, unit, style, bias=False),
        )
        channels = self.context.widths[-1]
        self.all_context = nn.Sequential(
            convolution(channels, width, unit, unit, bias=False),
            norm_layer(of_one_voxel(style), width, plan.dimensions),
            activation_layer(style, width),
        )
        self.num_refined = min(REFINED, len(self.context.widths) - 1)
        coarse = [*reversed(self.context.widths)][: self.num_refined]
        self.attention = nn.ModuleList(AttentionRefinement(before, width, kernels[-1], style) for before in coarse)
        self.refine = nn.ModuleList(ConvBlock(width, width, kernels[-1], unit, style, bias=False) for _ in coarse)
        self.fusion = FeatureFusion(2 * width, 2 * width, plan.dimensions, style)
        self.head = _head(2 * width, width // 2, kernels[fine], plan.num_classes, style)
        auxiliary = range(self.num_refined) if plan.deep_supervision else ()
        self.auxiliary = nn.ModuleList(_head(width, width, kernels[fine], plan.num_classes, style) for _ in auxiliary)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(batch, num_classes, …)`` of the input's size."""
        fine = self.spatial(x)
        stages = self.context(x)[::-1]
        axes = tuple(range(2, x.ndim))
        seen = resized(self.all_context(stages[0].mean(axes, keepdim=True)), stages[0].shape[2:])
        refined = []
        for place, (attention, refine) in enumerate(zip(self.attention, self.refine, strict=True)):
            seen = refine(resized(attention(stages[place]) + seen, stages[place + 1].shape[2:]))
            refined.append(seen)
        logits = resized(self.head(self.fusion(torch.cat((fine, resized(seen, fine.shape[2:])), 1))), x.shape[2:])
        if not (self.training and self.deep_supervision):
            return logits
        return [logits, *(head(features) for head, features in zip(reversed(self.auxiliary), reversed(refined), strict=True))]


class AttentionRefinement(nn.Module):
    """A convolution whose channels are weighed by what all of the image shows."""

    def __init__(self, before: int, width: int, kernel: Sizes, style: Style) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        self.conv = ConvBlock(before, width, kernel, unit, style, bias=False)
        self.weigh = nn.Sequential(
            convolution(width, width, unit, unit, bias=False), norm_layer(of_one_voxel(style), width, len(kernel)), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, …)`` → ``(batch, width, …)``."""
        x = self.conv(x)
        weighed: Tensor = x * self.weigh(x.mean(tuple(range(2, x.ndim)), keepdim=True))
        return weighed


class FeatureFusion(nn.Module):
    """A pointwise convolution over both paths, and a gate that adds some channels once more."""

    def __init__(self, before: int, width: int, dimensions: int, style: Style) -> None:
        super().__init__()
        unit = (1,) * dimensions
        self.conv = ConvBlock(before, width, unit, unit, style, bias=False)
        self.weigh = nn.Sequential(
            convolution(width, width, unit, unit, bias=False), nn.ReLU(), convolution(width, width, unit, unit, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, …)`` → ``(batch, width, …)``."""
        x = self.conv(x)
        fused: Tensor = x + x * self.weigh(x.mean(tuple(range(2, x.ndim)), keepdim=True))
        return fused


def _head(before: int, width: int, kernel: Sizes, num_classes: int, style: Style) -> nn.Sequential:
    unit = (1,) * len(kernel)
    return nn.Sequential(ConvBlock(before, width, kernel, unit, style, bias=False), convolution(width, num_classes, unit, unit))


OPTIONS: dict[str, Option] = {**encoders.OPTIONS, "block": "basic", "stem": "deep", "output_stride": 32, "context_features": 128}
FAMILY = Family(name="bisenet", build=BiSeNet, options=OPTIONS, choices=encoders.CHOICES, problems=resnet.problems)
