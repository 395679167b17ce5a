"""Which case a patch is from, and which label it is centered on: by chance, in turn, by label, or by difficulty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

FLOOR = 0.05
"""What is added to 1 - Dice: a case that is perfect today is still looked at now and then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseChoice:
    """How cases, and labels to center patches on, are chosen; the default is nnU-Net's, a case by chance and a label of its own.

    ``is_even``: every case in turn, in an order of its own for each turn, so that none is drawn more often than another. ``is_by_label``:
    the label first, of all that any case has, then a case with it, so that a label of few cases is seen as often as one of all.
    ``hard_share`` of the patches are drawn in proportion to 1 - ``dice`` of the cases; one that is not measured yet counts as 0.
    """

    is_even: bool = False
    is_by_label: bool = False
    hard_share: float = 0.0
    dice: Mapping[str, float] = field(default_factory=dict)


def choose_case(
    choice: CaseChoice,
    names: Sequence[str],
    rng: np.random.Generator,
    *,
    place: int,
    turn_seed: Sequence[int],
    owners: Mapping[int, Sequence[int]],
) -> tuple[int, int | None]:
    """The place of a case in ``names``, and the label that its patch is centered on, None for any.

    ``place`` counts the samples of an epoch and ``turn_seed`` stands for the epoch, so that the turns are the same for whoever makes the
    sample. ``owners`` are the cases with each label; empty where the patch lies anywhere.
    """
    label = None
    candidates: Sequence[int] = range(len(names))
    if choice.is_by_label and owners:
        labels = sorted(owners)
        label = labels[int(rng.integers(len(labels)))]
        candidates = owners[label]
    if choice.hard_share and rng.random() < choice.hard_share:
        weights = np.array([1 - choice.dice.get(names[case], 0.0) + FLOOR for case in candidates])
        return int(rng.choice(np.asarray(candidates), p=weights / weights.sum())), label
    if choice.is_even and label is None:
        turn, within = divmod(place, len(names))
        return int(np.random.default_rng((*turn_seed, turn)).permutation(len(names))[within]), None
    return int(candidates[int(rng.integers(len(candidates)))]), label
