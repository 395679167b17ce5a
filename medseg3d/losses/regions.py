"""Losses over regions: the overlap of what is predicted with each label, or with all of them. They leave the background out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medseg3d.losses.class_sums import class_sums
from medseg3d.losses.loss import (
    SMOOTH,
    Loss,
    LossFunction,
    LossSettings,
    foreground,
    known_mean,
    probabilities_and_labels,
    summed_axes,
    voxel_mean,
)
from medseg3d.number_options import NumberOption
from medseg3d.team import pooled


def dice_ce(settings: LossSettings) -> LossFunction:
    """Minus the mean Dice plus cross-entropy, nnU-Net 2.8.1's; from -1 up."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        dice, cross_entropy = dice_and_cross_entropy(logits, labels, settings.batch_dice, has_ignored=settings.has_ignored)
        return dice + cross_entropy

    return loss


def dice(settings: LossSettings) -> LossFunction:
    """1 minus the mean Dice, from 0 to 1 (MONAI's).

    Alone it learns next to nothing from patches without a label: there the gradient falls with the square of what is predicted.
    """
    return _dice(settings, is_squared=False)


def dice_squared(settings: LossSettings) -> LossFunction:
    """1 minus the mean Dice with squares in the denominator (V-Net: Milletari 2016; MONAI's), from 0 to 1."""
    return _dice(settings, is_squared=True)


def _dice(settings: LossSettings, *, is_squared: bool) -> LossFunction:
    from monai.losses import DiceLoss

    measure = DiceLoss(squared_pred=is_squared, batch=settings.batch_dice, smooth_nr=SMOOTH, smooth_dr=SMOOTH)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = measure(*probabilities_and_labels(logits, labels))
        return value

    return loss


