"""MCIBI: every voxel also looks at what the classes have looked like in all other images, on any encoder (Jin et al. 2021).

The coarse logits weigh the :class:`~medseg3d.networks.class_memory.ClassMemory`; attention puts what it recalls beside the image's own
context.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks import encoders, resnet
from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.class_memory import ClassMemory
from medseg3d.networks.context_heads import AtrousPyramid, PyramidPooling, auxiliary_head
from medseg3d.networks.convolutions import Sizes
from medseg3d.networks.cross_attention import CrossAttention
from medseg3d.networks.deeplab import RATES
from medseg3d.networks.family import Family
from medseg3d.networks.isnet import coarse_head
from medseg3d.networks.pspnet import BINS
from medseg3d.networks.resizing import resized
from medseg3d.networks.style import Style, style_of, whole
from medseg3d.plan import NetworkPlan, Option


class MCIBI(nn.Module):
    """Logits at the output stride, brought to the size of the input; with ``deep_supervision`` the coarse and the auxiliary ones follow.

    ``context`` is what the image itself adds: an atrous pyramid (DeepLabv3's, as published for the best results), pyramid pooling
    (PSPNet's) or nothing.
    """

    head_weights = (1.0, 0.4, 0.4)
    """As published."""

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit, kernel = style_of(plan.options), (1,) * plan.dimensions, plan.kernel_sizes[-1]
        self.deep_supervision, self.dimensions = plan.deep_supervision, plan.dimensions
        self.encoder = encoders.encoder_of(plan)
        width, inner, before = whole(plan.options, "head_features"), whole(plan.options, "attention_features"), self.encoder.widths[-1]
        self.context = _context(plan, before, width, kernel, style)
        self.narrow = ConvBlock(before, width, kernel, unit, style, bias=False)
        self.coarse = coarse_head(width, plan.num_classes, plan.dimensions, style)
        self.memory = ClassMemory(plan.num_classes, width)
        self.recall = CrossAttention(width, width, inner, width, plan.dimensions, style)
        self.merge = ConvBlock(2 * width, width, kernel, unit, style, bias=False)
        self.of_image = self.merge_image = None
        if self.context is not None:
            self.of_image = CrossAttention(width, width, inner, width, plan.dimensions, style)
            self.merge_image = ConvBlock(2 * width, width, kernel, unit, style, bias=False)
        self.head = coarse_head(width, plan.num_classes, plan.dimensions, style)
        deep = self.encoder.widths[-2]
        self.auxiliary = (
            auxiliary_head(deep, max(1, deep // 2), plan.kernel_sizes[-2], plan.num_classes, style) if plan.deep_supervision else None
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``(batch, num_classes, …)`` of the input's size."""
        features = self.encoder(x)
        narrow = self.narrow(features[-1])
        coarse = self.coarse(narrow)
        seen = self.merge(torch.cat((narrow, self.recall(narrow, self.memory(narrow, coarse))), 1))
        if self.context is not None and self.of_image is not None and self.merge_image is not None:
            seen = self.merge_image(torch.cat((self.of_image(narrow, self.context(features[-1])), seen), 1))
        logits = resized(self.head(seen), x.shape[2:])
        if self.auxiliary is None or not (self.training and self.deep_supervision):
            return logits
        return [logits, coarse, self.auxiliary(features[-2])]

    def own_loss(self) -> Tensor | None:
        """Cross-entropy of the last convolutions over the memory, whose vectors must look like their class; None before any was seen.

        The vectors are one image of as many voxels as there are classes.
        """
        is_known, memory = self.memory.is_known, self.memory.memory
        if not is_known.any():
            return None
        row = memory.T.reshape(1, memory.shape[1], len(memory), *(1,) * (self.dimensions - 1))
        logits = self.head(row).flatten(2)[0].T
        return F.cross_entropy(logits.float()[is_known], torch.arange(len(memory), device=memory.device)[is_known])


def _context(plan: NetworkPlan, before: int, width: int, kernel: Sizes, style: Style) -> nn.Module | None:
    """What the image itself adds, ``(batch, before, …)`` → ``(batch, width, …)``."""
    unit = (1,) * plan.dimensions
    if plan.options["context"] == "atrous":
        rates = tuple(rate * 16 // whole(plan.options, "output_stride") for rate in RATES)
        return AtrousPyramid(before, width, kernel, rates, style, dropout=0.0, merge_kernel=kernel)
    if plan.options["context"] == "pooling":
        return nn.Sequential(
            PyramidPooling(before, width, BINS, plan.dimensions, style),
            ConvBlock(before + len(BINS) * width, width, kernel, unit, style, bias=False),
        )
    return None


OPTIONS: dict[str, Option] = {**encoders.OPTIONS, "stem": "deep", "head_features": 512, "attention_features": 256, "context": "atrous"}
CHOICES: dict[str, tuple[Option, ...]] = {**encoders.CHOICES, "context": ("atrous", "pooling", "none")}
FAMILY = Family(name="mcibi", build=MCIBI, options=OPTIONS, choices=CHOICES, problems=resnet.problems)
