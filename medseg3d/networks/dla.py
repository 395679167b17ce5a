"""Deep Layer Aggregation: an encoder of trees whose roots merge all their parts, and a decoder that merges all stages (Yu et al. 2018).

The published networks have six stages: a convolution of 7, two stages of plain convolutions, four of trees. A plan's ``encoder_blocks`` are
the convolutions of the first two stages and the depths of the trees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock, initialize
from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.family import Family, deep_supervision
from medseg3d.networks.normalization import channels_last
from medseg3d.networks.resizing import bilinear_up, fill, pooled, upsampled
from medseg3d.networks.style import Style, activation_layer, gate_layer, style_of
from medseg3d.plan import NetworkPlan, Option

STEM_KERNEL = 7


class DeepLayerAggregation(nn.Module):
    """Encoder of trees, iterative aggregation up, one head.

    ``head_stage`` 1 puts the head on the second stage and brings its logits up by a fixed linear interpolation, as published; 0 on the
    finest.
    """

    deep_supervision = False

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit = style_of(plan.options), (1,) * plan.dimensions
        kind = Kind(is_bottleneck=plan.options["block"] == "bottleneck", adds_child=bool(plan.options["residual_root"]), style=style)
        features, kernels = plan.features, plan.kernel_sizes
        self.first = min(int(plan.options["head_stage"] == 1), len(features) - 1)
        self.strides = tuple(tuple(stride) for stride in plan.strides)
        stem = tuple(STEM_KERNEL if kernel > 1 else 1 for kernel in kernels[0])
        self.stem = ConvBlock(plan.in_channels, features[0], stem, unit, style, bias=False)
        stages: list[nn.Module] = []
        for stage, (width, kernel, stride, num) in enumerate(zip(features, kernels, self.strides, plan.encoder_blocks, strict=True)):
            before = features[stage - 1] if stage else features[0]
            if stage < 2:
                stages.append(
                    nn.Sequential(
                        *(
                            ConvBlock(width if i else before, width, kernel, unit if i or not stage else stride, style, bias=False)
                            for i in range(num)
                        )
                    )
                )
            else:
                stages.append(Tree(num, before, width, kernel, stride, kind, sees_input=stage > 2))
        self.stages = nn.ModuleList(stages)
        self.up = nn.ModuleList(
            Aggregation(features[target:], kernels[target], self.strides[target + 1], is_first=target == len(features) - 2, style=style)
            for target in reversed(range(self.first, len(features) - 1))
        )
        self.head = convolution(features[self.first], plan.num_classes, unit, unit)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for every voxel."""
        size = x.shape[2:]
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=channels_last(x))
        x = self.stem(x)
        layers = []
        for stage in self.stages:
            x = stage(x)
            layers.append(x)
        layers = layers[self.first :]
        for place, aggregation in enumerate(self.up):
            start = len(layers) - 2 - place
            layers[start + 1 :] = aggregation(layers[start:])
        logits: Tensor = self.head(layers[-1])
        for stride in reversed(self.strides[1 : self.first + 1]):
            logits = upsampled(logits, stride)
        for axis, length in enumerate(size, start=2):
            logits = logits.narrow(axis, 0, length)
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How the blocks and roots of a network are made."""

    is_bottleneck: bool
    adds_child: bool
    style: Style


class Tree(nn.Module):
    """``depth`` 1: two blocks and a root that merges them; deeper: two trees, whose common root sees the first as well.

    With ``sees_input`` the root also sees the pooled input. ``seen`` is how many channels a root sees besides its two blocks.
    """

    def __init__(
        self, depth: int, before: int, width: int, kernel: Sizes, stride: Sizes, kind: Kind, *, sees_input: bool = False, seen: int = 0
    ) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        self.stride, self.sees_input = tuple(stride), sees_input
        seen += before if sees_input else 0
        self.root: Root | None = None
        self.projection: ConvBlock | None = None
        if depth == 1:
            self.first: nn.Module = Block(before, width, kernel, stride, kind)
            self.second: nn.Module = Block(width, width, kernel, unit, kind)
            self.root = Root(2 * width + seen, width, len(kernel), kind)
            if before != width:
                self.projection = ConvBlock(before, width, unit, unit, kind.style, bias=False, is_activated=False)
        else:
            self.first = Tree(depth - 1, before, width, kernel, stride, kind)
            self.second = Tree(depth - 1, width, width, kernel, unit, kind, seen=seen + width)

    def forward(self, x: Tensor, seen: Sequence[Tensor] = ()) -> Tensor:
        """``seen`` are the features that the root sees as well."""
        bottom = x if all(s == 1 for s in self.stride) else pooled(x, self.stride, is_whole=False)
        children = [*seen, bottom] if self.sees_input else list(seen)
        if self.root is None:
            first = self.first(x)
            deeper: Tensor = self.second(first, [*children, first])
            return deeper
        first = self.first(x, bottom if self.projection is None else self.projection(bottom))
        second = self.second(first, first)
        merged: Tensor = self.root([second, first, *children])
        return merged


class Block(nn.Module):
    """Two convolutions, or a bottleneck of three, beside a skip that is given."""

    def __init__(self, before: int, width: int, kernel: Sizes, stride: Sizes, kind: Kind) -> None:
        super().__init__()
        unit, style = (1,) * len(kernel), kind.style
        inner = width // 2 if kind.is_bottleneck else width
        layers = [(before, inner, unit, unit), (inner, inner, kernel, stride), (inner, width, unit, unit)]
        if not kind.is_bottleneck:
            layers = [(before, width, kernel, stride), (width, width, kernel, unit)]
        self.convs = nn.Sequential(
            *(ConvBlock(*layer, style, bias=False, is_activated=i < len(layers) - 1) for i, layer in enumerate(layers))
        )
        self.gate = gate_layer(style, width, len(kernel))
        self.activation = activation_layer(style, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``skip`` has the size and the features of the result."""
        x = self.convs(x)
        summed: Tensor = self.activation((x if self.gate is None else self.gate(x)) + skip)
        return summed


