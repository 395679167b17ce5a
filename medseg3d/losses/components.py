"""A loss over single objects: every connected component of a label counts the same, however small it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medseg3d.losses.loss import IGNORED, SMOOTH, Loss, LossFunction, LossSettings, spacing_of
from medseg3d.losses.regions import dice_ce
from medseg3d.number_options import NumberOption


def cc_dice_ce(settings: LossSettings) -> LossFunction:
    """``dice_ce`` plus ``weight`` times the mean over components of 1 minus Dice plus cross-entropy, each within the component's cell.

    The cell of a component are the voxels that are nearer to it than to any other one of its label (Voronoi, in mm: CC-Metrics, Jaus et
    al. 2025; as a loss CC-DiceCE, Bouteille et al. 2025). So a lesion of ten voxels weighs as much as one of ten thousand, and a false
    positive costs the lesion next to it. Means go over the components of a label, the labels of a sample and the samples; where a label
    is absent only ``dice_ce`` says so.
    """
    options = settings.options
    whole = dice_ce(settings)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        predicted = logits.softmax(1)
        cross_entropy = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
        cells = component_cells(labels, settings.num_classes, spacing_of(settings, labels.shape[1:]))
        per_sample = [
            _mean_over_labels(predicted[sample], cross_entropy[sample], labels[sample], own, settings.num_classes)
            for sample, own in enumerate(cells)
        ]
        return whole(logits, labels) + options["weight"] * torch.stack(per_sample).mean()

    return loss


def _mean_over_labels(predicted: Tensor, cross_entropy: Tensor, labels: Tensor, cells: dict[int, Tensor], num_classes: int) -> Tensor:
    """Of one sample: 0 where it has none of the labels."""
    means = []
    for label, cell in cells.items():
        inside, reference, of_label = cell.flatten(), (labels == label).float(), predicted[label]
        count = int(inside.max()) + 1
        ones = torch.ones_like(reference)
        counted = (of_label * reference, of_label, reference, cross_entropy, ones)
        overlap, claimed, present, wrong, size = (_sums(values, inside, count) for values in counted)
        dice = (2 * overlap + SMOOTH) / (claimed + present + SMOOTH)
        means.append((1 - dice + wrong / size.clamp_min(1)).mean())
    return torch.stack(means).mean() if means else cross_entropy.new_zeros(())


def _sums(values: Tensor, cells: Tensor, count: int) -> Tensor:
    """Per cell from 1 on. In float64, as one float32 sum over millions of voxels would round each addend away; Apple's GPUs have none."""
    wide = torch.float32 if values.device.type == "mps" else torch.float64
    zeros = torch.zeros(count, dtype=wide, device=values.device)
    return zeros.index_add(0, cells, values.flatten().to(wide))[1:].float()


def component_cells(labels: Tensor, num_classes: int, spacing: Sequence[float]) -> list[dict[int, Tensor]]:
    """Per sample and foreground label that it has, the cells of the label's components: 1, 2, …, int64 of the sample's shape.

    Components are 26-connected, in 2D 8-connected; ``spacing`` is in mm. Ignored voxels belong to no cell (0). On the CPU: 0.25 s of a
    core for twenty components in 128³ voxels, next to nothing for one.
    """
    values = labels.cpu().numpy()
    found = []
    for sample in values:
        is_known = sample != IGNORED
        present = {label: sample == label for label in range(min(1, num_classes - 1), num_classes)}
        cells = {label: np.where(is_known, _cells(mask, spacing), 0) for label, mask in present.items() if mask.any()}
        found.append({label: torch.from_numpy(cell.astype(np.int64)).to(labels.device) for label, cell in cells.items()})
    return found


def _cells(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    import cc3d
    from scipy.ndimage import distance_transform_edt

    connectivity = 8 if mask.ndim == 2 else 26
    components, count = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=connectivity, return_N=True)
    if count == 1:
        return np.ones(mask.shape, np.uint16)
    nearest = distance_transform_edt(~mask, sampling=spacing, return_distances=False, return_indices=True)
    cells: np.ndarray = components[tuple(nearest)]
    return cells


LOSSES = {
    "cc_dice_ce": Loss(
        meaning="`dice_ce` plus Dice and cross-entropy of every single lesion, for many small ones",
        make=cc_dice_ce,
        options={
            # equal weights of the whole and of the lesions, as published
            "weight": NumberOption(default=1.0, minimum=0.0, maximum=100.0, meaning="factor on the mean over components beside dice_ce"),
        },
        knows_ignored=True,
    ),
}
