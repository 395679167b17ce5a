"""Test-time mirroring: the network's answers to all flips along the axes that training flipped, turned back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import torch


def flips(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """All subsets of the axes, the empty one first.

    >>> flips((0, 2))
    ((), (0,), (2,), (0, 2))
    """
    return tuple(subset for size in range(len(axes) + 1) for subset in combinations(axes, size))


def flipped_logits(
    network: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, mirror_axes: Sequence[int]
) -> Iterator[torch.Tensor]:
    """Float32 logits of ``(B, C, spatial…)`` for each flip, turned back, the unflipped first; axis 0 is the first spatial axis.

    Each tensor is a new one that the caller may change.
    """
    for subset in flips(mirror_axes):
        dims = [axis + 2 for axis in subset]
        logits = network(batch.flip(dims) if dims else batch)
        if dims:
            yield logits.float().flip(dims)
        elif logits.dtype == torch.float32 and logits.untyped_storage().data_ptr() == batch.untyped_storage().data_ptr():
            yield logits.clone()
        else:
            yield logits.float()
