"""ISNet: context of the whole image and context of each class, by attention, on any encoder (Jin et al. 2021).

The coarse logits say which voxels belong together; a class is described by the mean of its voxels' features, weighted by how sure the
coarse logits are of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks import encoders, resnet
from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.context_heads import auxiliary_head
from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.cross_attention import CrossAttention
from medseg3d.networks.family import Family
from medseg3d.networks.resizing import resized
from medseg3d.networks.style import Style, style_of, whole
from medseg3d.plan import NetworkPlan, Option

DROPOUT = 0.1
"""Of whole channels before the logits, as in the reference implementation."""


class ISNet(nn.Module):
    """Logits at the output stride, brought to the size of the input; with ``deep_supervision`` the coarse and the auxiliary ones follow.

    The coarse logits are part of every prediction. Without deep supervision they learn only from what they do to the others.
    """

    head_weights = (1.0, 0.4, 0.4)
    """As published."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit, kernel = style_of(plan.options), (1,) * plan.dimensions, plan.kernel_sizes[-1]
        self.deep_supervision = plan.deep_supervision
        self.encoder = encoders.encoder_of(plan)
        width, inner = whole(plan.options, "head_features"), whole(plan.options, "attention_features")
        self.narrow = ConvBlock(self.encoder.widths[-1], width, kernel, unit, style, bias=False)
        self.of_image = ImageContext(width, inner, kernel, style)
        self.coarse = coarse_head(width, plan.num_classes, plan.dimensions, style)
        self.of_classes = ClassContext(width, inner, kernel, style)
        self.head = nn.Sequential(channel_dropout(plan.dimensions), convolution(width, plan.num_classes, unit, unit))
        before = self.encoder.widths[-2]
        self.auxiliary = (
            auxiliary_head(before, max(1, before // 2), plan.kernel_sizes[-2], plan.num_classes, style) if plan.deep_supervision else None
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(batch, num_classes, …)`` of the input's size."""
        features = self.encoder(x)
        narrow = self.narrow(features[-1])
        coarse = self.coarse(narrow)
        logits = resized(self.head(self.of_classes(narrow, coarse, self.of_image(narrow))), x.shape[2:])
        if self.auxiliary is None or not (self.training and self.deep_supervision):
            return logits
        return [logits, coarse, self.auxiliary(features[-2])]


class ImageContext(nn.Module):
    """Every voxel looks at all others, of which each also says what the whole image is like."""

    def __init__(self, width: int, inner: int, kernel: Sizes, style: Style) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        self.attention = CrossAttention(width, 2 * width, inner, width, len(kernel), style)
        self.merge = ConvBlock(2 * width, width, kernel, unit, style, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, width, …)`` → the same."""
        mean = x.mean(tuple(range(2, x.ndim)), keepdim=True).expand_as(x)
        merged: Tensor = self.merge(torch.cat((x, self.attention(x, torch.cat((mean, x), 1))), 1))
        return merged


class ClassContext(nn.Module):
    """Every voxel looks at the mean features of the classes, each where the coarse logits see it, and is put beside the image's context."""

    def __init__(self, width: int, inner: int, kernel: Sizes, style: Style) -> None:
        super().__init__()
        unit = (1,) * len(kernel)
        self.attention = CrossAttention(width, width, inner, width, len(kernel), style)
        self.merge = ConvBlock(2 * width, width, kernel, unit, style, bias=False)

    def forward(self, x: Tensor, coarse: Tensor, of_image: Tensor) -> Tensor:
        """``x`` and ``of_image`` ``(batch, width, …)``, ``coarse`` ``(batch, num_classes, …)`` → ``(batch, width, …)``."""
        merged: Tensor = self.merge(torch.cat((of_image, self.attention(x, class_means(x, coarse))), 1))
        return merged


def class_means(x: Tensor, logits: Tensor) -> Tensor:
    """At each voxel the features of its class in the image: the mean over the voxels with that arg-max, weighted by a softmax of its logit.

    ``x`` ``(batch, width, …)``, ``logits`` ``(batch, num_classes, …)`` → ``(batch, width, …)``.
    """
    scores, features = logits.flatten(2).float(), x.flatten(2)
    is_member = F.one_hot(scores.argmax(1), scores.shape[1]).transpose(1, 2).bool()
    weights = scores.masked_fill(~is_member, torch.finfo(scores.dtype).min).softmax(2)  # of a class without voxels: never looked up
    means = weights.to(features.dtype) @ features.transpose(1, 2)
    return (means.transpose(1, 2) @ is_member.to(means.dtype)).unflatten(2, tuple(x.shape[2:]))


def coarse_head(width: int, num_classes: int, dimensions: int, style: Style) -> nn.Sequential:
    """Logits behind a pointwise convolution and dropout of whole channels."""
    unit = (1,) * dimensions
    return nn.Sequential(
        ConvBlock(width, width, unit, unit, style, bias=False), channel_dropout(dimensions), convolution(width, num_classes, unit, unit)
    )


def channel_dropout(dimensions: int) -> nn.Module:
    """Dropout of a tenth of the channels."""
    return nn.Dropout2d(DROPOUT) if dimensions == 2 else nn.Dropout3d(DROPOUT)


OPTIONS: dict[str, Option] = {**encoders.OPTIONS, "stem": "deep", "head_features": 512, "attention_features": 256}
FAMILY = Family(name="isnet", build=ISNet, options=OPTIONS, choices=encoders.CHOICES, problems=resnet.problems)
