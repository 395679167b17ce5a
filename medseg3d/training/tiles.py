"""How a network does on whole validation cases after an epoch: fixed windows that cover them go in, Dice per label comes out.

Patches of training are centered on labels, so that what is wrongly found far from them is rarely seen; windows lie everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch

from medseg3d.devices import Device
from medseg3d.losses import supervised_loss
from medseg3d.losses.supervision import Counts
from medseg3d.patches.augmentation import augment
from medseg3d.patches.loading import PatchLoader
from medseg3d.patches.sampling import PatchBox
from medseg3d.prediction.sliding_window import window_starts
from medseg3d.training.domains import TrainingDomain
from medseg3d.training.pseudo_dice import PatchValidation
from medseg3d.training.step import outputs_of

Tiles = list[tuple[int, list[PatchBox]]]
"""The place of a case among the validation cases, and its windows."""


def fixed_tiles(shapes: Sequence[Sequence[int]], patch_size: Sequence[int], margin: Sequence[int], *, most: int) -> Tiles:
    """Windows side by side over as many whole cases as ``most`` windows cover, the cases evenly spread; of one case at least.

    Where a single case takes more, so many of its windows are taken, spread over all its axes, the middle first. The boxes hold the
    ``margin`` of unpadded networks.

    >>> tiles = fixed_tiles([(8, 8, 8)] * 4, (4, 8, 8), (0, 0, 0), most=5)
    >>> [(case, [box.start for box in boxes]) for case, boxes in tiles]
    [(0, [(0, 0, 0), (4, 0, 0)]), (2, [(0, 0, 0), (4, 0, 0)])]
    """
    lead = 3 - len(patch_size)
    inner = [*(1,) * lead, *(n - 2 * m for n, m in zip(patch_size, margin[lead:], strict=True))]
    of_case = [_boxes(shape, inner, margin) for shape in shapes]
    chosen: Tiles = []
    left = most
    for case in _spread(len(shapes)):
        boxes = of_case[case]
        if chosen and len(boxes) > left:
            continue
        if len(boxes) > left:
            boxes = _far_apart(boxes, left)
        chosen.append((case, boxes))
        left -= len(boxes)
    return sorted(chosen, key=lambda tile: tile[0])


def _spread(count: int) -> list[int]:
    """All numbers below ``count``, so that the first of them lie far apart: 0, the middle, the quarters …"""
    order: list[int] = []
    parts = 1
    while len(order) < count:
        order += [place for k in range(parts) if (place := count * k // parts) not in order]
        parts *= 2
    return order


def _far_apart(boxes: Sequence[PatchBox], count: int) -> list[PatchBox]:
    """So many of the boxes, each as far as can be from those before it; the first is the one nearest to the middle, as the borders of an
    image are air. In the order in which they came."""
    places = np.array([box.start for box in boxes], float) / np.array(boxes[0].size, float)
    distance = np.square(places - (places.min(0) + places.max(0)) / 2).sum(1)
    chosen = [int(distance.argmin())]
    nearest = np.square(places - places[chosen[0]]).sum(1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(places - places[chosen[-1]]).sum(1))
    return [boxes[place] for place in sorted(chosen)]


def _boxes(shape: Sequence[int], inner: Sequence[int], margin: Sequence[int]) -> list[PatchBox]:
    """Around a volume that is smaller than a window the window lies as in training."""
    starts = [
        window_starts(size, window, 1.0) if size >= window else (-math.ceil((window - size) / 2),)
        for size, window in zip(shape, inner, strict=True)
    ]
    size = tuple(n + 2 * m for n, m in zip(inner, margin, strict=True))
    return [PatchBox(start=tuple(s - m for s, m in zip(start, margin, strict=True)), size=size) for start in product(*starts)]


def validate_tiles(
    network: torch.nn.Module,
    domain: TrainingDomain,
    loader: PatchLoader,
    device: Device,
    *,
    num_tiles: int,
    on_batch: Callable[[], None] = lambda: None,
) -> PatchValidation:
    """Dice per label, the mean over cases, and the mean loss; ``loader`` reads the validation cases. Nothing where there are none."""
    labels = domain.plan.labels
    tiles = fixed_tiles([case.labels.shape for case in loader.cases], loader.patch_size, loader.margin, most=num_tiles)
    losses: list[float] = []
    of_cases: list[Counts] = []
    network.eval()
    with torch.inference_mode():
        for case, boxes in tiles:
            counts: Counts | None = None
            for first in range(0, len(boxes), loader.batch_size):
                batch = loader.batch_of([(case, box) for box in boxes[first : first + loader.batch_size]])
                image, target = augment(batch, domain.policy, device.device)
                with device.autocast():
                    logits = outputs_of(network, image, domain.name)
                found = supervised_loss(logits, target, domain.loss, count=domain.count)
                losses.append(float(found.total))
                if found.counts is not None:
                    counts = found.counts if counts is None else counts + found.counts
                on_batch()
            if counts is not None:
                of_cases.append(counts)
    dice = {domain.label(i): _mean([float(counts.dice()[i]) for counts in of_cases]) for i in labels.foreground}
    total = None if not of_cases else of_cases[0]
    for counts in of_cases[1:]:
        total = counts if total is None else total + counts
    return PatchValidation(
        loss=_mean(losses),
        dice=dice,
        silent=() if total is None else tuple(domain.label(i) for i in labels.foreground if total.is_silent(i)),
    )


def _mean(values: Sequence[float]) -> float | None:
    """Of the finite ones; None without any."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else None
