"""The losses that a plan can name: settings go in, a function of logits and labels comes out, the same for every output.

Logits are ``(batch, class, n0, n1[, n2])`` of any float type, labels ``(batch, n0, n1[, n2])`` of any integer type with values
0 … num_classes - 1; the result is a float32 scalar that is lower for a better prediction. Everything inside is float32, also under
autocast. Losses over regions leave the background out, as ``dice_ce`` does. Options, their defaults and ranges stand in
:mod:`medseg3d.planning.loss_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medseg3d.plan import LossName
from medseg3d.planning.loss_rules import check_loss
from medseg3d.training.losses import SMOOTH, Loss, count_voxels, dice_and_cross_entropy, foreground, supervise

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(logits, labels) → scalar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """What a loss is made from.

    ``batch_dice`` pools the voxels of all samples before dividing; otherwise every sample is measured by itself. ``options`` may
    leave out what has a default. ``class_voxels`` are the voxels of each class in the dataset, background first; None for equal
    weights.
    """

    num_classes: int
    batch_dice: bool = False
    options: dict[str, float] = field(default_factory=dict)
    class_voxels: tuple[float, ...] | None = None


def supervised_loss(outputs: Tensor | Sequence[Tensor], labels: Tensor, loss: LossFunction, *, with_counts: bool = False) -> Loss:
    """The weighted sum of a loss over outputs (finest first), cropped and sampled as :func:`~medseg3d.training.losses.supervise` does."""
    heads = supervise(outputs, labels)
    total = torch.zeros((), device=labels.device)
    for head in heads:
        total = total + head.weight * loss(head.logits, head.labels)
    return Loss(total=total, counts=count_voxels(heads[0].logits, heads[0].labels) if with_counts else None)


# --- regions


def dice_ce(settings: LossSettings) -> LossFunction:
    """Minus the mean Dice plus cross-entropy, nnU-Net 2.8.1's; from -1 up."""
    check_loss("dice_ce", settings.options)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        dice, cross_entropy = dice_and_cross_entropy(logits, labels, settings.batch_dice)
        return dice + cross_entropy

    return loss


def dice(settings: LossSettings) -> LossFunction:
    """1 minus the mean Dice, from 0 to 1 (MONAI's).

    Alone it learns next to nothing from patches without a label: there the gradient falls with the square of what is predicted.
    """
    check_loss("dice", settings.options)
    return _dice(settings, is_squared=False)


def dice_squared(settings: LossSettings) -> LossFunction:
    """1 minus the mean Dice with squares in the denominator (V-Net: Milletari 2016; MONAI's), from 0 to 1."""
    check_loss("dice_squared", settings.options)
    return _dice(settings, is_squared=True)


def _dice(settings: LossSettings, *, is_squared: bool) -> LossFunction:
    from monai.losses import DiceLoss

    measure = DiceLoss(squared_pred=is_squared, batch=settings.batch_dice, smooth_nr=SMOOTH, smooth_dr=SMOOTH)

    @_in_float32
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = measure(*_regions(logits, labels))
        return value

    return loss


def generalized_dice(settings: LossSettings) -> LossFunction:
    """1 minus one Dice of all labels together, each weighted by 1 / voxels² (Sudre 2017); from 0 to 1.

    Weights are relative to the smallest label that is present, and a label that is absent counts as much as that one. MONAI's
    takes the weights as they are: next to its smoothing they vanish from labels of some 100,000 voxels on, and a sample without a
    label has no gradient. With one label it is the Dice loss.
    """
    check_loss("generalized_dice", settings.options)

    @_in_float32
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        predicted, reference = _regions(logits, labels)
        axes = _summed_axes(logits, settings.batch_dice)
        overlap, total, present = (predicted * reference).sum(axes), (predicted + reference).sum(axes), reference.sum(axes)
        smallest = torch.where(present > 0, present, torch.inf).amin(-1, keepdim=True)
        weights = torch.where(present > 0, smallest / present.clamp_min(1), 1) ** 2
        score = (2 * (weights * overlap).sum(-1) + SMOOTH) / ((weights * total).sum(-1) + SMOOTH)
        return 1 - score.mean()

    return loss


def dice_focal(settings: LossSettings) -> LossFunction:
    """The Dice loss plus ``weight`` times the focal loss: the mean of ``(1 - p)^gamma · -log p``, p that of the true class (Lin 2017).

    MONAI's DiceFocalLoss takes one sigmoid per class for the focal term, which a network with a softmax is not trained for.
    """
    options = check_loss("dice_focal", settings.options)
    region = _dice(settings, is_squared=False)

    @_in_float32
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        surprise = F.cross_entropy(logits, labels, reduction="none")
        # bounded, as exponents below 1 have no finite slope at 0
        is_wrong = (-torch.expm1(-surprise)).clamp_min(SMOOTH)
        return region(logits, labels) + options["weight"] * (is_wrong ** options["gamma"] * surprise).mean()

    return loss


