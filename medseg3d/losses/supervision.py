"""A loss over the outputs of a network, with deep supervision, and the counts behind a pseudo-Dice.

Logits are ``(batch, class, n0, n1[, n2])`` of any float type, labels ``(batch, n0, n1[, n2])`` of any integer type with values
0 … num_classes - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from medseg3d.label_codes import LabelCodes
from medseg3d.losses.loss import LossFunction
from medseg3d.team import Team


@dataclass(frozen=True, slots=True, kw_only=True)
class LossValue:
    """``total`` carries the gradient; ``counts`` belongs to the arg-max of the finest logits, where it was asked for."""

    total: Tensor
    counts: Counts | None = None


def supervised_loss(
    outputs: Tensor | Sequence[Tensor],
    labels: Tensor,
    loss: LossFunction,
    *,
    weights: Sequence[float] | None = None,
    targets: Sequence[str] | None = None,
    codes: LabelCodes | None = None,
    count: Callable[[Tensor, Tensor], Counts] | None = None,
) -> LossValue:
    """The weighted sum of a loss over outputs (finest first), cropped and sampled as :func:`supervise` does; ``count`` is asked for the
    counts of the finest one."""
    heads = supervise(outputs, labels, weights, targets, codes)
    total = torch.zeros((), device=labels.device)
    for head in heads:
        total = total + head.weight * loss(head.logits, head.labels)
    return LossValue(total=total, counts=count(heads[0].logits, heads[0].labels) if count else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One output: its logits ``(batch, class, n0, …)``, the labels on the same grid ``(batch, n0, …)``, its weight in the sum."""

    logits: Tensor
    labels: Tensor
    weight: float


def supervise(
    outputs: Tensor | Sequence[Tensor],
    labels: Tensor,
    weights: Sequence[float] | None = None,
    targets: Sequence[str] | None = None,
    codes: LabelCodes | None = None,
) -> list[Head]:
    """The outputs that count (finest first) with their weights and labels; a single tensor is one output.

    ``weights`` are those that a network's paper gives to its heads; without, those of :func:`deep_supervision_weights`. ``targets`` says
    what each head learns: ``labels``, as all do without it, or ``boundaries``, see :func:`class_boundaries`; ``codes`` is what the labels
    mean where they are not indices.

    Where the finest output is smaller than the labels, as networks of valid convolutions make it, it lies in their middle, and
    they are cropped to it. Coarser outputs cover the same extent: for them the labels are sampled at the nearest voxel. Raises
    ValueError where the finest output is larger than the labels.
    """
    heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inside = center_crop(labels, heads[0].shape[2:])
    kinds = zip(heads, weights or deep_supervision_weights(len(heads)), targets or ("labels",) * len(heads), strict=True)
    return [
        Head(logits=logits, labels=downsample_labels(TARGETS[target](inside, codes), logits.shape[2:]), weight=weight)
        for logits, weight, target in kinds
        if weight
    ]


def class_boundaries(labels: Tensor, codes: LabelCodes | None = None) -> Tensor:
    """Labels ``(batch, n0, …)`` of the voxels that touch another label along an axis; elsewhere background.

    Of label codes the background is that of the case, with the structures that it was not annotated for; ignored voxels stay ignored, and
    nothing ends where they begin.

    >>> class_boundaries(torch.tensor([[0, 2, 2, 2, 2, 1]])).tolist()
    [[0, 2, 0, 0, 2, 1]]
    """
    if labels.is_floating_point():  # soft labels: the most probable
        labels = labels.argmax(1)
    ignored = None if codes is None or codes.ignored is None else labels == codes.ignored
    touches = torch.zeros_like(labels, dtype=torch.bool)
    for axis in range(1, labels.ndim):
        length = labels.shape[axis] - 1
        differs = labels.narrow(axis, 0, length) != labels.narrow(axis, 1, length)
        if ignored is not None:
            differs &= ~(ignored.narrow(axis, 0, length) | ignored.narrow(axis, 1, length))
        touches.narrow(axis, 0, length).logical_or_(differs)
        touches.narrow(axis, 1, length).logical_or_(differs)
    background = torch.zeros_like(labels) if codes is None else labels - labels % codes.num_values
    boundaries = torch.where(touches, labels, background)
    return boundaries if ignored is None else torch.where(ignored, labels, boundaries)


def _as_they_are(labels: Tensor, codes: LabelCodes | None) -> Tensor:
    return labels


TARGETS: dict[str, Callable[[Tensor, LabelCodes | None], Tensor]] = {"labels": _as_they_are, "boundaries": class_boundaries}
"""What a head can learn."""


def center_crop(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """The middle of labels ``(batch, n0, …)``, ``shape`` along the axes after the batch; of an odd rest, more is cut off at the end.

    Raises ValueError where ``shape`` exceeds the labels.
    """
    lead = labels.ndim - len(shape)
    if any(wanted > size for size, wanted in zip(labels.shape[lead:], shape, strict=True)):
        raise ValueError(f"Logits of {tuple(shape)} voxels do not lie inside labels of {tuple(labels.shape[lead:])}.")
    for axis, (size, wanted) in enumerate(zip(labels.shape[lead:], shape, strict=True), start=lead):
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
    lead = labels.ndim - len(shape)
    for axis, (size, wanted) in enumerate(zip(labels.shape[lead:], shape, strict=True), start=lead):
        if size != wanted:
            centers = (2 * torch.arange(wanted, device=labels.device) + 1) * size // (2 * wanted)
            labels = labels.index_select(axis, centers)
    return labels


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

    def summed(self, team: Team) -> Counts:
        """The counts of all processes."""
        return replace(self, **{field.name: team.summed_tensor(getattr(self, field.name)) for field in fields(self)})

    def is_silent(self, label: int) -> bool:
        """The reference has voxels of a label, and nothing is predicted as it."""
        predicted = int(self.true_positives[label] + self.false_positives[label])
        return predicted == 0 and int(self.false_negatives[label]) > 0

    def dice(self) -> Tensor:
        """Dice per class ``2 tp / (2 tp + fp + fn)``, float64 on the CPU; NaN for a class that is neither labelled nor predicted."""
        hits, wrong = self.true_positives.cpu().double(), (self.false_positives + self.false_negatives).cpu()
        return 2 * hits / (2 * hits + wrong)


def count_voxels(logits: Tensor, labels: Tensor) -> Counts:
    """Count the voxels of the arg-max of logits of the labels' size; no gradient."""
    num_classes = logits.shape[1]
    with torch.no_grad():
        predicted = logits.argmax(1).flatten()
        reference = labels.flatten().long()
        pairs = torch.bincount(reference * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
        hits = pairs.diagonal()
        return Counts(true_positives=hits.clone(), false_positives=pairs.sum(0) - hits, false_negatives=pairs.sum(1) - hits)
