"""DFANet: one light encoder three times in a row, each fed with what the one before has seen (Li et al. 2019).

A plan's first stage is the image, the second a convolution with a stride; the others are the stages of each encoder, which begins where
the first stage of the one before it ended. The published network is five stages with the features (any, 8, 48, 96, 192) and 4, 6, 4 blocks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.context_heads import auxiliary_head, of_one_voxel
from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.family import Family, too_few_stages
from medseg3d.networks.resizing import resized
from medseg3d.networks.style import Style, gate_layer, norm_layer, style_of, whole
from medseg3d.plan import NetworkPlan, Option

ENCODERS = 3


class DFANet(nn.Module):
    """Logits at the size of the first encoder's first stage, brought to that of the input; auxiliary ones of the first two encoders.

    The size of a stage is not divided further where nothing is left to divide.
    """

    head_weights = (1.0, 0.4, 0.4)

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit, features, kernels = style_of(plan.options), (1,) * plan.dimensions, plan.features, plan.kernel_sizes
        self.deep_supervision = plan.deep_supervision
        hidden, width = whole(plan.options, "attention_features"), whole(plan.options, "decoder_features")
        self.stem = ConvBlock(plan.in_channels, features[1], kernels[1], plan.strides[1], style, bias=False)
        self.encoders, self.attention = nn.ModuleList(), nn.ModuleList()
        for number in range(ENCODERS):
            stages = nn.ModuleList()
            for stage in range(2, len(features)):
                before = features[stage - 1]
                if number:
                    before = features[stage] + (features[-1] if stage == 2 else features[stage - 1])
                stages.append(_stage(before, features[stage], kernels[stage], plan.strides[stage], plan.encoder_blocks[stage], style))
            self.encoders.append(stages)
            self.attention.append(ContextGate(features[-1], hidden, plan.dimensions, style))
        self.of_fine = nn.ModuleList(ConvBlock(features[2], width, unit, unit, style, bias=False) for _ in range(ENCODERS))
        self.of_context = nn.ModuleList(ConvBlock(features[-1], width, unit, unit, style, bias=False) for _ in range(ENCODERS))
        self.fuse = ConvBlock(width, width, unit, unit, style, bias=False)
        self.head = convolution(width, plan.num_classes, unit, unit)
        self.auxiliary = nn.ModuleList(
            auxiliary_head(features[-1], features[-1], kernels[-1], plan.num_classes, style, bias=True)
            for _ in range(ENCODERS - 1 if plan.deep_supervision else 0)
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(batch, num_classes, …)`` of the input's size."""
        size = x.shape[2:]
        x = self.stem(x)
        seen: list[Tensor] = []
        fine, contexts, auxiliary = [], [], []
        for number, (stages, attention) in enumerate(zip(self.encoders, self.attention, strict=True)):
            found: list[Tensor] = []
            for place, stage in enumerate(cast(nn.ModuleList, stages)):
                x = stage(torch.cat((seen[place], resized(x, seen[place].shape[2:])), 1) if seen else x)
                found.append(x)
            context = attention(x)
            fine.append(found[0])
            contexts.append(context)
            x = resized(context, found[0].shape[2:])
            if self.training and number < len(self.auxiliary):
                auxiliary.append(self.auxiliary[number](x))
            seen = found
        target = fine[0].shape[2:]
        merged = self.fuse(sum(resized(reduce(part), target) for reduce, part in zip(self.of_fine, fine, strict=True)))
        merged = merged + sum(resized(reduce(part), target) for reduce, part in zip(self.of_context, contexts, strict=True))
        logits = resized(self.head(merged), size)
        return [logits, *auxiliary] if self.training and self.deep_supervision else logits


class ContextGate(nn.Module):
    """Channels are multiplied by what all of the image shows, through many hidden features ("fully connected attention")."""

    def __init__(self, channels: int, hidden: int, dimensions: int, style: Style) -> None:
        super().__init__()
        unit = (1,) * dimensions
        self.weigh = nn.Sequential(
            convolution(channels, hidden, unit, unit),
            convolution(hidden, channels, unit, unit, bias=False),
            norm_layer(of_one_voxel(style), channels, dimensions),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, …)`` → the same."""
        gated: Tensor = x * self.weigh(x.mean(tuple(range(2, x.ndim)), keepdim=True))
        return gated


class XceptionBlock(nn.Module):
    """Three separable convolutions, narrow inside, beside a skip; the last carries the stride."""

    def __init__(self, before: int, width: int, kernel: Sizes, stride: Sizes, style: Style) -> None:
        super().__init__()
        unit, inner = (1,) * len(kernel), max(1, width // 4)
        steps = ((before, inner, unit), (inner, inner, unit), (inner, width, stride))
        self.convs = nn.Sequential(*(part for come, go, step in steps for part in _separable(come, go, kernel, step, style)))
        self.gate = gate_layer(style, width, len(kernel))
        is_same = before == width and all(s == 1 for s in stride)
        self.skip = None if is_same else ConvBlock(before, width, unit, stride, style, bias=False, is_activated=False)

    def begins_at_zero(self) -> tuple[nn.Module, ...]:
        """What begins at zero, see :func:`~medseg3d.networks.blocks.initialize`."""
        return (self.convs[-1],)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, …)`` → ``(batch, width, … / stride)``."""
        skip = x if self.skip is None else self.skip(x)
        x = self.convs(x)
        summed: Tensor = (x if self.gate is None else self.gate(x)) + skip
        return summed


def _separable(before: int, width: int, kernel: Sizes, stride: Sizes, style: Style) -> tuple[nn.Module, ...]:
    """ReLU, a depthwise convolution and norm, a pointwise one and norm."""
    unit, dimensions = (1,) * len(kernel), len(kernel)
    return (
        nn.ReLU(),
        convolution(before, before, kernel, stride, bias=False, groups=before),
        norm_layer(style, before, dimensions),
        convolution(before, width, unit, unit, bias=False),
        norm_layer(style, width, dimensions),
    )


def _stage(before: int, width: int, kernel: Sizes, stride: Sizes, num: int, style: Style) -> nn.Sequential:
    unit = (1,) * len(kernel)
    return nn.Sequential(*(XceptionBlock(width if i else before, width, kernel, unit if i else stride, style) for i in range(num)))


def _problems(plan: NetworkPlan) -> Iterable[str]:
    yield from too_few_stages(plan, 3)


OPTIONS: dict[str, Option] = {"norm": "batch", "activation": "relu", "attention_features": 1000, "decoder_features": 32}
FAMILY = Family(name="dfanet", build=DFANet, options=OPTIONS, problems=_problems)