def generalized_dice(settings: LossSettings) -> LossFunction:
    """1 minus one Dice of all labels together, each weighted by 1 / voxels² (Sudre 2017); from 0 to 1.

    Weights are relative to the smallest label that is present, and a label that is absent counts as much as that one. MONAI's
    takes the weights as they are: next to its smoothing they vanish from labels of some 100,000 voxels on, and a sample without a
    label has no gradient. With one label it is the Dice loss.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        predicted, reference = probabilities_and_labels(logits, labels)
        axes = summed_axes(logits, settings.batch_dice)
        overlap, total, present = (predicted * reference).sum(axes), (predicted + reference).sum(axes), reference.sum(axes)
        if settings.batch_dice:
            overlap, total, present = pooled(overlap), pooled(total), pooled(present)
        smallest = torch.where(present > 0, present, torch.inf).amin(-1, keepdim=True)
        weights = torch.where(present > 0, smallest / present.clamp_min(1), 1) ** 2
        score = (2 * (weights * overlap).sum(-1) + SMOOTH) / ((weights * total).sum(-1) + SMOOTH)
        return 1 - score.mean()

    return loss


def dice_focal(settings: LossSettings) -> LossFunction:
    """The Dice loss plus ``weight`` times the focal loss: the mean of ``(1 - p)^gamma · -log p``, p that of the true class (Lin 2017).

    MONAI's DiceFocalLoss takes one sigmoid per class for the focal term, which a network with a softmax is not trained for.
    """
    options = settings.options
    region = _dice(settings, is_squared=False)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        cross_entropy = F.cross_entropy(logits, labels, reduction="none")
        # bounded, as exponents below 1 have no finite slope at 0
        is_wrong = (-torch.expm1(-cross_entropy)).clamp_min(SMOOTH)
        focal = voxel_mean(is_wrong ** options["gamma"] * cross_entropy, labels, settings)
        return region(logits, labels) + options["weight"] * focal

    return loss


def tversky(settings: LossSettings) -> LossFunction:
    """1 minus the mean Tversky index ``tp / (tp + alpha fp + beta fn)`` (Salehi 2017; MONAI's), from 0 to 1.

    ``alpha`` weighs false positives and ``beta`` false negatives; 0.5 and 0.5 is the Dice.
    """
    options = settings.options
    measure = _tversky_per_label(settings, alpha=options["alpha"], beta=options["beta"])

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return measure(logits, labels).mean()

    return loss


def focal_tversky(settings: LossSettings) -> LossFunction:
    """The mean over labels of ``(1 - Tversky index)^(1 / gamma)`` (Abraham 2019), from 0 to 1.

    ``gamma`` is the paper's: from 1 (the Tversky loss) to 3. Its alpha weighs false negatives; here ``alpha`` is that of false
    positives, as in :func:`tversky`.
    """
    options = settings.options
    measure = _tversky_per_label(settings, alpha=options["alpha"], beta=options["beta"])

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        # bounded, as the slope at 0 is infinite
        return (measure(logits, labels).clamp_min(SMOOTH) ** (1 / options["gamma"])).mean()

    return loss


def _tversky_per_label(settings: LossSettings, *, alpha: float, beta: float) -> LossFunction:
    """1 minus the Tversky index, ``(batch, label)``, or ``(label,)`` where the batch is pooled."""
    from monai.losses import TverskyLoss

    # half of the smoothing: the index is not doubled as the Dice is
    measure = TverskyLoss(alpha=alpha, beta=beta, batch=settings.batch_dice, smooth_nr=SMOOTH / 2, smooth_dr=SMOOTH / 2, reduction="none")

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = measure(*probabilities_and_labels(logits, labels))
        return value

    return loss


def lovasz(settings: LossSettings) -> LossFunction:
    """The Lovász-softmax loss (Berman 2018): the convex extension of 1 minus the Jaccard index, mean over the classes present; 0 to 1.

    The background is one of the classes, as in the paper: without it a sample without a label had no gradient. All voxels are
    sorted once per class present.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        size = len(labels) if settings.batch_dice else 1
        samples = [slice(start, start + size) for start in range(0, len(labels), size)]
        return torch.stack([_lovasz_softmax(logits[sample], labels[sample]) for sample in samples]).mean()

    return loss


def _lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Voxels are taken from the worst to the best; each adds its error times what its being wrong adds to the Jaccard loss.

    With so many hits and a union of so many voxels left, a missed voxel of the class adds ``1 / union``, and a false positive,
    which makes the union larger by 1, ``hits / (union (union + 1))``. That is the difference of two neighbors of Berman's
    algorithm 1 without taking it, as float32 has no digits left for it in a patch of millions of voxels.
    """
    probabilities = logits.softmax(1)
    values = []
    for label in torch.bincount(labels.flatten()).nonzero().flatten().tolist():
        is_class = (labels == label).flatten()
        errors, order = (is_class.float() - probabilities[:, label].flatten()).abs().sort(descending=True)
        in_class = is_class[order]
        misses, false_positives = in_class.cumsum(0), (~in_class).cumsum(0)
        hits = (misses[-1] - misses).float()
        union = (misses[-1] + false_positives).float()  # after this voxel
        steps = torch.where(in_class, 1 / union, hits / (union * (union - 1)).clamp_min(1))
        values.append(errors @ steps)
    return torch.stack(values).mean()


def dice_and_cross_entropy(logits: Tensor, labels: Tensor, batch_dice: bool, *, has_ignored: bool = False) -> tuple[Tensor, Tensor]:
    """Minus the mean Dice of the foreground, and the cross-entropy, of one output; neither the labels are expanded to one channel per class
    nor are the probabilities kept (:mod:`medseg3d.losses.class_sums`).

    Ignored voxels are background of which the logits are sure: they add nothing to the sums of the foreground and to the cross-entropy,
    which is divided by the voxels that count.

    Dice needs three sums per class: of the probabilities, of the labels, and of the probabilities where the label is the
    class. The last comes from the probability of the true class alone, one number per voxel, added up by label.
    """
    if labels.is_floating_point():
        return _soft_dice_and_cross_entropy(logits.float(), labels, batch_dice)
    with torch.autocast(logits.device.type, enabled=False):
        batch, num_classes = logits.shape[:2]
        index = labels.reshape(batch, -1).long()
        if has_ignored:
            index = index.clamp_min(0)
        predicted, overlap, log_likelihood = class_sums(logits, index.view(labels.shape))
        present = _count_labels(index, num_classes)
        if batch_dice:
            predicted, overlap, present = (pooled(sums.sum(0, keepdim=True)) for sums in (predicted, overlap, present))
        score = (2 * overlap + SMOOTH) / (predicted + present + SMOOTH).clamp_min(1e-8)
        total = -log_likelihood.sum()
        cross_entropy = known_mean(total, labels) if has_ignored else total / max(1, labels.numel())
        return -foreground(score).mean(), cross_entropy


def _soft_dice_and_cross_entropy(logits: Tensor, labels: Tensor, batch_dice: bool) -> tuple[Tensor, Tensor]:
    """The same for labels that are probabilities ``(batch, class, …)``: products take the place of counts."""
    log_probabilities = F.log_softmax(logits, 1)
    predicted = log_probabilities.exp()
    axes = summed_axes(logits, batch_dice)
    overlap, total = (predicted * labels).sum(axes), (predicted + labels).sum(axes)
    if batch_dice:
        overlap, total = pooled(overlap[None]), pooled(total[None])
    score = (2 * overlap + SMOOTH) / (total + SMOOTH).clamp_min(1e-8)
    return -foreground(score).mean(), -(labels * log_probabilities).sum(1).mean()


def _count_labels(index: Tensor, num_classes: int) -> Tensor:
    """Voxels per sample and class: ``(batch, voxels)`` → float32 ``(batch, num_classes)``, counted exactly."""
    offset = torch.arange(len(index), device=index.device)[:, None] * num_classes
    return torch.bincount((index + offset).flatten(), minlength=len(index) * num_classes).view(len(index), num_classes).float()


ALPHA = NumberOption(default=0.3, minimum=0.01, maximum=1.0, meaning="weight of false positives")
"""Salehi 2017 found 0.3 and 0.7 best for lesions. A weight of 0 would let a network call everything, or nothing, foreground."""
BETA = NumberOption(default=0.7, minimum=0.01, maximum=1.0, meaning="weight of false negatives")

LOSSES = {
    "dice_ce": Loss(meaning="Dice plus cross-entropy; the default", make=dice_ce, shares="sums", knows_ignored=True, knows_soft=True),
    "dice": Loss(meaning="Dice alone", make=dice, shares="mean", knows_soft=True),
    "dice_squared": Loss(meaning="Dice with squares in the denominator (V-Net)", make=dice_squared, shares="mean", knows_soft=True),
    "generalized_dice": Loss(
        meaning="one Dice of all labels, each weighted by 1 / voxels²", make=generalized_dice, shares="sums", knows_soft=True
    ),
    "dice_focal": Loss(
        meaning="Dice plus cross-entropy that looks past easy voxels",
        make=dice_focal,
        options={
            # Lin 2017: 2 was best of 0 to 5
            "gamma": NumberOption(default=2.0, minimum=0.0, maximum=5.0, meaning="how much less a voxel counts that is nearly right"),
            "weight": NumberOption(default=1.0, minimum=0.0, maximum=100.0, meaning="factor on the focal term beside the Dice"),
        },
        shares="mean",
        knows_soft=True,
        knows_ignored=True,
    ),
    "tversky": Loss(
        meaning="Dice with separate weights for the two kinds of errors",
        make=tversky,
        options={"alpha": ALPHA, "beta": BETA},
        shares="mean",
        knows_soft=True,
    ),
    "focal_tversky": Loss(
        meaning="Tversky that looks more at labels that are nearly right",
        make=focal_tversky,
        options={
            "alpha": ALPHA,
            "beta": BETA,
            # Abraham 2019: 4/3 was best of 1 to 3
            "gamma": NumberOption(default=4 / 3, minimum=1.0, maximum=3.0, meaning="1/gamma is the exponent: more for labels nearly right"),
        },
        shares="mean",
        knows_soft=True,
    ),
    "lovasz": Loss(meaning="the Jaccard index, made smooth", make=lovasz, shares="mean"),
}