def tversky(settings: LossSettings) -> LossFunction:
    """1 minus the mean Tversky index ``tp / (tp + alpha fp + beta fn)`` (Salehi 2017; MONAI's), from 0 to 1.

    ``alpha`` weighs false positives and ``beta`` false negatives; 0.5 and 0.5 is the Dice.
    """
    options = check_loss("tversky", settings.options)
    measure = _tversky_per_label(settings, alpha=options["alpha"], beta=options["beta"])

    @_in_float32
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return measure(logits, labels).mean()

    return loss


def focal_tversky(settings: LossSettings) -> LossFunction:
    """The mean over labels of ``(1 - Tversky index)^(1 / gamma)`` (Abraham 2019), from 0 to 1.

    ``gamma`` is the paper's: from 1 (the Tversky loss) to 3. Its alpha weighs false negatives; here ``alpha`` is that of false
    positives, as in :func:`tversky`.
    """
    options = check_loss("focal_tversky", settings.options)
    measure = _tversky_per_label(settings, alpha=options["alpha"], beta=options["beta"])

    @_in_float32
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
        value: Tensor = measure(*_regions(logits, labels))
        return value

    return loss


def lovasz(settings: LossSettings) -> LossFunction:
    """The Lovász-softmax loss (Berman 2018): the convex extension of 1 minus the Jaccard index, mean over the classes present; 0 to 1.

    The background is one of the classes, as in the paper: without it a sample without a label had no gradient. All voxels are
    sorted once per class present.
    """
    check_loss("lovasz", settings.options)

    @_in_float32
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


# --- voxels


def weighted_ce(settings: LossSettings) -> LossFunction:
    """Cross-entropy, each voxel weighted by ``(1 / voxels of its class in the dataset)^power``; the weighted mean over the batch."""
    options = check_loss("weighted_ce", settings.options)
    weights = _rarity(settings) ** options["power"]

    @_in_float32
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, weight=weights.to(logits.device))

    return loss


def ohem(settings: LossSettings) -> LossFunction:
    """Cross-entropy of the hardest voxels of the batch: the mean over the ``share`` with the highest values, at least one voxel.

    Online hard example mining (Shrivastava 2016), per voxel as in the top-k loss of Wu 2016.
    """
    options = check_loss("ohem", settings.options)

    @_in_float32
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        surprise = F.cross_entropy(logits, labels, reduction="none").flatten()
        num_hard = max(1, round(options["share"] * len(surprise)))
        return surprise.topk(num_hard, sorted=False).values.mean()

    return loss


# --- shapes


def boundary(settings: LossSettings) -> LossFunction:
    """The Dice loss plus ``weight`` times the mean over labels and voxels of probability times signed distance (Kervadec 2019).

    The distance is that of :func:`signed_distances`, in voxels of the patch, so the term grows with the size of patches, and is
    negative for a good prediction. The paper raises its weight by 0.01 per epoch; here it stays.
    """
    options = check_loss("boundary", settings.options)
    region = _dice(settings, is_squared=False)

    @_in_float32
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        distances = signed_distances(labels, settings.num_classes)
        return region(logits, labels) + options["weight"] * (foreground(logits.softmax(1)) * distances).mean()

    return loss


def surface(settings: LossSettings) -> LossFunction:
    """``dice_ce`` plus ``weight`` times the generalized surface loss (Celaya 2023), which lies between 0 and 1.

    That is 1 minus ``Σ w (D (1 - (T + P)))² / Σ w D²`` over labels and voxels: D the distance in voxels to the label's boundary,
    T and P label and probability, w the inverse of the label's voxels in the dataset. A label that is absent from a sample or
    fills it has no boundary and does not count.
    """
    options = check_loss("surface", settings.options)
    region = dice_ce(LossSettings(num_classes=settings.num_classes, batch_dice=settings.batch_dice))
    weights = foreground(_rarity(settings)[None])[0]

    @_in_float32
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        predicted, reference = _regions(logits, labels)
        distances = signed_distances(labels, settings.num_classes)
        axes = _summed_axes(logits, settings.batch_dice)
        per_label = weights.to(logits.device)
        agreement = (per_label * (distances * (1 - (reference + predicted))).square().sum(axes)).sum(-1)
        best = (per_label * distances.square().sum(axes)).sum(-1)
        value = 1 - (agreement + SMOOTH) / (best + SMOOTH)
        return region(logits, labels) + options["weight"] * value.mean()

    return loss


