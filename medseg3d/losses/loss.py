"""What a loss is to the rest of the package: a line about it, its options, and how it is made.

Logits are ``(batch, class, n0, n1[, n2])`` of any float type, labels ``(batch, n0, n1[, n2])`` of any integer type with values
0 … num_classes - 1; the result is a float32 scalar that is lower for a better prediction. Regions, ignored voxels and cases that were
annotated for some structures only are turned into that before a loss is asked (:mod:`medseg3d.losses.label_kinds`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from medseg3d.number_options import NumberOption, completed_numbers
from medseg3d.team import gathered, is_shared, pooled, whole_batch

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(logits, labels) → scalar."""
IGNORED = -100
"""The label of voxels that do not count, torch's. There the logits say background for sure, which adds nothing to sums over a class."""
SMOOTH = 1e-5
"""Added to numerator and denominator of the Dice, so that an absent class that is not predicted counts as right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """What a loss is made from.

    ``batch_dice`` pools the voxels of all samples before dividing; otherwise every sample is measured by itself. ``options`` may
    leave out what has a default. ``class_voxels`` are the voxels of each class in the dataset, background first; None for equal
    weights. ``has_ignored``: labels may be :data:`IGNORED`, for a loss that knows them.
    ``spacing`` (mm) is that of patches of ``patch_size`` voxels; empty where it is not known.
    """

    num_classes: int
    batch_dice: bool = False
    options: Mapping[str, float] = field(default_factory=dict)
    class_voxels: tuple[float, ...] | None = None
    has_ignored: bool = False
    spacing: tuple[float, ...] = ()
    patch_size: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A loss as its file describes it.

    ``meaning`` is a line for tables. ``make(settings)`` gets settings whose options are complete, and gives a function of float32 logits
    and int64 labels. A loss that ``weighs_classes`` is told the voxels of the classes; one that does not ``know_batches`` takes no notice
    of ``batch_dice``. One that ``knows_ignored`` leaves voxels of the label :data:`IGNORED` out of its means over voxels; to others
    they are background, and the network is sure of it. One that ``knows_soft`` takes float32 probabilities ``(batch, class, …)`` in the
    place of labels as well; others get the most probable label.

    ``shares`` says what it needs where several processes have a part of the batch each: nothing, as it is the ``mean`` over the samples
    where ``batch_dice`` is off; nothing, as it passes its ``sums`` through :func:`medseg3d.team.pooled`; or the whole batch, ``gathered``
    in every process, which is always right and takes their memory for the logits.
    """

    meaning: str
    make: Callable[[LossSettings], LossFunction]
    options: Mapping[str, NumberOption] = field(default_factory=dict)
    weighs_classes: bool = False
    knows_batches: bool = True
    shares: Literal["gathered", "mean", "sums"] = "gathered"
    knows_ignored: bool = False
    knows_soft: bool = False

    def completed(self, name: str, options: Mapping[str, float]) -> dict[str, float]:
        """All options: those given, and the defaults of the others; raises :class:`~medseg3d.errors.PlanError` for wrong ones."""
        return completed_numbers(f"Loss {name}", self.options, options)


def in_float32(loss: LossFunction) -> LossFunction:
    """The loss of float32 logits and int64 labels, whatever comes in; autocast would run the reductions in half precision."""

    def of_float32(logits: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return loss(logits.float(), labels if labels.is_floating_point() else labels.long())

    return of_float32


def of_whole_batch(loss: LossFunction) -> LossFunction:
    """The loss of the batch that this process has a part of; of a batch of its own as it is."""

    def of_all(logits: Tensor, labels: Tensor) -> Tensor:
        if not is_shared():
            return loss(logits, labels)
        logits, labels = gathered(logits), gathered(labels)
        with whole_batch():
            return loss(logits, labels)

    return of_all


def voxel_mean(values: Tensor, labels: Tensor, settings: LossSettings) -> Tensor:
    """The mean over the voxels that count of one number each, which is 0 for the others; 0 where none counts."""
    return known_mean(values.sum(), labels) if settings.has_ignored else values.mean()


def known_mean(total: Tensor, labels: Tensor) -> Tensor:
    """A sum over voxels by the number of those that count, of all processes that share the batch."""
    return pooled(total) / pooled((labels != IGNORED).sum().float()).clamp_min(1)


def spacing_of(settings: LossSettings, shape: Sequence[int]) -> tuple[float, ...]:
    """Of labels of a shape that cover the extent of a patch, as those of deep supervision do; voxels are cubes where nothing is known.

    >>> spacing_of(LossSettings(num_classes=2, spacing=(3.0, 1.0, 1.0), patch_size=(16, 32, 32)), (16, 16, 16))
    (3.0, 2.0, 2.0)
    """
    if not settings.spacing:
        return (1.0,) * len(shape)
    return tuple(mm * whole / n for mm, whole, n in zip(settings.spacing, settings.patch_size, shape, strict=True))


def foreground(per_class: Tensor) -> Tensor:
    """``(batch, class, …)`` without the background, which is class 0; a single class stays."""
    return per_class[:, 1:] if per_class.shape[1] > 1 else per_class


def probabilities_and_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and labels of the foreground classes, both float32 ``(batch, class, n0, …)``."""
    predicted = foreground(logits.softmax(1))
    if labels.is_floating_point():
        return predicted, foreground(labels)
    classes = torch.arange(logits.shape[1], device=labels.device)[-predicted.shape[1] :]
    reference = labels[:, None] == classes.view(1, -1, *[1] * (labels.ndim - 1))
    return predicted, reference.float()


def summed_axes(logits: Tensor, batch_dice: bool) -> tuple[int, ...]:
    """The axes of the voxels of one region; what is left is (batch, class), or (class,) where the batch is pooled."""
    return ((0,) if batch_dice else ()) + tuple(range(2, logits.ndim))


def rarity(settings: LossSettings) -> Tensor:
    """The inverse of the voxels per class, 1 for the rarest, float32 ``(class,)``; a class without voxels counts as the rarest."""
    voxels = torch.tensor(settings.class_voxels or (1.0,) * settings.num_classes, dtype=torch.float64)
    smallest = torch.where(voxels > 0, voxels, torch.inf).min()
    return torch.where(voxels > 0, smallest / voxels, 1.0).float()
