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
    network: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, mirror_axes: Sequence[int], *, at_once: int = 1
) -> Iterator[torch.Tensor]:
    """Float32 logits of ``(B, C, spatial…)`` for each flip, turned back, the unflipped first; axis 0 is the first spatial axis.

    ``at_once`` flips go through the network together. Each tensor is a new one that the caller may change.
    """
    subsets = flips(mirror_axes)
    for first in range(0, len(subsets), at_once):
        group = [[axis + 2 for axis in subset] for subset in subsets[first : first + at_once]]
        flipped = [batch.flip(dims) if dims else batch for dims in group]
        given = torch.cat(flipped) if len(flipped) > 1 else flipped[0]
        answer = network(given)
        for logits, dims in zip(torch.split(answer, len(batch)), group, strict=True):
            if dims:
                yield logits.float().flip(dims)
            elif logits.dtype == torch.float32 and logits.untyped_storage().data_ptr() == batch.untyped_storage().data_ptr():
                yield logits.clone()
            else:
                yield logits.float()
