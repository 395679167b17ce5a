"""Dice plus cross-entropy over the outputs of a network, with deep supervision, and the counts behind a pseudo-Dice.

Other losses than this one stand in :mod:`medseg3d.training.loss_functions`.

Logits are ``(batch, class, n0, n1[, n2])`` of any float type, labels ``(batch, n0, n1[, n2])`` of any integer type with values
0 … num_classes - 1. Everything inside is float32. The formulas are nnU-Net 2.8.1's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5
"""Added to numerator and denominator of the Dice, so that an absent class that is not predicted counts as right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """True positives, false positives and false negatives per class, int64 tensors ``(num_classes,)``, background first."""

    true_positives: Tensor
    false_positives: Tensor
    false_negatives: Tensor

    def __add__(self, other: Counts) -> Counts:
        """The counts of both together."""
        return Counts(
            true_positives=self.true_positives + other.true_positives,
            false_positives=self.false_positives + other.false_positives,
            false_negatives=self.false_negatives + other.false_negatives,
        )

    def dice(self) -> Tensor:
        """Dice per class ``2 tp / (2 tp + fp + fn)``, float64 on the CPU; NaN for a class that is neither labelled nor predicted."""
        hits, wrong = self.true_positives.cpu().double(), (self.false_positives + self.false_negatives).cpu()
        return 2 * hits / (2 * hits + wrong)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """``total`` carries the gradient; ``dice`` (minus the mean Dice) and ``cross_entropy`` are its detached parts.

    Losses other than ``dice_ce`` have no such parts. ``counts`` belongs to the arg-max of the finest logits, where it was asked for.
    """

    total: Tensor
    dice: Tensor | None = None
    cross_entropy: Tensor | None = None
    counts: Counts | None = None


