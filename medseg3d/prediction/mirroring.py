"""Test-time mirroring: the mean over all flips along the axes that training flipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch


def flips(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """All subsets of the axes, the empty one first.

    >>> flips((0, 2))
    ((), (0,), (2,), (0, 2))
    """
    return tuple(subset for size in range(len(axes) + 1) for subset in combinations(axes, size))


def mean_over_flips(network: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, mirror_axes: Sequence[int]) -> torch.Tensor:
    """Mean float32 logits of ``(B, C, spatial…)`` over all flips; axis 0 is the first spatial axis."""
    total = torch.zeros((), device=batch.device)
    for subset in flips(mirror_axes):
        dims = [axis + 2 for axis in subset]
        logits = network(batch.flip(dims) if dims else batch).float()
        logits = logits.flip(dims) if dims else logits
        total = total + logits
    return total / 2 ** len(mirror_axes)
