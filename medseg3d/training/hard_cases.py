"""How well the training cases are known after an epoch: patches of them, as they are, go in, a Dice per case comes out.

The validation cases of a fold are never trained on, so that nothing can be drawn by how they do; the training cases are looked at in the
same way, in turn, in patches that are not augmented.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import torch

from medseg3d.devices import Device
from medseg3d.losses.supervision import Counts, supervise
from medseg3d.patches.augmentation import augment
from medseg3d.patches.loading import PatchLoader
from medseg3d.team import ALONE, Team
from medseg3d.training.domains import TrainingDomain
from medseg3d.training.step import outputs_of

REMEMBERED = 0.5
"""Of a case's Dice what stays when it is measured again: a patch shows a part of it, and the network goes on learning."""


def measured_cases(
    network: torch.nn.Module,
    domain: TrainingDomain,
    loader: PatchLoader,
    device: Device,
    *,
    epoch: int,
    num_batches: int,
    before: Mapping[str, float],
    team: Team = ALONE,
) -> dict[str, float]:
    """The Dice of the cases by name, mean over the labels that a case shows; those that had no turn keep what they had ``before``.

    ``loader`` gives patches of the training cases, the same for the same epoch, so that a continued run measures the same.
    """
    found: list[tuple[str, Counts]] = []
    network.eval()
    with torch.inference_mode(), closing(loader.batches(epoch, num_batches)) as batches:
        for batch in batches:
            image, target = augment(batch, domain.policy, device.device)  # without draws: as they were read
            with device.autocast():
                outputs = outputs_of(network, image, domain.name)
            head = supervise(outputs, target)[0]
            logits, labels = head.logits.float(), head.labels
            found += [(name, domain.count(logits[n : n + 1], labels[n : n + 1])) for n, name in enumerate(batch.names)]
    dice = [(name, _mean_dice(counts)) for name, counts in found]
    result = dict(before)
    for name, value in (each for of_one in team.collected(dice) for each in of_one):
        if value is not None:
            result[name] = value if name not in result else REMEMBERED * result[name] + (1 - REMEMBERED) * value
    return result


def _mean_dice(counts: Counts) -> float | None:
    """Over the foreground labels that the patch shows or that are predicted in it; None where there is neither."""
    known = [value for value in counts.dice().tolist()[1:] if value == value]
    return sum(known) / len(known) if known else None
