"""How a network does on patches of its validation cases after an epoch: losses and counts go in, pseudo-Dice per label comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from medseg3d.devices import Device
from medseg3d.losses import supervised_loss
from medseg3d.losses.supervision import Counts
from medseg3d.patches.augmentation import augment
from medseg3d.patches.loading import PatchLoader
from medseg3d.team import ALONE, Team
from medseg3d.training.domains import TrainingDomain
from medseg3d.training.step import outputs_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchValidation:
    """``loss`` is None without finite ones; ``dice`` has an entry per label, None where neither network nor reference has it.

    ``silent`` are the labels that the reference has and the network predicts nowhere.
    """

    loss: float | None
    dice: dict[str, float | None]
    silent: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        """Over the labels that are there."""
        present = [value for value in self.dice.values() if value is not None]
        return float(np.mean(present)) if present else None


def validate_patches(
    network: torch.nn.Module,
    domain: TrainingDomain,
    loader: PatchLoader,
    device: Device,
    *,
    num_batches: int,
    on_batch: Callable[[], None] = lambda: None,
    team: Team = ALONE,
) -> PatchValidation:
    """The same patches after every epoch, so that epochs can be compared; nothing is measured where there are no validation cases.

    Pseudo-Dice sums the voxels of all patches before it divides (nnU-Net 2.8.1), also over the processes of a ``team``.
    """
    labels = domain.plan.labels
    losses: list[float] = []
    counts: Counts | None = None
    if domain.validation:
        network.eval()
        with torch.inference_mode(), closing(loader.batches(0, num_batches)) as batches:
            for batch in batches:
                image, target = augment(batch, domain.policy, device.device)  # without draws: as they were read
                with team.sharing(loader.batch_size) as share:
                    with device.autocast():
                        logits = outputs_of(network, image, domain.name)
                    found = supervised_loss(logits, target, domain.loss, count=domain.count)
                losses.append(share * float(found.total))
                if found.counts is not None:
                    counts = found.counts if counts is None else counts + found.counts
                on_batch()
        losses = team.summed(losses)
        if counts is not None:
            counts = counts.summed(team)
    finite = [value for value in losses if math.isfinite(value)]
    dice = counts.dice().tolist() if counts is not None else [math.nan] * labels.num_classes
    return PatchValidation(
        loss=float(np.mean(finite)) if finite else None,
        dice={domain.label(i): None if math.isnan(dice[i]) else dice[i] for i in labels.foreground},
        silent=() if counts is None else tuple(domain.label(i) for i in labels.foreground if counts.is_silent(i)),
    )


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Over what is known: every domain counts the same, whatever its number of labels."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


SMOOTHING = 0.9
"""Of the smoothed value what stays after an epoch (nnU-Net 2.8.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothed:
    """An exponential mean of the epochs' values and the weight that they have in it together, 0 … 1.

    Dividing by that weight corrects the bias of the start, as Adam does: the mean follows a curve that rises from its first epoch on.
    """

    value: float
    weight: float


def smoothed(before: Smoothed | None, value: float) -> Smoothed:
    """With one more epoch.

    >>> first = smoothed(None, 0.5)
    >>> round(first.value, 6), round(smoothed(first, 0.9).value, 6)
    (0.5, 0.710526)
    """
    old = before or Smoothed(value=0.0, weight=0.0)
    weight = SMOOTHING * old.weight + (1 - SMOOTHING)
    return Smoothed(value=(SMOOTHING * old.weight * old.value + (1 - SMOOTHING) * value) / weight, weight=weight)
