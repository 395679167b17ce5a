"""Probabilities of a prediction → the Dice that the model itself expects; expected Dice of many cases → which to annotate next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MAX_DEVIATIONS = 5.0
"""Of one number: beyond, it is merely very unlike, and must not outweigh all others."""
LEAST_SPREAD = 0.05
"""Of numbers that are the same in all training cases: five percent of a length (they are logarithms), or of a range of grey values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A case worth annotating; ``reasons`` are clauses for people. ``unlikeness`` in standard deviations of the training cases."""

    case: str
    expected_dice: float | None
    labels: dict[str, float | None]
    unlikeness: float
    score: float
    reasons: tuple[str, ...]


def expected_dice(inside: float, total: float, voxels: float) -> float | None:
    """2·Σp inside of a label's mask / (Σp everywhere + voxels of the mask); None where nothing is expected.

    That is the Dice of the mask with a reference whose voxels are drawn with these probabilities, each mean taken by itself.

    >>> expected_dice(90.0, 95.0, 100.0), expected_dice(0.0, 0.2, 0.0)
    (0.9230769230769231, None)
    """
    return 2 * inside / (total + voxels) if total + voxels > LEAST_VOXELS else None


LEAST_VOXELS = 0.5
"""With less, neither a voxel was found nor one missed."""


def unlikeness(numbers: np.ndarray, others: np.ndarray, spread: np.ndarray) -> float:
    """The distance of a case to the nearest of some others: the root of the mean square, in ``spread`` of each number."""
    if not len(others):
        return 0.0
    steps = np.clip(np.abs(others - numbers) / spread, 0, MAX_DEVIATIONS)
    return float(np.sqrt((steps**2).mean(1)).min())


def spread_of(training: np.ndarray) -> np.ndarray:
    """The standard deviation of each number over the training cases."""
    return np.maximum(training.std(0), LEAST_SPREAD)


def chosen_next(
    expected: Mapping[str, float | None], numbers: Mapping[str, np.ndarray], training: np.ndarray, *, count: int, diversity: float
) -> list[tuple[str, float, float]]:
    """Cases one after the other with unlikeness and score, the most worth first.

    The score is ``diversity`` times the rank of its unlikeness to the training cases and those already chosen, and the rest the rank of
    what the model does not expect of itself. What nothing is expected of (no label was predicted) counts as most unsure.
    """
    waiting, spread = sorted(expected), spread_of(training)
    unsure = _ranks({case: math.inf if (dice := expected[case]) is None else -dice for case in waiting})
    seen = list(training)
    chosen: list[tuple[str, float, float]] = []
    while waiting and len(chosen) < count:
        far = {case: unlikeness(numbers[case], np.array(seen), spread) for case in waiting}
        ranks = _ranks(far)
        scores = {case: (1 - diversity) * unsure[case] + diversity * ranks[case] for case in waiting}
        best = max(waiting, key=lambda case: (scores[case], -waiting.index(case)))
        chosen.append((best, far[best], scores[best]))
        seen.append(numbers[best])
        waiting.remove(best)
    return chosen


def _ranks(values: Mapping[str, float]) -> dict[str, float]:
    """From 0 for the smallest to 1 for the largest, equal ones alike."""
    ordered = sorted(set(values.values()))
    place = {value: number / max(1, len(ordered) - 1) for number, value in enumerate(ordered)}
    return {case: place[value] for case, value in values.items()}
