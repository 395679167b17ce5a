"""What a training step of a network takes: a plan and a batch go in; bytes, multiply-adds and parameters come out.

The real network is run on tensors that have shapes but no data (torch's fake tensors on the meta device), so that every family is
counted by the same rule and nothing is computed or allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medseg3d.networks.build import checked_plan, family_of
from medseg3d.plan import NetworkPlan, OptimizerName

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

OPTIMIZER_SLOTS: dict[OptimizerName, int] = {"sgd": 1, "adamw": 2, "muon": 1}
"""float32 numbers that an optimizer keeps per parameter: the momentum; Adam's two moments; of `muon` the momentum, as nearly all are
kernels."""
BYTES = 4
"""Of a float32."""
LARGEST_TRACED = 3
"""Larger batches follow from this one and the one before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """One training step. ``saved_bytes``: activations that wait for the backward pass, up to the loss. ``multiply_adds``: of
    the forward pass; the backward pass takes about twice as many. ``peak_bytes``: weights, gradients, optimizer, saved
    activations, and the gradients that pass the largest feature map."""

    parameters: int
    saved_bytes: int
    largest_bytes: int
    multiply_adds: int
    optimizer: OptimizerName

    @property
    def fixed_bytes(self) -> int:
        """What does not depend on the batch: weights, gradients and the optimizer's numbers, all float32."""
        return self.parameters * BYTES * (2 + OPTIMIZER_SLOTS[self.optimizer])

    @property
    def peak_bytes(self) -> int:
        """The most that is allocated at once."""
        return self.fixed_bytes + self.saved_bytes + 2 * self.largest_bytes


def step_cost(
    plan: NetworkPlan,
    patch_size: Sequence[int],
    batch_size: int,
    *,
    in_half_precision: bool = True,
    optimizer: OptimizerName = "sgd",
) -> StepCost:
    """Count a training step of ``batch_size`` patches, in bf16 mixed precision or in float32.

    The tensors pretend to lie on a CPU, where mixed precision keeps what it keeps on a GPU; so no GPU is needed. Raises
    :class:`PlanError` for a plan that cannot be built. All grows with the batch by the same amount for each sample from the second on,
    so large batches are not traced: norms go through their samples one by one.
    """
    return Tracer(plan).step_cost(patch_size, batch_size, in_half_precision=in_half_precision, optimizer=optimizer)


class Tracer:
    """A network on tensors without data, that can be traced for several patches and batches. Raises as :func:`step_cost`."""

    def __init__(self, plan: NetworkPlan) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.mode, self.in_channels = FakeTensorMode(), plan.in_channels
        self.network = _without_data(partial(family_of(plan).build, checked_plan(plan)), self.mode).train()
        self.parameters = sum(parameter.numel() for parameter in self.network.parameters())

    def step_cost(
        self,
        patch_size: Sequence[int],
        batch_size: int,
        *,
        in_half_precision: bool = True,
        optimizer: OptimizerName = "sgd",
        counts_work: bool = True,
    ) -> StepCost:
        """As :func:`step_cost`; without ``counts_work`` in half of the time, and ``multiply_adds`` is 0."""
        traced = partial(self._sizes, patch_size, in_half_precision=in_half_precision, counts_work=counts_work)
        whole = partial(self.traced_cost, patch_size, in_half_precision=in_half_precision, optimizer=optimizer, counts_work=counts_work)
        if batch_size <= LARGEST_TRACED:
            return whole(batch_size)
        (fewer, less), (sizes, more) = (traced(batch) for batch in (LARGEST_TRACED - 1, LARGEST_TRACED))
        if len(fewer) != len(sizes):
            return whole(batch_size)
        further = batch_size - LARGEST_TRACED
        grown = [size + further * (size - smaller) for size, smaller in zip(sizes, fewer, strict=True)]
        return self._cost(grown, more + further * (more - less), optimizer)

    def traced_cost(
        self,
        patch_size: Sequence[int],
        batch_size: int,
        *,
        in_half_precision: bool = True,
        optimizer: OptimizerName = "sgd",
        counts_work: bool = True,
    ) -> StepCost:
        """As :meth:`step_cost`, with all of a large batch traced."""
        sizes, multiply_adds = self._sizes(patch_size, batch_size, in_half_precision=in_half_precision, counts_work=counts_work)
        return self._cost(sizes, multiply_adds, optimizer)

    def _cost(self, sizes: Sequence[int], multiply_adds: int, optimizer: OptimizerName) -> StepCost:
        return StepCost(
            parameters=self.parameters,
            saved_bytes=sum(sizes),
            largest_bytes=max(sizes, default=0),
            multiply_adds=multiply_adds,
            optimizer=optimizer,
        )

    def _sizes(self, patch_size: Sequence[int], batch_size: int, *, in_half_precision: bool, counts_work: bool) -> tuple[list[int], int]:
        """The bytes of everything that is saved, in order, and the multiply-adds."""
        from torch.utils.flop_counter import FlopCounterMode

        saved: dict[int, Tensor] = {}
        weights = {parameter.untyped_storage()._cdata for parameter in self.network.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                saved.setdefault(storage._cdata, tensor)
            return tensor

        counter = FlopCounterMode(display=False) if counts_work else None
        with self.mode:
            image = torch.empty(batch_size, self.in_channels, *patch_size)
            with counter or nullcontext(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                with torch.autocast("cpu", torch.bfloat16, enabled=in_half_precision):
                    outputs = self.network(image)
                total = _stand_in_loss(outputs)
            sizes = [tensor.untyped_storage().nbytes() for tensor in saved.values()]
            del total
        return sizes, 0 if counter is None else counter.get_total_flops() // 2


def _without_data(build: Callable[[], nn.Module], mode: FakeTensorMode) -> nn.Module:
    """The network on tensors without data; one whose constructor looks at numbers is built with them first."""
    from torch._subclasses.fake_tensor import DataDependentOutputException

    try:
        with mode:
            return build()
    except DataDependentOutputException:
        network = build()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(mode.from_tensor(parameter.detach()), requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, mode.from_tensor(buffer))
    return network


def _stand_in_loss(outputs: Tensor | list[Tensor]) -> Tensor:
    """What every loss here does with the logits: float32 log-probabilities, and probabilities from them."""
    heads = [outputs] if isinstance(outputs, Tensor) else outputs
    total = torch.zeros((), device=heads[0].device)
    for logits in heads[: max(1, len(heads) - 1)]:  # the coarsest has weight 0
        log_probabilities = torch.log_softmax(logits.float(), 1)
        total = total + log_probabilities.exp().sum() + log_probabilities.mean()
    return total
