"""Encoders that may take each other's place: how a stage is made, and trunks of such stages in 2D and 3D.

A stage is a module ``(batch, before, …)`` → ``(batch, width, … / stride)``; :data:`STAGES` makes them for U-Nets. A trunk gives the
features of all stages, which stop striding and dilate from ``output_stride`` on; :func:`encoder_of` makes them for networks with a head on
top.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn

from medseg3d.networks import resnet
from medseg3d.networks.blocks import MIN_SEPARABLE_CHANNELS, ConvBlock, ConvStack, ResidualStack
from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.dla import STEM_KERNEL, Kind, Tree
from medseg3d.networks.fast_scnn import InvertedBottleneck
from medseg3d.networks.resizing import overlapping_pooled
from medseg3d.networks.style import Style, gate_layer, gates, norm_layer, style_of, whole
from medseg3d.plan import NetworkPlan, Option

Stage = Callable[[int, int, Sizes, Sizes, int, Style], nn.Module]
"""Channels before and after, kernel, stride, number of blocks, style."""


def trees(before: int, width: int, kernel: Sizes, stride: Sizes, num_blocks: int, style: Style, *, sees_input: bool = False) -> nn.Module:
    """Deep layer aggregation: a tree of as many blocks as fit ``num_blocks``, 2 at least (Yu et al. 2018)."""
    kind = Kind(is_bottleneck=False, adds_child=False, style=style)
    return Tree(max(1, num_blocks.bit_length() - 1), before, width, kernel, stride, kind, sees_input=sees_input)


def separable(before: int, width: int, kernel: Sizes, stride: Sizes, num_blocks: int, style: Style) -> nn.Module:
    """MobileNet's blocks: a depthwise and a pointwise convolution, each with norm and activation (Howard et al. 2017)."""
    unit, style = (1,) * len(kernel), replace(style, separable=True)
    convs = (ConvBlock(width if i else before, width, kernel, unit if i else stride, style, bias=False) for i in range(num_blocks))
    return nn.Sequential(*convs, *gates(style, width, len(kernel)))


def inverted(before: int, width: int, kernel: Sizes, stride: Sizes, num_blocks: int, style: Style) -> nn.Module:
    """MobileNetV2's blocks, wide inside (Sandler et al. 2018); an image's few channels are convolved in full first."""
    unit = (1,) * len(kernel)
    first = ConvBlock(before, width, kernel, stride, style, bias=False) if before < MIN_SEPARABLE_CHANNELS else None
    rest = (
        InvertedBottleneck(width if i or first else before, width, kernel, unit if i or first else stride, style)
        for i in range(num_blocks - (first is not None))
    )
    return nn.Sequential(*([] if first is None else [first]), *rest)


def xception(before: int, width: int, kernel: Sizes, stride: Sizes, num_blocks: int, style: Style) -> nn.Module:
    """Xception's blocks (Chollet 2017): the first has two convolutions, a stride and a projected skip, the others three and their input."""
    unit = (1,) * len(kernel)
    blocks = [XceptionModule((before, width, width), kernel, stride, style)]
    blocks += [XceptionModule((width,) * 4, kernel, unit, style) for _ in range(num_blocks - 1)]
    return nn.Sequential(*blocks)


class XceptionModule(nn.Module):
    """Separable convolutions without anything between their two parts, each after an activation, beside a skip; pooling at the end.

    ``widths`` are the channels before, between and after them.
    """

    def __init__(self, widths: tuple[int, ...], kernel: Sizes, stride: Sizes, style: Style, *, begins_activated: bool = True) -> None:
        super().__init__()
        unit, dimensions = (1,) * len(kernel), len(kernel)
        self.stride = tuple(stride)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            if number or begins_activated:
                layers.append(nn.ReLU())
            layers += separable_pair(before, after, kernel, style)
        self.convs = nn.Sequential(*layers)
        self.gate = gate_layer(style, widths[-1], dimensions)
        is_same = widths[0] == widths[-1] and all(s == 1 for s in stride)
        self.skip = None if is_same else ConvBlock(widths[0], widths[-1], unit, stride, style, bias=False, is_activated=False)

    def begins_at_zero(self) -> tuple[nn.Module, ...]:
        """What begins at zero, see :func:`~medseg3d.networks.blocks.initialize`."""
        end = self.convs[-1]
        return (self.convs[-2] if isinstance(end, nn.Identity) else end,)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, widths[0], …)`` → ``(batch, widths[-1], … / stride)``."""
        skip = x if self.skip is None else self.skip(x)
        x = self.convs(x)
        x = x if self.gate is None else self.gate(x)
        return skip + (x if all(s == 1 for s in self.stride) else overlapping_pooled(x, self.stride))


def separable_pair(before: int, after: int, kernel: Sizes, style: Style) -> tuple[nn.Module, ...]:
    """A depthwise convolution, a pointwise one, and a norm; an image's few channels are convolved in full."""
    unit = (1,) * len(kernel)
    if before < MIN_SEPARABLE_CHANNELS:
        return convolution(before, after, kernel, unit, bias=False), norm_layer(style, after, len(kernel))
    depthwise: Any = convolution(before, before, kernel, unit, bias=False, groups=before)
    depthwise.keeps_size = True  # no norm follows it
    return cast(nn.Module, depthwise), convolution(before, after, unit, unit, bias=False), norm_layer(style, after, len(kernel))