def cldice(settings: LossSettings) -> LossFunction:
    """``dice_ce`` plus ``weight`` times 1 minus the mean centerline Dice (Shit 2021), which lies between 0 and 1.

    The centerline Dice is the harmonic mean of the shares of the predicted skeleton that lie in the label, and of the label's
    skeleton that lie in the prediction; ``iterations`` erosions make the skeletons (soft, MONAI's). Beyond the patch nothing is
    eroded, so tubes may leave it. MONAI's own loss has another signature in 1.5 than in 1.6. Three iterations on two labels keep
    some 80 times the bytes of the logits for the way back: the planner's memory does not count them.
    """
    from monai.losses.cldice import soft_skel

    options = check_loss("cldice", settings.options)
    region = dice_ce(LossSettings(num_classes=settings.num_classes, batch_dice=settings.batch_dice))
    iterations = int(options["iterations"])

    @_in_float32
    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        predicted, reference = _regions(logits, labels)
        axes = _summed_axes(logits, settings.batch_dice)
        predicted_skeleton, reference_skeleton = soft_skel(predicted, iterations), soft_skel(reference, iterations)
        precision = ((predicted_skeleton * reference).sum(axes) + SKELETON_SMOOTH) / (predicted_skeleton.sum(axes) + SKELETON_SMOOTH)
        sensitivity = ((reference_skeleton * predicted).sum(axes) + SKELETON_SMOOTH) / (reference_skeleton.sum(axes) + SKELETON_SMOOTH)
        score = 2 * precision * sensitivity / (precision + sensitivity)
        return region(logits, labels) + options["weight"] * (1 - score.mean())

    return loss


SKELETON_SMOOTH = 1.0
"""Voxels. The authors' number: a skeleton of few voxels should not decide alone."""


def signed_distances(labels: Tensor, num_classes: int) -> Tensor:
    """Per foreground class the distance of each voxel to the class's boundary: negative inside, positive outside.

    Labels ``(batch, n0, …)`` → float32 ``(batch, class, n0, …)``, in voxels, on the labels' device. It is the distance to the
    nearest voxel on the other side, less the half voxel from that one to the face between them (the authors of the boundary loss
    take off a whole voxel inside and none outside); beyond the patch nothing is known. A class that is absent from a sample or
    fills it has no boundary: 0 everywhere. Computed on the CPU, some 0.1 s per sample and class for 128³ voxels.
    """
    import edt

    classes = range(min(1, num_classes - 1), num_classes)
    distances = np.zeros((len(labels), len(classes), *labels.shape[1:]), np.float32)
    for sample, values in zip(distances, labels.cpu().numpy(), strict=True):
        # shifted, as edt takes 0 for what has no distance
        to_other_class = edt.edt(np.ascontiguousarray(values + 1, np.uint16), parallel=1)
        for channel, label in zip(sample, classes, strict=True):
            inside = values == label
            if inside.any() and not inside.all():
                channel[...] = np.where(inside, 0.5 - to_other_class, edt.edt(~inside, parallel=1) - 0.5)
    return torch.from_numpy(distances).to(labels.device)


# --- parts


def _in_float32(loss: LossFunction) -> LossFunction:
    """The loss of float32 logits and int64 labels, whatever comes in; autocast would run the reductions in half precision."""

    def in_float32(logits: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return loss(logits.float(), labels.long())

    return in_float32


def _regions(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and labels of the foreground classes, both float32 ``(batch, class, n0, …)``."""
    predicted = foreground(logits.softmax(1))
    classes = torch.arange(logits.shape[1], device=labels.device)[-predicted.shape[1] :]
    reference = labels[:, None] == classes.view(1, -1, *[1] * (labels.ndim - 1))
    return predicted, reference.float()


def _summed_axes(logits: Tensor, batch_dice: bool) -> tuple[int, ...]:
    """The axes of the voxels of one region; what is left is (batch, class), or (class,) where the batch is pooled."""
    return ((0,) if batch_dice else ()) + tuple(range(2, logits.ndim))


def _rarity(settings: LossSettings) -> Tensor:
    """The inverse of the voxels per class, 1 for the rarest, float32 ``(class,)``; a class without voxels counts as the rarest."""
    voxels = torch.tensor(settings.class_voxels or (1.0,) * settings.num_classes, dtype=torch.float64)
    smallest = torch.where(voxels > 0, voxels, torch.inf).min()
    return torch.where(voxels > 0, smallest / voxels, 1.0).float()


LOSSES: dict[LossName, Callable[[LossSettings], LossFunction]] = {
    "dice_ce": dice_ce,
    "dice": dice,
    "dice_squared": dice_squared,
    "generalized_dice": generalized_dice,
    "dice_focal": dice_focal,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "lovasz": lovasz,
    "weighted_ce": weighted_ce,
    "ohem": ohem,
    "boundary": boundary,
    "cldice": cldice,
    "surface": surface,
}
"""From settings to a loss. Each raises :class:`~medseg3d.errors.PlanError` for options that it does not have or cannot use."""
