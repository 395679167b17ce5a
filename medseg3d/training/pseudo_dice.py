"""How a network does on patches of its validation cases after an epoch: losses and counts go in, pseudo-Dice per label comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from medseg3d.devices import Device
from medseg3d.patches.loading import PatchLoader
from medseg3d.training.domains import TrainingDomain, run_network, to_device
from medseg3d.training.loss_functions import LossFunction, supervised_loss
from medseg3d.training.losses import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchValidation:
    """``loss`` is None without finite ones; ``dice`` has an entry per label, None where neither network nor reference has it."""

    loss: float | None
    dice: dict[str, float | None]

    @property
    def mean(self) -> float | None:
        """Over the labels that are there."""
        present = [value for value in self.dice.values() if value is not None]
        return float(np.mean(present)) if present else None


def validate_patches(
    network: torch.nn.Module, domain: TrainingDomain, loader: PatchLoader, loss: LossFunction, device: Device, *, num_batches: int
) -> PatchValidation:
    """The same patches after every epoch, so that epochs can be compared; nothing is measured where there are no validation cases.

    Pseudo-Dice sums the voxels of all patches before it divides (nnU-Net 2.8.1).
    """
    labels = domain.plan.labels
    losses: list[float] = []
    counts: Counts | None = None
    if domain.validation:
        network.eval()
        with torch.inference_mode(), closing(loader.batches(0, num_batches)) as batches:
            for batch in batches:
                image, target = to_device(batch, device.device)
                with device.autocast():
                    logits = run_network(network, image, domain)
                found = supervised_loss(logits, target, loss, with_counts=True)
                losses.append(float(found.total))
                if found.counts is not None:
                    counts = found.counts if counts is None else counts + found.counts
    finite = [value for value in losses if math.isfinite(value)]
    dice = counts.dice().tolist() if counts is not None else [math.nan] * labels.num_classes
    return PatchValidation(
        loss=float(np.mean(finite)) if finite else None,
        dice={domain.label(i): None if math.isnan(dice[i]) else dice[i] for i in labels.foreground},
    )


def mean_of(values: Sequence[float | None]) -> float | None:
    """Over what is known: every domain counts the same, whatever its number of labels."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
