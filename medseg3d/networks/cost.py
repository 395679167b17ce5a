"""What a training step of a network takes: a plan and a batch go in; bytes, multiply-adds and parameters come out.

The real network is run on tensors that have shapes but no data (torch's fake tensors on the meta device), so that every family is
counted by the same rule and nothing is computed or allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from medseg3d.networks.build import checked_plan, family_of
from medseg3d.plan import NetworkPlan

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode

OPTIMIZER_SLOTS = {"sgd": 1, "adamw": 2}
"""float32 numbers that an optimizer keeps per parameter: the momentum; Adam's two moments."""
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
    optimizer: Literal["sgd", "adamw"]

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
    optimizer: Literal["sgd", "adamw"] = "sgd",
) -> StepCost:
    """Count a training step of ``batch_size`` patches, in bf16 mixed precision or in float32.

    The tensors pretend to lie on a CPU, where mixed precision keeps what it keeps on a GPU; so no GPU is needed. Raises
    :class:`PlanError` for a plan that cannot be built. All grows with the batch by the same amount for each sample from the second on,
    so large batches are not traced: norms go through their samples one by one.
    """
    traced = partial(_traced, plan, patch_size, in_half_precision=in_half_precision, optimizer=optimizer)
    if batch_size <= LARGEST_TRACED:
        return traced(batch_size)[0]
    (less, fewer), (more, sizes) = (traced(batch) for batch in (LARGEST_TRACED - 1, LARGEST_TRACED))
    if len(fewer) != len(sizes):
        return traced(batch_size)[0]
    further = batch_size - LARGEST_TRACED
    grown = [size + further * (size - smaller) for size, smaller in zip(sizes, fewer, strict=True)]
    return replace(
        more,
        saved_bytes=sum(grown),
        largest_bytes=max(grown, default=0),
        multiply_adds=more.multiply_adds + further * (more.multiply_adds - less.multiply_adds),
    )


def _traced(
    plan: NetworkPlan, patch_size: Sequence[int], batch_size: int, *, in_half_precision: bool, optimizer: Literal["sgd", "adamw"]
) -> tuple[StepCost, list[int]]:
    """The cost, and the bytes of everything that is saved, in order."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    saved: dict[int, Tensor] = {}
    counter = FlopCounterMode(display=False)
    mode = FakeTensorMode()
    network = _without_data(partial(family_of(plan).build, checked_plan(plan)), mode).train()
    with mode:
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                saved.setdefault(storage._cdata, tensor)
            return tensor

        image = torch.empty(batch_size, plan.in_channels, *patch_size)
        with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=in_half_precision):
                outputs = network(image)
            total = _stand_in_loss(outputs)
        sizes = [tensor.untyped_storage().nbytes() for tensor in saved.values()]
        parameters = sum(parameter.numel() for parameter in network.parameters())
        del total
    cost = StepCost(
        parameters=parameters,
        saved_bytes=sum(sizes),
        largest_bytes=max(sizes, default=0),
        multiply_adds=counter.get_total_flops() // 2,
        optimizer=optimizer,
    )
    return cost, sizes


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
