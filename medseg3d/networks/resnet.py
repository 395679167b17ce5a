"""ResNet as an encoder that stops striding and dilates instead, so that features stay fine (He et al. 2016, Chen et al. 2017).

A plan's first stage is the image itself and has no convolutions; the second is the stem, the third begins with max pooling; the others'
``encoder_blocks`` are residual blocks. ResNet-50 is six stages with the features (any, 64, 256, 512, 1024, 2048) and 3, 4, 6, 3 blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock, SeparableConv
from medseg3d.networks.convolutions import Sizes
from medseg3d.networks.family import too_few_stages
from medseg3d.networks.resizing import overlapping_pooled
from medseg3d.networks.style import Style, activation_layer, gate_layer, style_of, whole
from medseg3d.plan import NetworkPlan, Option

STEM_KERNEL, EXPANSION = 7, 4
OPTIONS: dict[str, Option] = {"norm": "batch", "activation": "relu", "output_stride": 8, "block": "bottleneck", "stem": "single"}
CHOICES: dict[str, tuple[Option, ...]] = {
    "output_stride": (4, 8, 16, 32),  # voxels per feature along an axis, at most
    "block": ("basic", "bottleneck"),  # basic: ResNet-18 and 34
    "stem": ("single", "deep"),  # one convolution of 7, or three of 3 (PSPNet)
}


class ResNet(nn.Module):
    """Features of all stages from the stem on, coarsest last; ``widths`` are their channels."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit = style_of(plan.options), (1,) * plan.dimensions
        features = plan.features
        strides, dilations = dilated(plan.strides[1:], whole(plan.options, "output_stride"))
        self.pooling = strides[1] if len(strides) > 1 else unit
        self.stem = _stem(plan.in_channels, features[1], plan.kernel_sizes[1], strides[0], style, is_deep=plan.options["stem"] == "deep")
        before = 2 * features[1] if plan.options["stem"] == "deep" else features[1]
        self.widths = [before]
        stages: list[nn.Module] = []
        for stage in range(2, len(features)):
            width, kernel = features[stage], plan.kernel_sizes[stage]
            blocks = []
            for number in range(plan.encoder_blocks[stage]):
                stride = strides[stage - 1] if number == 0 and stage > 2 else unit
                dilation = dilations[stage - 2] if number == 0 else dilations[stage - 1]
                is_bottleneck = plan.options["block"] == "bottleneck"
                blocks.append(DilatedBlock(before, width, kernel, stride, dilation, style, is_bottleneck=is_bottleneck))
                before = width
            stages.append(nn.Sequential(*blocks))
            self.widths.append(width)
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """``(batch, in_channels, …)`` → features, finest first."""
        x = self.stem(x)
        found = [x]
        for place in range(len(self.stages)):
            x = self.stage(place, x)
            found.append(x)
        return found

    def stage(self, place: int, x: Tensor) -> Tensor:
        """One stage after the stem; the first begins with max pooling."""
        return self.stage_and_sum(place, x)[1]

    def stage_and_sum(self, place: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`stage`, and the sum of its last block before the activation."""
        x = x if place else overlapping_pooled(x, self.pooling)
        blocks = [cast(DilatedBlock, block) for block in cast(nn.Sequential, self.stages[place])]
        for block in blocks[:-1]:
            x = block(x)
        last = blocks[-1]
        summed = last.summed(x)
        return summed, last.activation(summed.clone())  # an activation in place would change the sum


class DilatedBlock(nn.Module):
    """Two convolutions or a bottleneck of three beside a projected skip; the stride and the dilation are the middle one's."""

    def __init__(
        self, before: int, width: int, kernel: Sizes, stride: Sizes, dilation: Sizes, style: Style, *, is_bottleneck: bool
    ) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        if is_bottleneck:
            inner = max(1, width // EXPANSION)
            convs = [
                ConvBlock(before, inner, unit, unit, style, bias=False),
                ConvBlock(inner, inner, kernel, stride, style, bias=False),
                ConvBlock(inner, width, unit, unit, style, bias=False, is_activated=False),
            ]
            dilate(convs[1], dilation)
        else:
            convs = [
                ConvBlock(before, width, kernel, stride, style, bias=False),
                ConvBlock(width, width, kernel, unit, style, bias=False, is_activated=False),
            ]
            for conv in convs:
                dilate(conv, dilation)
        self.convs = nn.Sequential(*convs)
        is_same = before == width and all(s == 1 for s in stride)
        self.projection = None if is_same else ConvBlock(before, width, unit, stride, style, bias=False, is_activated=False)
        self.gate = gate_layer(style, width, len(kernel))
        self.activation = activation_layer(style, width)

    def begins_at_zero(self) -> tuple[nn.Module, ...]:
        """What begins at zero, see :func:`~medseg3d.networks.blocks.initialize`."""
        return (cast(ConvBlock, self.convs[-1]).end,)

    def summed(self, x: Tensor) -> Tensor:
        """The sum before the activation."""
        skip = x if self.projection is None else self.projection(x)
        x = self.convs(x)
        before: Tensor = (x if self.gate is None else self.gate(x)) + skip
        return before

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, …)`` → ``(batch, width, … / stride)``."""
        activated: Tensor = self.activation(self.summed(x))
        return activated


def dilate(block: ConvBlock, dilation: Sizes) -> None:
    """Spread the kernel of a block's convolution; its size stays."""
    spread(block.conv.depthwise if isinstance(block.conv, SeparableConv) else block.conv, dilation)


def spread(conv: nn.Module, dilation: Sizes) -> None:
    """Spread the kernel of a convolution; its size stays."""
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    conv.dilation = tuple(dilation)
    conv.padding = tuple((k - 1) // 2 * d for k, d in zip(conv.kernel_size, dilation, strict=True))


def dilated(strides: Sequence[Sizes], output_stride: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Strides and dilations per stage, so that no axis has more than ``output_stride`` voxels per feature.

    >>> dilated([(2,), (2,), (2,), (2,), (2,)], 8)
    ([(2,), (2,), (2,), (1,), (1,)], [(1,), (1,), (1,), (2,), (4,)])
    """
    reached, spread = [1] * len(strides[0]), [1] * len(strides[0])
    kept, dilations = [], []
    for stride in strides:
        own = []
        for axis, step in enumerate(stride):
            is_kept = reached[axis] * step <= output_stride
            reached[axis] *= step if is_kept else 1
            spread[axis] *= 1 if is_kept else step
            own.append(step if is_kept else 1)
        kept.append(tuple(own))
        dilations.append(tuple(spread))
    return kept, dilations


def _stem(before: int, width: int, kernel: Sizes, stride: Sizes, style: Style, *, is_deep: bool) -> nn.Module:
    unit = (1,) * len(kernel)
    if not is_deep:
        return ConvBlock(before, width, tuple(STEM_KERNEL if k > 1 else 1 for k in kernel), stride, style, bias=False)
    layers = ((before, width, stride), (width, width, unit), (width, 2 * width, unit))
    return nn.Sequential(*(ConvBlock(come, go, kernel, step, style, bias=False) for come, go, step in layers))


def problems(plan: NetworkPlan) -> Iterable[str]:
    """What this encoder cannot build."""
    yield from too_few_stages(plan, 3)
