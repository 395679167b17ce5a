"""Fast-SCNN: a short common stem, a deep coarse branch and a shallow fine one that are added (Poudel et al. 2019).

A plan's first stage is the image and has no convolutions. The next (three, as published) learn to downsample; the others are inverted
bottlenecks, after which a last group of them runs without a stride. The published network is six stages with the features
(any, 32, 48, 64, 64, 96) and three blocks in each group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.context_heads import PyramidPooling, auxiliary_head
from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.family import Family, too_few_stages
from medseg3d.networks.resizing import resized
from medseg3d.networks.style import Style, gates, norm_layer, style_of, whole
from medseg3d.plan import NetworkPlan, Option

STEM_STAGES, EXPANSION, BINS = 3, 6, (1, 2, 3, 6)


class FastSCNN(nn.Module):
    """Logits at the size of the stem's last stage, brought to the size of the input; an auxiliary head on the stem where wanted."""

    head_weights = (1.0, 0.4)

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit, features, kernels = style_of(plan.options), (1,) * plan.dimensions, plan.features, plan.kernel_sizes
        self.deep_supervision = plan.deep_supervision
        fine = min(STEM_STAGES, len(features) - 1)
        separable = replace(style, separable=True)
        self.stem = nn.Sequential(
            *(
                ConvBlock(
                    features[stage - 1] if stage > 1 else plan.in_channels,
                    features[stage],
                    kernels[stage],
                    plan.strides[stage],
                    separable if stage > 1 else style,
                    bias=False,
                )
                for stage in range(1, fine + 1)
            )
        )
        width = whole(plan.options, "context_features")
        groups = [
            (features[s - 1], features[s], kernels[s], plan.strides[s], plan.encoder_blocks[s]) for s in range(fine + 1, len(features))
        ]
        groups.append((features[-1], width, kernels[-1], unit, plan.encoder_blocks[-1]))
        self.deep = nn.Sequential(
            *(
                InvertedBottleneck(width if i else before, width, kernel, unit if i else stride, style)
                for before, width, kernel, stride, num in groups
                for i in range(num)
            )
        )
        self.pyramid = PyramidPooling(width, max(1, width // len(BINS)), BINS, plan.dimensions, style)
        pooled = width + len(BINS) * max(1, width // len(BINS))
        self.merge = ConvBlock(pooled, width, unit, unit, style, bias=False)
        self.fusion = Fusion(features[fine], width, kernels[fine], style)
        self.head = nn.Sequential(
            ConvBlock(width, width, kernels[fine], unit, separable, bias=False),
            ConvBlock(width, width, kernels[fine], unit, separable, bias=False),
            nn.Dropout(0.1),
            convolution(width, plan.num_classes, unit, unit),
        )
        own = (features[fine], features[fine], kernels[fine], plan.num_classes, style)
        self.auxiliary = auxiliary_head(*own) if plan.deep_supervision else None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(batch, num_classes, …)`` of the input's size."""
        fine = self.stem(x)
        logits = resized(self.head(self.fusion(fine, self.merge(self.pyramid(self.deep(fine))))), x.shape[2:])
        if self.auxiliary is None or not (self.training and self.deep_supervision):
            return logits
        return [logits, self.auxiliary(fine)]


class InvertedBottleneck(nn.Module):
    """A pointwise convolution to six times the channels, a depthwise one, a pointwise one back without activation (MobileNetV2)."""

    def __init__(self, before: int, width: int, kernel: Sizes, stride: Sizes, style: Style) -> None:
        super().__init__()
        unit, wide = (1,) * len(kernel), EXPANSION * before
        self.convs = nn.Sequential(
            ConvBlock(before, wide, unit, unit, style, bias=False),
            depthwise(wide, kernel, stride, style),
            *gates(style, wide, len(kernel)),
            ConvBlock(wide, width, unit, unit, style, bias=False, is_activated=False),
        )
        self.has_skip = before == width and all(s == 1 for s in stride)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, …)`` → ``(batch, width, … / stride)``."""
        result: Tensor = self.convs(x)
        return x + result if self.has_skip else result


class Fusion(nn.Module):
    """The coarse branch, brought up and convolved, and the fine one, added."""

    def __init__(self, fine: int, coarse: int, kernel: Sizes, style: Style) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        self.spread = depthwise(coarse, kernel, unit, style)
        self.of_coarse = ConvBlock(coarse, coarse, unit, unit, style, is_activated=False)
        self.of_fine = ConvBlock(fine, coarse, unit, unit, style, is_activated=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """At the size of ``fine``."""
        return F.relu(self.of_coarse(self.spread(resized(coarse, fine.shape[2:]))) + self.of_fine(fine))


def depthwise(channels: int, kernel: Sizes, stride: Sizes, style: Style) -> nn.Sequential:
    """A convolution of each channel by itself, norm and ReLU."""
    conv = convolution(channels, channels, kernel, stride, bias=False, groups=channels)
    return nn.Sequential(conv, norm_layer(style, channels, len(kernel)), nn.ReLU())


def problems(plan: NetworkPlan) -> Iterable[str]:
    """What cannot be built."""
    yield from too_few_stages(plan, 2)


OPTIONS: dict[str, Option] = {"norm": "batch", "activation": "relu", "context_features": 128}
FAMILY = Family(name="fast_scnn", build=FastSCNN, options=OPTIONS, problems=problems)