class Root(nn.Module):
    """A pointwise convolution over all children; with ``adds_child`` the first of them is added."""

    def __init__(self, before: int, width: int, dimensions: int, kind: Kind) -> None:
        super().__init__()
        unit = (1,) * dimensions
        self.conv = ConvBlock(before, width, unit, unit, kind.style, bias=False, is_activated=False)
        self.adds_child = kind.adds_child
        self.activation = activation_layer(kind.style, width)

    def forward(self, children: Sequence[Tensor]) -> Tensor:
        """All of one size."""
        x = self.conv(torch.cat(tuple(children), 1))
        merged: Tensor = self.activation(x + children[0] if self.adds_child else x)
        return merged


class Aggregation(nn.Module):
    """A stage and all layers of the next coarser size: these are projected and brought up, then merged one after the other.

    ``features`` are those of the stage and of all coarser ones; behind the first aggregation coarser layers have the features of the
    next coarser stage.
    """

    def __init__(self, features: Sizes, kernel: Sizes, stride: Sizes, *, is_first: bool, style: Style) -> None:
        super().__init__()
        unit, width = (1,) * len(kernel), features[0]
        coarser = features[1:] if is_first else (features[1],) * (len(features) - 1)
        self.projections = nn.ModuleList(
            nn.Identity() if before == width else ConvBlock(before, width, unit, unit, style, bias=False) for before in coarser
        )
        self.up = nn.ModuleList(bilinear_up(width, stride) for _ in coarser)
        self.nodes = nn.ModuleList(ConvBlock(2 * width, width, kernel, unit, style, bias=False) for _ in coarser)

    def forward(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """The merged layers, as many as were coarser."""
        x, merged = layers[0], []
        for layer, projection, up, node in zip(layers[1:], self.projections, self.up, self.nodes, strict=True):
            x = node(torch.cat((x, up(projection(layer))), 1))
            merged.append(x)
        return merged


def _build(plan: NetworkPlan) -> nn.Module:
    network = DeepLayerAggregation(plan)
    initialize(network)
    for module in network.modules():
        if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            fill(module)
    return network


def _problems(plan: NetworkPlan) -> Iterable[str]:
    yield from deep_supervision(plan)


OPTIONS: dict[str, Option] = {"norm": "batch", "activation": "relu", "block": "basic", "residual_root": False, "head_stage": 1}
CHOICES: dict[str, tuple[Option, ...]] = {
    "block": ("basic", "bottleneck"),  # bottleneck: DLA-60 and deeper
    "residual_root": (False, True),  # True: DLA-102 and deeper
    "head_stage": (0, 1),
}
FAMILY = Family(name="dla", build=_build, options=OPTIONS, choices=CHOICES, problems=_problems, keeps_weights=True)
