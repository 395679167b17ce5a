"""The optimizer of a plan: a network and its training numbers go in, a torch optimizer over what is trainable comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from medseg3d.plan import OptimizerName, TrainingPlan
from medseg3d.training.schedule import parameter_groups

Groups = list[dict[str, Any]]
"""What :func:`medseg3d.training.schedule.parameter_groups` gives."""


def optimizer_of(network: nn.Module, settings: TrainingPlan) -> torch.optim.Optimizer:
    """The plan's optimizer over what is trainable, with the learning rates of its layers."""
    return OPTIMIZERS[settings.optimizer](parameter_groups(network, settings), settings)


def _sgd(groups: Groups, settings: TrainingPlan) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def _adamw(groups: Groups, settings: TrainingPlan) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def _muon(groups: Groups, settings: TrainingPlan) -> torch.optim.Optimizer:
    return Muon(groups, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay)


OPTIMIZERS: dict[OptimizerName, Callable[[Groups, TrainingPlan], torch.optim.Optimizer]] = {"sgd": _sgd, "adamw": _adamw, "muon": _muon}
"""By the plan's name."""

LEAST_CHANNELS = 8
"""Kernels between fewer channels are left to AdamW: stems and heads, whose few rows have scales of their own, and depthwise kernels, each
of which has one channel: nothing is mixed there that could be balanced."""
UPDATE_SIZE = 0.2
"""Root mean square of an orthogonalized step in units of the learning rate: that of AdamW's steps, so that one rate serves both (Liu et
al. 2025, arXiv 2502.16982, section 2.2)."""
BETAS, EPS = (0.9, 0.999), 1e-8
"""Of AdamW, as in torch."""


class Muon(torch.optim.Optimizer):
    """Kernels step along the orthogonal matrix that is nearest to their momentum (Jordan et al. 2024); the other parameters as in AdamW.

    A kernel is a matrix of output channels by all that a voxel of the output sees. Its momentum is usually led by a few directions; the
    orthogonal matrix moves all of them by as much. ``params`` are groups with ``lr``, each is split into kernels and the rest. Momentum is
    Nesterov's, 0.95 as a rule; weight decay is decoupled, as in AdamW.
    """

    def __init__(self, params: Iterable[dict[str, Any]], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(list(_split(params)), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "is_orthogonalized": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the parameters that have gradients."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["is_orthogonalized"]:
                self._step_orthogonally(parameters, group)
            elif parameters:
                self._step_as_adamw(parameters, group)
        return loss

    def _step_orthogonally(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            kept = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            matrix = gradient.lerp(kept, group["momentum"]).flatten(1)
            direction = orthogonalized(matrix).view_as(parameter)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction, alpha=-group["lr"] * UPDATE_SIZE * math.sqrt(max(matrix.shape)))

    def _step_as_adamw(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                fresh = {"step": torch.zeros((), dtype=torch.float32)}
                self.state[parameter].update(fresh, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            list(parameters),
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=EPS,
            maximize=False,
        )


def _split(groups: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each group as its kernels and its rest, without those that are empty."""
    for group in groups:
        for is_orthogonalized in (True, False):
            members = [parameter for parameter in group["params"] if is_mixing(parameter) == is_orthogonalized]
            if members:
                yield {**group, "params": members, "is_orthogonalized": is_orthogonalized}


def is_mixing(parameter: Tensor) -> bool:
    """Whether a parameter is a matrix, or kernels, between many channels."""
    return parameter.ndim >= 2 and min(parameter.shape[:2]) >= LEAST_CHANNELS


COEFFICIENTS = (
    (8.3865, -24.3697, 17.7251),
    (4.1414, -3.0173, 0.5524),
    (3.9226, -2.8672, 0.5357),
    (3.2540, -2.3922, 0.4827),
    (2.2737, -1.6447, 0.4162),
)
"""Polynomials a s + b s³ + c s⁵ of a singular value, one after the other. Each is the one that leaves the least distance to 1 over all that
the one before makes of [0.001, 1] (Amsel et al. 2025, arXiv 2505.16932; solved as a linear program), all but the last for values that are
1 % larger, so that rounding pushes none past its range. They end within 15 %."""
SMALLEST = 1e-30
"""A gradient of zeros has no direction: it stays zeros, and one whose largest number is below this is next to zero."""


def orthogonalized(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to this one, roughly: the singular vectors stay, singular values come near 1.

    Newton-Schulz in its Gram form: each step multiplies X by a polynomial of X Xᵀ, so all of them act on that small square matrix, and X
    itself is touched twice, at the start and at the end. Kernels have 27 times as many columns as rows, so this is several times less work.
    In float32: squared, singular values below 0.03 would be lost in bf16.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    scaled = wide / wide.abs().amax().clamp_min(SMALLEST)  # first, as squares of small numbers would vanish
    scaled = scaled / torch.linalg.vector_norm(scaled).clamp_min(1)
    gram = scaled @ scaled.T
    whole: Tensor | None = None
    for a, b, c in COEFFICIENTS:
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        whole = factor if whole is None else factor @ whole
        gram = factor @ gram @ factor  # a polynomial of the same matrix, so all of them commute and are symmetric
    result = scaled if whole is None else whole @ scaled
    return result if wide is matrix else result.T
