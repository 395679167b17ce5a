"""ESPNet: pyramids of dilated convolutions over few channels, and a decoder in the space of the classes (Mehta et al. 2018).

A plan's first stage is the image, the second a convolution with a stride, each other one a pyramid with a stride and ``encoder_blocks``
more without.
The published network is four stages with the features (any, 16, 64, 128), two and three blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.convolutions import Sizes, convolution, transposed_convolution
from medseg3d.networks.family import Family, deep_supervision, too_few_stages
from medseg3d.networks.resizing import resized
from medseg3d.networks.resnet import spread
from medseg3d.networks.style import Style, activation_layer, gate_layer, norm_layer, style_of
from medseg3d.plan import NetworkPlan, Option

RATES = (1, 2, 4, 8, 16)


class ESPNet(nn.Module):
    """Logits of the input's size; with ``decoder`` ``none`` those of the coarsest stage, interpolated (ESPNet-C).

    The decoder works on as many channels as classes, as published, but on five at least: a pyramid has five branches.
    """

    deep_supervision = False

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit, features, kernels = style_of(plan.options), (1,) * plan.dimensions, plan.features, plan.kernel_sizes
        last = len(features) - 1
        self.strides = tuple(tuple(stride) for stride in plan.strides)
        self.stem = ConvBlock(plan.in_channels, features[1], kernels[1], plan.strides[1], style, bias=False)
        self.stem_norm = NormActivation(features[1] + plan.in_channels, plan.dimensions, style)
        seen = features[1] + plan.in_channels
        self.down, self.blocks, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage in range(2, len(features)):
            self.down.append(Pyramid(seen, features[stage], kernels[stage], plan.strides[stage], style, adds_input=False))
            self.blocks.append(
                nn.Sequential(
                    *(
                        Pyramid(features[stage], features[stage], kernels[stage], unit, style, adds_input=True)
                        for _ in range(plan.encoder_blocks[stage])
                    )
                )
            )
            seen = 2 * features[stage] + (plan.in_channels if stage < last else 0)
            self.norms.append(NormActivation(seen, plan.dimensions, style))
        width = plan.num_classes if plan.options["decoder"] == "none" else max(plan.num_classes, len(RATES))
        self.score = convolution(seen, width, unit, unit, bias=False)
        self.decoder = None if plan.options["decoder"] == "none" else _Decoder(plan, width, style)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, num_classes, …)``."""
        size, image = x.shape[2:], x
        x = self.stem(x)
        image = _halved(image, self.strides[1])
        x = self.stem_norm(torch.cat((x, image), 1))
        stages = [x]
        for place, (down, blocks, norm) in enumerate(zip(self.down, self.blocks, self.norms, strict=True)):
            first = down(x)
            deep = blocks(first)
            if place < len(self.down) - 1:
                image = _halved(image, self.strides[place + 2])
                x = norm(torch.cat((deep, first, image), 1))
            else:
                x = norm(torch.cat((first, deep), 1))
            stages.append(x)
        x = self.score(x)
        if self.decoder is not None:
            x = self.decoder(x, stages)
        return resized(x, size)


class _Decoder(nn.Module):
    """Transposed convolutions up, at each stage a pyramid over its projection and what comes from below."""

    def __init__(self, plan: NetworkPlan, width: int, style: Style) -> None:
        super().__init__()
        unit, features, last = (1,) * plan.dimensions, plan.features, len(plan.features) - 1
        self.norm = norm_layer(style, width, plan.dimensions)
        inner = list(reversed(range(2, last)))
        self.up = nn.ModuleList(transposed_convolution(width, width, plan.strides[stage + 1], bias=False) for stage in [*inner, 1])
        self.project = nn.ModuleList(convolution(2 * features[s] + plan.in_channels, width, unit, unit, bias=False) for s in inner)
        self.combine = nn.ModuleList(
            nn.Sequential(
                NormActivation(2 * width, plan.dimensions, style),
                Pyramid(2 * width, width, plan.kernel_sizes[stage], unit, style, adds_input=False),
            )
            for stage in inner
        )
        self.last_norm = NormActivation(width, plan.dimensions, style) if inner else nn.Identity()
        self.merge = ConvBlock(features[1] + plan.in_channels + width, width, plan.kernel_sizes[1], unit, style, bias=False)
        self.out = transposed_convolution(width, plan.num_classes, plan.strides[1], bias=False)

    def forward(self, x: Tensor, stages: list[Tensor]) -> Tensor:
        x = self.norm(x)
        for place, (project, combine) in enumerate(zip(self.project, self.combine, strict=True)):
            skip = stages[-2 - place]
            x = combine(torch.cat((project(skip), resized(self.up[place](x), skip.shape[2:])), 1))
        x = self.last_norm(resized(self.up[-1](x), stages[0].shape[2:]))
        logits: Tensor = self.out(self.merge(torch.cat((x, stages[0]), 1)))
        return logits


class NormActivation(nn.Sequential):
    """A norm and an activation."""

    def __init__(self, channels: int, dimensions: int, style: Style) -> None:
        super().__init__(norm_layer(style, channels, dimensions), activation_layer(style, channels))


class Pyramid(nn.Module):
    """Efficient spatial pyramid: reduce, five dilated convolutions side by side, sums from narrow to wide, and all of them merged.

    With a stride the reduction has the kernel and carries the stride; otherwise it is pointwise.
    """

    def __init__(self, before: int, width: int, kernel: Sizes, stride: Sizes, style: Style, *, adds_input: bool) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        narrow = max(1, width // len(RATES))
        is_strided = any(s != 1 for s in stride)
        self.reduce = convolution(before, narrow, kernel if is_strided else unit, stride, bias=False)
        widths = (width - (len(RATES) - 1) * narrow, *(narrow,) * (len(RATES) - 1))
        self.branches = nn.ModuleList()
        for rate, own in zip(RATES, widths, strict=True):
            branch = convolution(narrow, own, kernel, unit, bias=False)
            spread(branch, tuple(rate if k > 1 else 1 for k in kernel))
            self.branches.append(branch)
        self.gate = gate_layer(style, width, len(kernel))
        self.end = NormActivation(width, len(kernel), style)
        self.adds_input = adds_input

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, …)`` → ``(batch, width, … / stride)``."""
        reduced = self.reduce(x)
        parts = [branch(reduced) for branch in self.branches]
        for place in range(2, len(parts)):
            parts[place] = parts[place] + parts[place - 1]
        merged = torch.cat(parts, 1)
        merged = merged if self.gate is None else self.gate(merged)
        result: Tensor = self.end(x + merged if self.adds_input else merged)
        return result


def _halved(x: Tensor, stride: Sizes) -> Tensor:
    """Means over overlapping windows, as published: of 3 where the stride is 2."""
    kernel = tuple(2 * s - 1 for s in stride)
    pool = F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d
    return pool(x, kernel, tuple(stride), tuple((k - 1) // 2 for k in kernel))


def _problems(plan: NetworkPlan) -> Iterable[str]:
    yield from too_few_stages(plan, 3)
    if any(width < len(RATES) for width in plan.features[2:]):
        yield f"features {plan.features}: a pyramid needs {len(RATES)} at least"
    yield from deep_supervision(plan)


OPTIONS: dict[str, Option] = {"norm": "batch", "activation": "prelu", "decoder": "pyramid"}
CHOICES: dict[str, tuple[Option, ...]] = {"decoder": ("pyramid", "none")}
FAMILY = Family(name="espnet", build=ESPNet, options=OPTIONS, choices=CHOICES, problems=_problems)
