"""Losses over shapes: a term for the boundary or the skeleton of labels beside one for their regions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medseg3d.losses.loss import (
    SMOOTH,
    Loss,
    LossFunction,
    LossSettings,
    foreground,
    probabilities_and_labels,
    rarity,
    summed_axes,
)
from medseg3d.losses.regions import dice, dice_ce
from medseg3d.number_options import NumberOption


def boundary(settings: LossSettings) -> LossFunction:
    """The Dice loss plus ``weight`` times the mean over labels and voxels of probability times signed distance (Kervadec 2019).

    The distance is that of :func:`signed_distances`, in voxels of the patch, so the term grows with the size of patches, and is
    negative for a good prediction. The paper raises its weight by 0.01 per epoch; here it stays.
    """
    options = settings.options
    region = dice(settings)

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
    options = settings.options
    region = dice_ce(LossSettings(num_classes=settings.num_classes, batch_dice=settings.batch_dice))
    weights = foreground(rarity(settings)[None])[0]

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        predicted, reference = probabilities_and_labels(logits, labels)
        distances = signed_distances(labels, settings.num_classes)
        axes = summed_axes(logits, settings.batch_dice)
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

    options = settings.options
    region = dice_ce(LossSettings(num_classes=settings.num_classes, batch_dice=settings.batch_dice))
    iterations = int(options["iterations"])

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        predicted, reference = probabilities_and_labels(logits, labels)
        axes = summed_axes(logits, settings.batch_dice)
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


LOSSES = {
    "boundary": Loss(
        meaning="Dice plus the distance of wrong voxels to the boundary",
        make=boundary,
        options={
            # Kervadec 2019 starts here; distances are of the order of 100 voxels, so that 0.01 puts the term beside the Dice
            "weight": NumberOption(default=0.01, minimum=0.0, maximum=100.0, meaning="factor on the boundary term beside the Dice"),
        },
        shares="mean",
    ),
    "cldice": Loss(
        meaning="`dice_ce` plus the overlap of skeletons, for vessels and other tubes",
        make=cldice,
        options={
            # Shit 2021 goes up to equal weights of Dice and clDice
            "weight": NumberOption(default=1.0, minimum=0.0, maximum=100.0, meaning="factor on the clDice term beside dice_ce"),
            # the authors' own number; the work grows with it
            "iterations": NumberOption(
                default=3, minimum=1, maximum=50, meaning="erosions of the skeleton, at least the largest radius in voxels", is_whole=True
            ),
        },
        shares="mean",
    ),
    "surface": Loss(
        meaning="`dice_ce` plus a distance term that is bounded",
        make=surface,
        options={
            # both terms lie between 0 and 1, and Celaya 2023 passes through equal weights halfway
            "weight": NumberOption(default=1.0, minimum=0.0, maximum=100.0, meaning="factor on the surface term beside dice_ce"),
        },
        weighs_classes=True,
        shares="mean",
    ),
}