def dice_cross_entropy(outputs: Tensor | Sequence[Tensor], labels: Tensor, *, batch_dice: bool, with_counts: bool = False) -> Loss:
    """The weighted sum over outputs (finest first) of soft Dice loss and cross-entropy; a single tensor is one output.

    The labels of each output are those of :func:`supervise`. ``batch_dice`` pools the voxels of all samples before dividing;
    otherwise every sample has its own Dice.
    """
    heads = supervise(outputs, labels)
    dice = cross_entropy = torch.zeros((), device=labels.device)
    for head in heads:
        dice_part, cross_entropy_part = dice_and_cross_entropy(head.logits, head.labels, batch_dice)
        dice = dice + head.weight * dice_part
        cross_entropy = cross_entropy + head.weight * cross_entropy_part
    return Loss(
        total=dice + cross_entropy,
        dice=dice.detach(),
        cross_entropy=cross_entropy.detach(),
        counts=count_voxels(heads[0].logits, heads[0].labels) if with_counts else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One output: its logits ``(batch, class, n0, …)``, the labels on the same grid ``(batch, n0, …)``, its weight in the sum."""

    logits: Tensor
    labels: Tensor
    weight: float


def supervise(outputs: Tensor | Sequence[Tensor], labels: Tensor) -> list[Head]:
    """The outputs that count (finest first) with their weights and labels; a single tensor is one output.

    Where the finest output is smaller than the labels, as networks of valid convolutions make it, it lies in their middle, and
    they are cropped to it. Coarser outputs cover the same extent: for them the labels are sampled at the nearest voxel. Raises
    ValueError where the finest output is larger than the labels.
    """
    heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inside = center_crop(labels, heads[0].shape[2:])
    return [
        Head(logits=logits, labels=downsample_labels(inside, logits.shape[2:]), weight=weight)
        for logits, weight in zip(heads, deep_supervision_weights(len(heads)), strict=True)
        if weight
    ]


def center_crop(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """The middle of labels ``(batch, n0, …)``, ``shape`` along the axes after the batch; of an odd rest, more is cut off at the end.

    Raises ValueError where ``shape`` exceeds the labels.
    """
    if any(wanted > size for size, wanted in zip(labels.shape[1:], shape, strict=True)):
        raise ValueError(f"Logits of {tuple(shape)} voxels do not lie inside labels of {tuple(labels.shape[1:])}.")
    for axis, (size, wanted) in enumerate(zip(labels.shape[1:], shape, strict=True), start=1):
        labels = labels.narrow(axis, (size - wanted) // 2, wanted)
    return labels


def deep_supervision_weights(num_heads: int) -> tuple[float, ...]:
    """``1 / 2**i`` with the coarsest set to 0, then normalized to the sum 1; a single head has weight 1.

    >>> deep_supervision_weights(3)
    (0.6666666666666666, 0.3333333333333333, 0.0)
    >>> deep_supervision_weights(1)
    (1.0,)
    """
    if num_heads == 1:
        return (1.0,)  # the rule would leave nothing: nnU-Net divides 0 by 0 for a network of two stages
    weights = [0.5**head for head in range(num_heads - 1)]
    return (*(weight / sum(weights) for weight in weights), 0.0)


def downsample_labels(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Labels ``(batch, n0, …)`` at the nearest voxel of a coarser grid of the same extent (torch's ``nearest-exact``)."""
    for axis, (size, wanted) in enumerate(zip(labels.shape[1:], shape, strict=True), start=1):
        if size != wanted:
            centers = (2 * torch.arange(wanted, device=labels.device) + 1) * size // (2 * wanted)
            labels = labels.index_select(axis, centers)
    return labels


def count_voxels(logits: Tensor, labels: Tensor) -> Counts:
    """Count the voxels of the arg-max of logits of the labels' size; no gradient."""
    num_classes = logits.shape[1]
    with torch.no_grad():
        predicted = logits.argmax(1).flatten()
        reference = labels.flatten().long()
        pairs = torch.bincount(reference * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
        hits = pairs.diagonal()
        return Counts(true_positives=hits.clone(), false_positives=pairs.sum(0) - hits, false_negatives=pairs.sum(1) - hits)


def dice_and_cross_entropy(logits: Tensor, labels: Tensor, batch_dice: bool) -> tuple[Tensor, Tensor]:
    """Minus the mean Dice of the foreground, and the cross-entropy, of one output; the labels are never expanded to one channel per class.

    Dice needs three sums per class: of the probabilities, of the labels, and of the probabilities where the label is the
    class. The last comes from the probability of the true class alone, one number per voxel, added up by label.
    """
    # autocast would run the reductions in half precision
    with torch.autocast(logits.device.type, enabled=False):
        batch, num_classes = logits.shape[:2]
        index = labels.reshape(batch, -1).long()
        log_probabilities = F.log_softmax(logits.reshape(batch, num_classes, -1).float(), 1)
        true_log_probability = log_probabilities.gather(1, index[:, None])[:, 0]
        predicted = log_probabilities.exp().sum(2)
        # row by row, then over the rows: one float32 sum over millions of voxels would round each addend to a tenth
        rows = index.reshape(batch, -1, logits.shape[-1])
        zeros = torch.zeros(batch, rows.shape[1], num_classes, device=logits.device)
        overlap = zeros.scatter_add(2, rows, true_log_probability.exp().reshape(rows.shape)).sum(1)
        present = _count_labels(index, num_classes)
        if batch_dice:
            predicted, overlap, present = (sums.sum(0, keepdim=True) for sums in (predicted, overlap, present))
        score = (2 * overlap + SMOOTH) / (predicted + present + SMOOTH).clamp_min(1e-8)
        return -foreground(score).mean(), -true_log_probability.mean()


def foreground(per_class: Tensor) -> Tensor:
    """``(batch, class, …)`` without the background, which is class 0; a single class stays."""
    return per_class[:, 1:] if per_class.shape[1] > 1 else per_class


def _count_labels(index: Tensor, num_classes: int) -> Tensor:
    """Voxels per sample and class: ``(batch, voxels)`` → float32 ``(batch, num_classes)``, counted exactly."""
    offset = torch.arange(len(index), device=index.device)[:, None] * num_classes
    return torch.bincount((index + offset).flatten(), minlength=len(index) * num_classes).view(len(index), num_classes).float()
