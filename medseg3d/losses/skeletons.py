"""A loss that looks at the middle of thin structures: a vessel that is cut costs more than one whose wall is a voxel off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medseg3d.losses.loss import SMOOTH, Loss, LossFunction, LossSettings, probabilities_and_labels, spacing_of, summed_axes
from medseg3d.losses.regions import dice_ce
from medseg3d.number_options import NumberOption


def skeleton_recall(settings: LossSettings) -> LossFunction:
    """``dice_ce`` plus ``weight`` times 1 minus the share of each label's skeleton that is predicted (Kirchhoff et al. 2024), 0 to 1.

    The skeleton is a tube of ``radius`` finest voxels about the label's middle line, within the label. It is made of the reference alone,
    on the CPU, so nothing of it is kept for the way back; the centerline Dice makes both skeletons on the device. The authors thin all
    labels together; here each by itself, as a label around another has a middle of its own.
    """
    options = settings.options
    whole = dice_ce(settings)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        predicted, _ = probabilities_and_labels(logits, labels)
        tubes = skeleton_tubes(labels, settings.num_classes, spacing_of(settings, labels.shape[1:]), radius=options["radius"])
        axes = summed_axes(logits, settings.batch_dice)
        recall = ((predicted * tubes).sum(axes) + SMOOTH) / (tubes.sum(axes) + SMOOTH)
        return whole(logits, labels) + options["weight"] * (1 - recall).mean()

    return loss


def skeleton_tubes(labels: Tensor, num_classes: int, spacing: Sequence[float], *, radius: float) -> Tensor:
    """Labels ``(batch, n0, …)`` → float32 ``(batch, class, n0, …)``, 1 in the tubes of the foreground labels, on the labels' device.

    ``radius`` counts the finest axis' voxels: across slices that are thicker than that a tube stays one slice thick. Below 0.1 s of a
    core per label for 128³ voxels, as only the box about it is thinned.
    """
    classes = range(min(1, num_classes - 1), num_classes)
    tubes = np.zeros((len(labels), len(classes), *labels.shape[1:]), np.float32)
    for sample, values in zip(tubes, labels.cpu().numpy(), strict=True):
        for channel, label in zip(sample, classes, strict=True):
            if (mask := values == label).any():
                box = _box_of(mask)
                channel[box] = _tube(mask[box], spacing, radius * min(spacing))
    return torch.from_numpy(tubes).to(labels.device)


def _box_of(mask: np.ndarray) -> tuple[slice, ...]:
    places = (np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis))) for axis in range(mask.ndim))
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in places)


def _tube(mask: np.ndarray, spacing: Sequence[float], radius_mm: float) -> np.ndarray:
    import edt
    from skimage.morphology import skeletonize

    lone = tuple(axis for axis, length in enumerate(mask.shape) if length == 1)
    flat = mask.squeeze(lone) if mask.ndim - len(lone) >= 2 else mask  # a volume of one slice is thinned as an image
    skeleton = skeletonize(flat).reshape(mask.shape).astype(bool)
    if not skeleton.any():
        return mask
    distance = edt.edt(np.ascontiguousarray(~skeleton), anisotropy=tuple(spacing), parallel=1)
    tube: np.ndarray = mask & (distance <= radius_mm)
    return tube


LOSSES = {
    "skeleton_recall": Loss(
        meaning="`dice_ce` plus the share of the labels' middle lines that is found, for vessels and other tubes",
        make=skeleton_recall,
        options={
            # as published
            "weight": NumberOption(default=1.0, minimum=0.0, maximum=100.0, meaning="factor on the skeleton term beside dice_ce"),
            # the authors dilate the skeleton twice
            "radius": NumberOption(default=2.0, minimum=0.0, maximum=20.0, meaning="radius of the tube in voxels of the finest axis"),
        },
        knows_ignored=True,
    ),
}
