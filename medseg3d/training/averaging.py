"""A mean of a network's weights over its training, kept beside them: steps go in, tensors come out.

The mean is over a share of the run so far, so that it is usable whenever training stops, and no length need be known beforehand
(power-function averaging: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

STEPS_BETWEEN = 4
"""Weights move by little in a step: the mean of every fourth is that of all, at a quarter of the work."""


def averaging(
    network: nn.Module, mean_age: float, changing: AbstractContextManager[object], saved: Mapping[str, Tensor]
) -> AveragedWeights | None:
    """What averages the weights of a run, going on with those that were ``saved``; None for a ``mean_age`` of 0."""
    if not mean_age:
        return None
    average = AveragedWeights(network, mean_age, changing)
    if saved:
        average.fill(saved)
    return average


class AveragedWeights:
    """The averaged tensors of ``network``, by the names of its state dict; none before the first :meth:`note`.

    ``mean_age`` is how far back their mean lies, as a share of the steps so far: with 0.5 all steps count the same, with 0.1 the
    weight of a step rises with its eighth power. Buffers are averaged like parameters; whole numbers are those of the last step.
    ``changing`` is held while the two are exchanged, so that no other thread saves what does not belong together.
    """

    def __init__(self, network: nn.Module, mean_age: float, changing: AbstractContextManager[object]) -> None:
        self._network, self._exponent, self._changing = network, 1 / mean_age - 1, changing
        self._tensors: dict[str, Tensor] = {}
        self._is_in_place = False

    @property
    def is_there(self) -> bool:
        """Something was averaged."""
        return bool(self._tensors)

    @torch.no_grad()
    def note(self, step: int) -> None:
        """Take up the network's weights after the step of this number, 1 for the first."""
        if step % STEPS_BETWEEN:
            return
        current = self._network.state_dict()
        if not self._tensors:
            self._tensors = {name: tensor.clone() for name, tensor in current.items()}
            return
        share = 1 - (1 - STEPS_BETWEEN / step) ** self._exponent
        moving = [name for name, tensor in current.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self._tensors[name] for name in moving], [current[name] for name in moving], share)
        for name in current.keys() - set(moving):
            self._tensors[name].copy_(current[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Meanwhile the network has the averaged weights; :attr:`last` and :attr:`averaged` stay what they are."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        with self._changing:
            for name, tensor in self._network.state_dict().items():
                held = self._tensors[name].clone()
                self._tensors[name].copy_(tensor)
                tensor.copy_(held)
            self._is_in_place = not self._is_in_place

    @property
    def last(self) -> Mapping[str, Tensor]:
        """The weights that training goes on with."""
        return self._tensors if self._is_in_place else self._network.state_dict()

    @property
    def averaged(self) -> Mapping[str, Tensor]:
        """The averaged ones; empty before there are any."""
        return self._network.state_dict() if self._is_in_place else self._tensors

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with those of a saved run."""
        own = self._network.state_dict()
        self._tensors = {name: tensor.to(own[name].device).clone() for name, tensor in tensors.items()}
