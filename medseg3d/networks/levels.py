"""Networks that can predict with a part of themselves: levels, of which each contains the lower ones.

A user gives up the deepest nodes for speed where the validation says that little is lost. In: such a network. Out: its levels, and the
logits of all of them at once.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn


class Levelled(nn.Module):
    """A network whose ``level`` says how much of it predicts; at first the deepest one, all of it."""

    level: int

    @property
    @abstractmethod
    def levels(self) -> tuple[int, ...]:
        """The levels that can predict, rising; the last one is the whole network."""

    @abstractmethod
    def level_logits(self, x: Tensor) -> list[Tensor]:
        """What each level predicts, of one pass, deepest first; with the bits that it gives alone."""


class EveryLevel(nn.Module):
    """The logits of all levels of a network behind each other, deepest first: ``(batch, levels * K, …)``."""

    def __init__(self, network: Levelled) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """For prediction, not for training."""
        return torch.cat(self.network.level_logits(x), 1)


def levels_of(network: nn.Module) -> tuple[int, ...]:
    """The levels that can predict; none where there is nothing to choose."""
    return network.levels if isinstance(network, Levelled) and len(network.levels) > 1 else ()


def set_level(network: nn.Module, level: int) -> None:
    """Let a level predict; it has to be one of :func:`levels_of`."""
    if not isinstance(network, Levelled) or level not in network.levels:
        raise ValueError(f"level {level} of {type(network).__name__}, which has {levels_of(network)}")
    network.level = level