STAGES: dict[str, Stage] = {
    "plain": ConvStack,
    "residual": ResidualStack,
    "dla": trees,
    "separable": separable,
    "mobilenet": inverted,
    "xception": xception,
}
"""What the stages of an encoder are made of, by their name in a plan. Alpha and rho are ``network.width_multiplier`` and
``spacing.resolution_multiplier`` of a planner."""


class Trunk(nn.Module):
    """Features of all stages from the stem on, coarsest last, as :class:`~medseg3d.networks.resnet.ResNet` gives them.

    ``widths`` are their channels. A stage's first convolution has its stride; there is no max pooling between stem and stages.
    """

    def __init__(self, plan: NetworkPlan, kind: str) -> None:
        super().__init__()
        style, features, kernels = style_of(plan.options), plan.features, plan.kernel_sizes
        strides, dilations = resnet.dilated(plan.strides[1:], whole(plan.options, "output_stride"))
        self.stem = _STEMS.get(kind, _plain_stem)(plan.in_channels, features[1], kernels[1], strides[0], plan.encoder_blocks[1], style)
        self.widths = list(features[1:])
        self.stages = nn.ModuleList()
        for stage in range(2, len(features)):
            given = (features[stage - 1], features[stage], kernels[stage], strides[stage - 1], plan.encoder_blocks[stage], style)
            if kind == "dla":
                made = trees(*given, sees_input=stage > 2)
            elif kind == "xception" and stage == len(features) - 1 and stage > 2:
                made = _xception_exit(*given)
            else:
                made = STAGES[kind](*given)
            _dilate(made, dilations[stage - 1])
            self.stages.append(made)

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(batch, in_channels, …)`` → features, finest first."""
        found = [self.stem(x)]
        for place in range(len(self.stages)):
            found.append(self.stage(place, found[-1]))
        return found

    def stage(self, place: int, x: Tensor) -> Tensor:
        """One stage after the stem."""
        features: Tensor = self.stages[place](x)
        return features

    def stage_and_sum(self, place: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`stage`, twice: not all of these blocks end in a sum."""
        x = self.stage(place, x)
        return x, x


def encoder_of(plan: NetworkPlan) -> resnet.ResNet | Trunk:
    """The encoder that a plan's option names."""
    kind = str(plan.options["encoder"])
    return resnet.ResNet(plan) if kind == "residual" else Trunk(plan, kind)


def _plain_stem(before: int, width: int, kernel: Sizes, stride: Sizes, num_blocks: int, style: Style) -> nn.Module:
    return ConvStack(before, width, kernel, stride, num_blocks, style)


def _wide_stem(before: int, width: int, kernel: Sizes, stride: Sizes, num_blocks: int, style: Style) -> nn.Module:
    wide = tuple(STEM_KERNEL if k > 1 else 1 for k in kernel)
    return ConvBlock(before, width, wide, stride, style, bias=False)


def _separable_stem(before: int, width: int, kernel: Sizes, stride: Sizes, num_blocks: int, style: Style) -> nn.Module:
    """A full convolution to half of the features, then separable ones."""
    unit, half = (1,) * len(kernel), max(1, width // 2)
    return nn.Sequential(
        ConvBlock(before, half, kernel, stride, replace(style, separable=False), bias=False),
        separable(half, width, kernel, unit, num_blocks, style),
    )


def _xception_stem(before: int, width: int, kernel: Sizes, stride: Sizes, num_blocks: int, style: Style) -> nn.Module:
    unit, half = (1,) * len(kernel), max(1, width // 2)
    return nn.Sequential(
        ConvBlock(before, half, kernel, stride, style, bias=False), ConvBlock(half, width, kernel, unit, style, bias=False)
    )


def _xception_exit(before: int, width: int, kernel: Sizes, stride: Sizes, num_blocks: int, style: Style) -> nn.Module:
    """Half of the features at the end of a block that widens late, then three quarters and all of them by single convolutions."""
    half, wide = max(1, width // 2), max(1, 3 * width // 4)
    return nn.Sequential(
        XceptionModule((before, before, half), kernel, stride, style),
        *(*separable_pair(half, wide, kernel, style), nn.ReLU(), *separable_pair(wide, width, kernel, style), nn.ReLU()),
    )


_STEMS: dict[str, Stage] = {"dla": _wide_stem, "separable": _separable_stem, "mobilenet": _separable_stem, "xception": _xception_stem}


def _dilate(stage: nn.Module, dilation: Sizes) -> None:
    """Spread all kernels of a stage along the axes that are not strided any more."""
    if all(d == 1 for d in dilation):
        return
    for module in stage.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and any(k > 1 for k in module.kernel_size):
            resnet.spread(module, dilation)


OPTIONS: dict[str, Option] = {**resnet.OPTIONS, "encoder": "residual"}
CHOICES: dict[str, tuple[Option, ...]] = {**resnet.CHOICES, "encoder": tuple(STAGES)}  # residual: ResNet, the others trunks of such stages
