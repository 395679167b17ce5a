"""What a cascade sees of its first stage: a label map goes in, one channel per label comes out, changed at random while it trains.

First stages err otherwise on cases that they have not seen than on a training set that is looked at a thousand times. So nnU-Net 2.8.1
changes the shapes of their labels and takes whole objects away; the order, probabilities and ranges here are those of its default
trainer. Parameters are drawn first (numpy), then applied on the training device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Operator = Literal["dilate", "erode", "close", "open"]
OPERATORS: tuple[Operator, ...] = ("dilate", "erode", "close", "open")
P_OPERATORS, P_OPERATOR_LABEL = 0.4, 0.5
"""Of a sample, and then of each of its labels: that a binary operator changes its shape."""
RADIUS_RANGE = (1.0, 8.0)
"""Voxels; of the ball (in 2D the disk) that the operators work with."""
P_REMOVAL, P_REMOVAL_LABEL = 0.2, 0.5
"""Of a sample, and then of each of its labels: that one of its connected components is taken away …"""
MAX_REMOVED_SHARE = 0.15
"""… unless it covers this share of the patch or more: without it the second stage would learn to ignore the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousDraw:
    """What happens to the channels of a sample, one after the other.

    ``operators`` are (channel, operator, radius in voxels), ``removals`` (channel, a number from 0 to 1 that picks the component).
    """

    operators: tuple[tuple[int, Operator, float], ...] = ()
    removals: tuple[tuple[int, float], ...] = ()


def draw_previous(num_labels: int, rng: np.random.Generator) -> PreviousDraw:
    """Draw the parameters of one sample; labels come in random order, as a later one takes voxels from the earlier ones."""

    def chosen(probability: float, of_label: float) -> list[int]:
        if rng.random() >= probability:
            return []
        return [int(channel) for channel in rng.permutation(num_labels) if rng.random() < of_label]

    operators = [
        (channel, OPERATORS[int(rng.integers(len(OPERATORS)))], effective_radius(rng.uniform(*RADIUS_RANGE)))
        for channel in chosen(P_OPERATORS, P_OPERATOR_LABEL)
    ]
    removals = [(channel, float(rng.random())) for channel in chosen(P_REMOVAL, P_REMOVAL_LABEL)]
    return PreviousDraw(operators=tuple(operators), removals=tuple(removals))


def effective_radius(drawn: float) -> float:
    """Half the edge of skimage's ball of a broken radius, which nnU-Net takes: a ball of 3.4 is as large as one of 3.

    >>> effective_radius(3.4), effective_radius(3.6)
    (3.0, 3.5)
    """
    return (int(2 * drawn + 1) - 1) / 2


def one_hot(previous: Tensor, labels: Sequence[int]) -> Tensor:
    """Label indices ``(batch, …)`` → ``(batch, label, …)`` float32, 1 where the label is; in the order of ``labels``."""
    return torch.stack([previous == label for label in labels], 1).float()


def change_previous(channels: Tensor, draw: PreviousDraw) -> None:
    """Apply a draw in place on one sample ``(label, n0, …)`` of zeros and ones."""
    for channel, operator, radius in draw.operators:
        before = channels[channel] > 0
        after = _applied(before, operator, radius)
        added = after & ~before
        channels.masked_fill_(added[None], 0)  # one label per voxel, as before
        channels[channel] = after
    for channel, pick in draw.removals:
        component = _component(channels[channel], pick)
        if component is not None:
            channels[channel].masked_fill_(component, 0)


def _applied(mask: Tensor, operator: Operator, radius: float) -> Tensor:
    steps: dict[Operator, tuple[Callable[[Tensor, float], Tensor], ...]] = {
        "dilate": (dilated,),
        "erode": (_eroded,),
        "close": (dilated, _eroded),
        "open": (_eroded, dilated),
    }
    for step in steps[operator]:
        mask = step(mask, radius)
    return mask


def _eroded(mask: Tensor, radius: float) -> Tensor:
    """What lies beyond the patch does not take anything away."""
    return ~dilated(~mask, radius)


def dilated(mask: Tensor, radius: float) -> Tensor:
    """All voxels within ``radius`` voxels of a true one, by a product of spectra: its time hardly depends on the radius."""
    if not mask.any():
        return mask.clone()
    reach = math.floor(radius)
    edges = [n + reach for n in mask.shape]  # room for the ball, which would come in again at the other end
    ball = torch.zeros(edges, device=mask.device)
    offsets = torch.cartesian_prod(*[torch.arange(-reach, reach + 1, device=mask.device)] * mask.ndim)
    ball[tuple(offsets[(offsets**2).sum(1) <= radius**2].T)] = 1  # negative places count from the end
    counts = torch.fft.irfftn(torch.fft.rfftn(mask.float(), edges) * torch.fft.rfftn(ball), edges)
    return counts[tuple(slice(0, n) for n in mask.shape)] > 0.5  # whole numbers but for rounding


def _component(channel: Tensor, pick: float) -> Tensor | None:
    """The mask of one of the components that are small enough, on the device of ``channel``; None where there is none."""
    import cc3d

    mask = (channel > 0).cpu().numpy()
    components, count = cc3d.connected_components(mask, connectivity=26 if mask.ndim == 3 else 8, return_N=True)
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    small = np.flatnonzero(sizes < MAX_REMOVED_SHARE * mask.size)
    if not len(small):
        return None
    number = int(small[min(int(pick * len(small)), len(small) - 1)]) + 1
    return torch.from_numpy(components == number).to(channel.device)
