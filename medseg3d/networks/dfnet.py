"""DF-Net with a light decoder: encoders found by partial order pruning (Li et al. 2019), in two sizes.

A plan's first stage is the image, the next two are convolutions with a stride, the others residual blocks. Behind the last stage
(version 1) or behind each (version 2) stand blocks of twice its features. Published are six stages with the features
(any, 32, 64, 64, 128, 256), and 3, 3, 3 blocks or 2, 10, 4.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.context_heads import PyramidPooling
from medseg3d.networks.convolutions import convolution
from medseg3d.networks.family import Family, deep_supervision, too_few_stages
from medseg3d.networks.resizing import resized
from medseg3d.networks.resnet import DilatedBlock
from medseg3d.networks.style import style_of, whole
from medseg3d.plan import NetworkPlan, Option

STEM_STAGES, FUSED, BINS = 2, 2, (1, 2, 3, 6)


class DFNet(nn.Module):
    """Logits at the size of the finest fused stage, brought to that of the input."""

    deep_supervision = False

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit, features, kernels = style_of(plan.options), (1,) * plan.dimensions, plan.features, plan.kernel_sizes
        is_second, width = plan.options["version"] == 2, whole(plan.options, "decoder_features")
        stem = min(STEM_STAGES, len(features) - 1)
        before = plan.in_channels
        self.stem = nn.Sequential()
        for stage in range(1, stem + 1):
            self.stem.append(ConvBlock(before, features[stage], kernels[stage], plan.strides[stage], style, bias=False))
            before = features[stage]
        parts: list[nn.Module] = []
        widths: list[int] = []

        def blocks(goal: int, num: int, stage: int, *, is_strided: bool) -> nn.Sequential:
            nonlocal before
            made = nn.Sequential()
            for number in range(num):
                stride = plan.strides[stage] if is_strided and number == 0 else unit
                made.append(DilatedBlock(before, goal, kernels[stage], stride, unit, style, is_bottleneck=False))
                before = goal
            return made

        last = len(features) - 1
        for stage in range(stem + 1, len(features)):
            part = blocks(features[stage], plan.encoder_blocks[stage], stage, is_strided=True)
            if is_second:
                part.extend(blocks(2 * features[stage], 1 + (stage == last), stage, is_strided=False))
            parts.append(part)
            widths.append(before)
        if not is_second or not parts:
            parts.append(blocks(2 * features[last], 1, last, is_strided=False))
            widths.append(before)
        self.parts = nn.ModuleList(parts)
        self.pyramid = PyramidPooling(before, width, BINS, plan.dimensions, style, is_activated=False)
        self.merge = nn.Sequential(ConvBlock(before + len(BINS) * width, width, unit, unit, style, bias=False), nn.Dropout(0.1))
        self.of_context = convolution(width, width, unit, unit)
        skips = widths[-2::-1][:FUSED]
        self.lateral = nn.ModuleList(convolution(skip, width, unit, unit) for skip in skips)
        self.fuse = nn.ModuleList(convolution(2 * width, width, kernels[-1], unit, bias=False) for _ in skips)
        self.head = nn.Sequential(
            ConvBlock(width, width, kernels[-1], unit, style), nn.Dropout(0.1), convolution(width, plan.num_classes, unit, unit)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, num_classes, …)`` of the input's size."""
        size = x.shape[2:]
        x = self.stem(x)
        found = []
        for part in self.parts:
            x = part(x)
            found.append(x)
        x = self.of_context(self.merge(self.pyramid(x)))
        for skip, lateral, fuse in zip(reversed(found[:-1]), self.lateral, self.fuse, strict=False):
            x = fuse(torch.cat((resized(x, skip.shape[2:]), lateral(skip)), 1))
        return resized(self.head(x), size)


def _problems(plan: NetworkPlan) -> Iterable[str]:
    yield from too_few_stages(plan, 2)
    yield from deep_supervision(plan)


OPTIONS: dict[str, Option] = {"norm": "batch", "activation": "relu", "version": 1, "decoder_features": 128}
CHOICES: dict[str, tuple[Option, ...]] = {"version": (1, 2)}
FAMILY = Family(name="dfnet", build=DFNet, options=OPTIONS, choices=CHOICES, problems=_problems)
