"""Labels that a network does not predict anywhere, epoch after epoch: how long already, and what to try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from medseg3d.training.domains import TrainingDomain
from medseg3d.wording import listed

PATIENCE = 5
"""Epochs. Rare labels come late, but a label that 1250 steps have not brought up at all rarely comes by itself."""


def silent_since(before: Mapping[str, int], silent: Sequence[str]) -> dict[str, int]:
    """How many epochs in a row each label was predicted nowhere, with one more epoch.

    >>> silent_since({"liver": 2, "spleen": 4}, ["liver", "aorta"])
    {'liver': 3, 'aorta': 1}
    """
    return {label: before.get(label, 0) + 1 for label in silent}


def warnings(since: Mapping[str, int], domains: Sequence[TrainingDomain]) -> Iterator[str]:
    """A sentence for each dataset with labels that have been silent for exactly :data:`PATIENCE` epochs, with what to try."""
    for domain in domains:
        labels = [domain.label(index) for index in domain.plan.labels.foreground]
        collapsed = [label for label in labels if since.get(label) == PATIENCE]
        if collapsed:
            is_all = all(label in since for label in labels)
            advice = _if_all(domain) if is_all else _if_some(domain)
            yield (
                f"{listed(collapsed)}: predicted nowhere in the validation patches of the last {PATIENCE} epochs, which hold "
                f"{'them' if len(collapsed) > 1 else 'it'}. {advice}"
            )


def _if_all(domain: TrainingDomain) -> str:
    """Everything is background: nothing is learned, rather than something looked past."""
    rate = domain.configuration.training.learning_rate
    return (
        f"Nothing is predicted at all. Try another learning rate (now {rate:g}; medseg3d find-lr, train --learning-rate {rate / 10:g} "
        "--restart), and look at the images and labels: medseg3d doctor, and the report's pictures."
    )


def _if_some(domain: TrainingDomain) -> str:
    """What is not in use yet, the mildest first."""
    training = domain.configuration.training
    tries = []
    if training.foreground_oversampling < 0.6:
        tries.append(f"foreground_oversampling = 0.67 (now {training.foreground_oversampling:g})")
    if not training.balanced_classes:
        tries.append("balanced_classes = true, where few cases have the label")
    if training.loss == "dice_ce":
        tries.append('loss = "dice_focal", or what plan --explain suggests for these labels (cc_dice_ce for many small pieces)')
    tries.append("a larger patch or a finer spacing, where the label is a few voxels wide")
    return f"Where the next epochs do not bring it, try in the [training] of a planner file: {'; '.join(tries)}."
