"""Fully convolutional networks: FCN-32s, 16s and 8s (Long, Shelhamer, Darrell 2015), in 2D and 3D.

A classifier's convolutions (VGG's), its fully connected layers as convolutions, and scores that are brought back by fixed bilinear
transposed convolutions; finer scores are **added** on the way. With another ``encoder`` than ``vgg`` it is torchvision's network of that
name: a dilated encoder and a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks import encoders, resnet
from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.context_heads import auxiliary_head
from medseg3d.networks.convolutions import convolution
from medseg3d.networks.family import Family, deep_supervision, too_few_stages
from medseg3d.networks.resizing import resized, upsampled
from medseg3d.networks.style import dropout_layer, gates, style_of, whole
from medseg3d.plan import NetworkPlan, Option


class FCN(nn.Module):
    """All stages but the last are convolutions, each followed by max pooling; the last stage is the classifier, fc6 and fc7.

    Its features are their width (4096 as published), and fc6 has a kernel of ``classifier_kernel`` voxels along axes whose kernel in the
    plan is larger than 1. ``skips`` is how many finer stages add their scores: 0 is FCN-32s, 1 is 16s, 2 is 8s, for a plan of six stages.
    Sizes need not be divisible by the strides: windows at the end are padded, and the logits cropped.
    """

    deep_supervision = False

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit = style_of(plan.options), (1,) * plan.dimensions
        features, depth = plan.features, len(plan.features) - 1
        self.strides = tuple(tuple(stride) for stride in plan.strides[1:])
        self.trunk = nn.ModuleList(
            nn.Sequential(
                *(
                    ConvBlock(before, after, plan.kernel_sizes[stage], unit, style)
                    for before, after in pairwise(
                        (features[stage - 1] if stage else plan.in_channels, *(features[stage],) * plan.encoder_blocks[stage])
                    )
                ),
                *gates(style, features[stage], plan.dimensions),
            )
            for stage in range(depth)
        )
        wide = tuple(whole(plan.options, "classifier_kernel") if kernel > 1 else 1 for kernel in plan.kernel_sizes[-1])
        half = dropout_layer(style_of({**plan.options, "dropout": plan.options["classifier_dropout"]}), plan.dimensions)
        layers: list[nn.Module] = []
        for before, kernel in ((features[-2], wide), (features[-1], unit)):
            layers += [ConvBlock(before, features[-1], kernel, unit, style), *([] if half is None else [half])]
        self.classifier = nn.Sequential(*layers)
        num_skips = min(_skips(plan), depth - 1)
        widths = (features[-1], *(features[stage] for stage in reversed(range(depth - num_skips - 1, depth - 1))))
        self.scores = nn.ModuleList(convolution(width, plan.num_classes, unit, unit) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """Logits for every voxel."""
        sizes, pools = [x.shape[2:]], []
        for convs, stride in zip(self.trunk, self.strides, strict=True):
            pool = F.max_pool2d if len(stride) == 2 else F.max_pool3d
            x = pool(convs(x), stride, stride, ceil_mode=True)
            pools.append(x)
            sizes.append(x.shape[2:])
        logits: Tensor = self.scores[0](self.classifier(x))
        level = len(self.strides)
        for score, skip in zip(self.scores[1:], reversed(pools[:-1]), strict=False):
            level -= 1
            logits = cropped(upsampled(logits, self.strides[level]), sizes[level]) + score(skip)
        factors = tuple(math.prod(axis) for axis in zip(*self.strides[:level], strict=True))
        return cropped(upsampled(logits, factors), sizes[0])


class DilatedFCN(nn.Module):
    """A dilated encoder, a convolution to a fourth of its features and one to the logits, brought to the size of the input.

    With ``deep_supervision`` the logits of the last stage but one follow.
    """

    head_weights = (1.0, 0.4)
    """As in the reference implementation of torchvision."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style = style_of(plan.options)
        self.deep_supervision = plan.deep_supervision
        self.encoder = encoders.encoder_of(plan)
        stages = (-1, -2) if plan.deep_supervision else (-1,)
        self.heads = nn.ModuleList(
            auxiliary_head(width, max(1, width // 4), plan.kernel_sizes[stage], plan.num_classes, style)
            for stage in stages
            for width in (self.encoder.widths[stage],)
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(batch, num_classes, …)`` of the input's size."""
        features = self.encoder(x)
        logits = resized(self.heads[0](features[-1]), x.shape[2:])
        if not (self.training and self.deep_supervision):
            return logits
        return [logits, self.heads[1](features[-2])]


def _build(plan: NetworkPlan) -> nn.Module:
    return FCN(plan) if plan.options["encoder"] == "vgg" else DilatedFCN(plan)


def cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first ``size`` voxels along each axis."""
    for axis, length in enumerate(size, start=2):
        x = x.narrow(axis, 0, length)
    return x


def _skips(plan: NetworkPlan) -> int:
    return SKIPS.index(plan.options["skips"])


def _problems(plan: NetworkPlan) -> Iterable[str]:
    if plan.options["encoder"] == "vgg":
        yield from too_few_stages(plan, 2)
        yield from deep_supervision(plan)
    else:
        yield from resnet.problems(plan)


SKIPS: tuple[Option, ...] = (0, 1, 2, 3, 4)
OPTIONS: dict[str, Option] = {
    **encoders.OPTIONS,
    "encoder": "vgg",
    "norm": "none",
    "skips": 2,
    "classifier_kernel": 7,
    "classifier_dropout": 0.5,
}
CHOICES: dict[str, tuple[Option, ...]] = {
    **encoders.CHOICES,
    "encoder": ("vgg", *encoders.STAGES),  # the next two and the classifier are those of vgg, the others' those of encoders
    "skips": SKIPS,
    "classifier_kernel": (1, 3, 5, 7),
}
FAMILY = Family(name="fcn", build=_build, options=OPTIONS, choices=CHOICES, problems=_problems)
