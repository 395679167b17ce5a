"""SegNet: the decoder puts features back where the encoder's max pooling took them from (Badrinarayanan et al. 2017).

Only the indices of the maxima cross from encoder to decoder, no features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.convolutions import convolution
from medseg3d.networks.family import Family, deep_supervision, too_few_stages
from medseg3d.networks.style import Style, gates, style_of
from medseg3d.plan import NetworkPlan, Option


class SegNet(nn.Module):
    """Stages of convolutions, each but the last of the plan followed by pooling; the last stage is what is left after the last pooling.

    It has no convolutions: the decoder unpools it at once, as published, so that five poolings are a plan of six stages. The last
    convolution of a decoder stage makes the features of the next finer stage; that of the finest makes the logits, without norm and
    activation. Sizes need not be divisible by the strides.
    """

    deep_supervision = False

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style = style_of(plan.options)
        depth = len(plan.features) - 1
        self.strides = tuple(tuple(stride) for stride in plan.strides[1:])
        self.encoder = nn.ModuleList(
            _stack(
                (plan.features[stage - 1] if stage else plan.in_channels, *(plan.features[stage],) * plan.encoder_blocks[stage]),
                plan.kernel_sizes[stage],
                style,
            )
            for stage in range(depth)
        )
        self.decoder = nn.ModuleList(
            _stack(
                (*(plan.features[stage],) * plan.decoder_blocks[depth - 1 - stage], *(plan.features[stage - 1],) * (stage > 0)),
                plan.kernel_sizes[stage],
                style,
            )
            for stage in reversed(range(depth))
        )
        self.head = convolution(plan.features[0], plan.num_classes, plan.kernel_sizes[0], (1,) * plan.dimensions)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for every voxel."""
        crossing = []
        for convs, stride in zip(self.encoder, self.strides, strict=True):
            x = convs(x)
            size = x.shape[2:]
            x, indices = _pooled_with_indices(x, stride)
            crossing.append((indices, stride, size))
        for convs, (indices, stride, size) in zip(self.decoder, reversed(crossing), strict=True):
            x = convs(_unpooled(x, indices, stride, size))
        logits: Tensor = self.head(x)
        return logits


def _stack(widths: Sequence[int], kernel_size: Sequence[int], style: Style) -> nn.Sequential:
    unit = (1,) * len(kernel_size)
    convs = (ConvBlock(before, after, kernel_size, unit, style) for before, after in pairwise(widths))
    return nn.Sequential(*convs, *gates(style, widths[-1], len(kernel_size)))


def _pooled_with_indices(x: Tensor, stride: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Incomplete windows at the end are pooled as well, so that every size passes."""
    pool = F.max_pool2d if len(stride) == 2 else F.max_pool3d
    pooled, indices = pool(x, stride, stride, ceil_mode=True, return_indices=True)
    return pooled, indices


def _unpooled(x: Tensor, indices: Tensor, stride: tuple[int, ...], size: Sequence[int]) -> Tensor:
    unpool = F.max_unpool2d if len(stride) == 2 else F.max_unpool3d
    return unpool(x, indices, stride, stride, output_size=list(size))


def _problems(plan: NetworkPlan) -> Iterable[str]:
    yield from too_few_stages(plan, 2)
    yield from deep_supervision(plan)


OPTIONS: dict[str, Option] = {"norm": "batch", "activation": "relu"}
FAMILY = Family(name="segnet", build=SegNet, options=OPTIONS, problems=_problems)
