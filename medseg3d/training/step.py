"""One step of training: a batch goes in; its loss, the norm of its gradient, and whether both are finite come out.

The loop, the search for a learning rate, the time budget and the probe of bf16 all take it from here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from medseg3d.devices import Device
from medseg3d.losses import LossFunction, supervised_loss
from medseg3d.networks.class_memory import note_labels, remember
from medseg3d.team import ALONE, Team
from medseg3d.training.domains import NO_NAME

NORM_MEMORY = 0.95
"""Of the running norms of gradients: they follow the last twenty steps of a domain."""
LARGEST_RISE = 10
"""A single step counts as so many times the running norm at most: what follows a spike would be too small for long otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """The network as one process of a ``team`` has it: gradients are the mean over all of them after a backward pass of ``network``."""

    team: Team
    network: nn.Module


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a training step changes, and the rules that it follows.

    Gradients whose norm exceeds ``gradient_clip`` are scaled down to it; where they are normalized, they are divided by their running
    norm before, which is that of ``shared``: the weights that all domains use, or else all. ``replica`` is given where a
    team of processes trains.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: Device
    gradient_clip: float = math.inf
    normalizes_gradients: bool = False
    shared: tuple[nn.Parameter, ...] = ()
    replica: Replica | None = None
    frozen_norms: tuple[nn.Module, ...] = ()

    def begin_training(self) -> None:
        """Let dropout and norms work as in training, but for the norms that keep what they know."""
        self.network.train()
        for norm in self.frozen_norms:
            norm.eval()

    def on(self, device: Device) -> Learner:
        """The same in another precision, with a fresh scaler."""
        return replace(self, device=device, scaler=scaler_for(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What came of a step. Where it is not finite the weights are as before, and ``gradient_norm`` is NaN if it was the loss.

    ``running_norm`` is that of the gradients with this step, as it was where they are not normalized.
    """

    loss: float
    gradient_norm: float
    is_finite: bool
    running_norm: float


def take_step(
    learner: Learner, image: Tensor, labels: Tensor, loss: LossFunction, *, domain: str = NO_NAME, running_norm: float = 0.0
) -> Step:
    """Change the weights by a batch on the learner's device; ``running_norm`` is that of the steps before, 0 for the first."""
    value = compute_gradients(learner.network, image, labels, loss, learner.device, scaler=learner.scaler, domain=domain)
    return apply_gradients(learner, value, running_norm=running_norm)


def compute_gradients(
    network: nn.Module,
    image: Tensor,
    labels: Tensor,
    loss: LossFunction,
    device: Device,
    *,
    scaler: torch.amp.GradScaler | None = None,
    domain: str = NO_NAME,
    replica: Replica | None = None,
    num_samples: int | None = None,
) -> float:
    """The loss of a batch; its gradients, times the scale, replace those of before. There are none where the loss is not finite.

    With a ``replica`` the batch has ``num_samples``, of which ``image`` holds this process's; loss and gradients are those of the whole
    batch in all processes.
    """
    team, forward = (ALONE, network) if replica is None else (replica.team, replica.network)
    network.zero_grad(set_to_none=True)
    with team.sharing(num_samples or len(image)) as share:
        with device.autocast():
            outputs = outputs_of(forward, image, domain)
        is_single = isinstance(outputs, Tensor)
        weights, targets = (None if is_single else getattr(network, name, None) for name in ("head_weights", "head_targets"))
        codes = getattr(network, "label_codes", None)
        total = supervised_loss(outputs, labels, loss, weights=weights, targets=targets, codes=codes).total
        if (own := getattr(network, "own_loss", None)) is not None and (further := own()) is not None:
            total = total + further
    note_labels(network, labels)
    (value,) = team.summed([share * float(total.detach())])
    if math.isfinite(value):
        total = total * (share * team.size)  # which the mean over the processes makes the share of each
        (total if scaler is None else scaler.scale(total)).backward()  # type: ignore[no-untyped-call]
    return value


def outputs_of(network: nn.Module, image: Tensor, domain: str = NO_NAME) -> Tensor | list[Tensor]:
    """The logits of a domain; a list with deep supervision."""
    outputs: Tensor | list[Tensor] = network(image, domain) if domain else network(image)
    return outputs


def apply_gradients(learner: Learner, loss: float, *, running_norm: float = 0.0) -> Step:
    """Change the weights by the gradients of a batch with this loss, where all of it is finite."""
    if not math.isfinite(loss):
        return Step(loss=loss, gradient_norm=math.nan, is_finite=False, running_norm=running_norm)
    network, scaler = learner.network, learner.scaler
    scaler.unscale_(learner.optimizer)
    if learner.normalizes_gradients:
        running_norm = normalize_gradients(network, running_norm, shared=learner.shared)
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), learner.gradient_clip)
    is_finite = bool(torch.isfinite(norm))
    if is_finite or scaler.is_enabled():  # the scaler skips the step itself, and must hear of it to lower its scale
        scaler.step(learner.optimizer)
        scaler.update()
    if is_finite:
        remember(network, rate_share=rate_share(learner.optimizer))
    return Step(loss=loss, gradient_norm=float(norm), is_finite=is_finite, running_norm=running_norm)


def rate_share(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate as a share of the plan's highest, of the first group of weights."""
    group = optimizer.param_groups[0]
    highest = float(optimizer.defaults["lr"]) * float(group.get("factor", 1.0))
    return min(1.0, float(group["lr"]) / highest) if highest else 0.0


def normalize_gradients(network: nn.Module, running_norm: float, *, shared: Sequence[nn.Parameter] = ()) -> float:
    """Divide the gradients of a step by the running norm of its domain's gradients; that norm with this step's.

    Adam remembers the squares of a thousand steps: once the gradients have fallen to a part of those of the first steps, its steps are too
    small by as much. And of several datasets, those that are not learned yet would decide where the ``shared`` weights go, whose
    norm counts there. Gradients that are not finite are left to those who skip them.
    """
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    common = [parameter.grad for parameter in shared if parameter.grad is not None]  # none where a domain is added
    norm = float(torch.nn.utils.get_total_norm(common or gradients))
    if not math.isfinite(norm) or norm == 0:
        return running_norm
    capped = min(norm, LARGEST_RISE * running_norm)
    running_norm = NORM_MEMORY * running_norm + (1 - NORM_MEMORY) * capped if running_norm else norm
    torch._foreach_div_(gradients, running_norm)
    return running_norm


def scaler_for(device: Device) -> torch.amp.GradScaler:
    """Scales losses in float16, where small gradients would vanish; does nothing otherwise."""
    return torch.amp.GradScaler(device.device.type, enabled=device.precision == "float16")
