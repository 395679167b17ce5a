"""Losses over voxels: cross-entropy that looks at some voxels more than at others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg3d.losses.loss import IGNORED, Loss, LossFunction, LossSettings, rarity
from medseg3d.number_options import NumberOption


def weighted_ce(settings: LossSettings) -> LossFunction:
    """Cross-entropy, each voxel weighted by ``(1 / voxels of its class in the dataset)^power``; the weighted mean over the batch."""
    options = settings.options
    weights = rarity(settings) ** options["power"]

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        per_class = weights.to(logits.device)
        if not settings.has_ignored:
            return F.cross_entropy(logits, labels, weight=per_class)
        counted = per_class[labels.clamp_min(0)].masked_fill(labels == IGNORED, 0).sum()
        return F.cross_entropy(logits, labels, weight=per_class, reduction="sum") / torch.where(counted > 0, counted, 1)

    return loss


def ohem(settings: LossSettings) -> LossFunction:
    """Cross-entropy of the hardest voxels of the batch: the mean over the ``share`` with the highest values, at least one voxel.

    Online hard example mining (Shrivastava 2016), per voxel as in the top-k loss of Wu 2016.
    """
    options = settings.options

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels, reduction="none").flatten()
        if settings.has_ignored:
            loss = loss[labels.flatten() != IGNORED]
            loss = loss if len(loss) else logits.flatten()[:1] * 0
        num_hard = max(1, round(options["share"] * len(loss)))
        return loss.topk(num_hard, sorted=False).values.mean()

    return loss


LOSSES = {
    "weighted_ce": Loss(
        meaning="cross-entropy that counts voxels of small labels more",
        make=weighted_ce,
        options={
            # the full inverse gives a label of 1 voxel in 100,000 the weight 100,000, and with it every false alarm
            "power": NumberOption(default=0.5, minimum=0.0, maximum=1.0, meaning="weights are (1 / voxels of the class) ** power"),
        },
        weighs_classes=True,
        knows_batches=False,
        knows_ignored=True,
        knows_soft=True,
    ),
    "ohem": Loss(
        meaning="cross-entropy of the hardest voxels",
        make=ohem,
        options={
            # nnU-Net's top-k variants take the same tenth
            "share": NumberOption(default=0.1, minimum=0.001, maximum=1.0, meaning="share of the voxels, the hardest ones, that count"),
        },
        knows_batches=False,
        knows_ignored=True,
        knows_soft=True,
    ),
}
