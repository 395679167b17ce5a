"""Try learning rates from far too small to far too large, a step each, and suggest one: Smith 2017's range test.

In: a network, its optimizer, batches and a loss. Out: the loss over the learning rate. Network and optimizer stay as they were.

MONAI 1.6.1's ``LearningRateFinder`` was tried and is not used: it stops where the loss exceeds five times the best one, so that
a loss that can be negative (ours begins with minus the Dice) ends it at once, and never stops for NaN; it takes no batches but
those of a torch ``DataLoader``; it brings all parameter groups to the same rate, whatever their factors; and it knows neither
gradient clipping nor the scaler that float16 needs. It also smooths with an exponential mean, which lags by twenty steps: of a
hundred over seven decades, a factor of 25 in the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn

from medseg3d.errors import DivergedError, InputError
from medseg3d.losses import LossFunction
from medseg3d.training.step import Learner, Step, take_step

START_STEPS = 10
"""The mean and the standard deviation of so many first losses say where the loss began and how much it varies from batch to batch."""
MIN_STEPS = 30
"""So that the start is a third of the search at most."""
RECENT_STEPS = 5
"""The mean of so many last losses is compared with the start, so that one hard batch does not end the search."""
NOISE_SPREADS = 3.0
"""A change by more standard deviations of the first losses is no chance: five losses against ten reach it once in 5000 times."""
MIN_NOISE = 0.01
"""Share of the first loss that counts as noise at least: without random batches there is none to measure."""
SMOOTHING = 0.03
"""Standard deviation of the smoothing as a share of all steps: a fifth of a decade over seven decades."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRateCurve:
    """The loss over the learning rate; one entry per step, rates ascending, all numbers finite.

    ``losses`` are raw, each measured before the step at its rate. ``smoothed`` is a centered Gaussian mean of them, cut at the
    level that ends the search. ``suggested`` is the rate at which ``smoothed`` falls most steeply over the logarithm of the rate,
    None where it never falls by more than the noise. ``diverged`` is the rate from which on ``smoothed`` stays above its start, or
    else the rate that ended the search early, such as one with a NaN loss; None where neither happened up to the highest rate.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggested: float | None
    diverged: float | None


def find_learning_rate(
    learner: Learner,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: LossFunction,
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    num_steps: int = 100,
    on_step: Callable[[int, int], None] | None = None,
) -> LearningRateCurve:
    """Train ``num_steps`` steps with rates in equal ratios from ``lowest`` to ``highest``, or until the loss diverges.

    ``batches`` gives (image, labels) on the learner's device, drawn one at a time, at least ``num_steps`` of them. A parameter group's
    ``factor`` multiplies its rate. A step is that of training: clipped, and normalized where the plan says so.
    ``on_step(step, num_steps)`` is called after every step. The suggestion is an order of
    magnitude to begin with, no optimum: the more steps, the lower the rate at which the loss falls most steeply. With strong
    momentum ``diverged`` may lie far below the limit of stability, as the rate rises faster than old gradients are forgotten.

    Weights, buffers, modes and optimizer are as before afterwards, also after an error; gradients are cleared. Torch's random
    numbers are used up where the network draws any. Raises :class:`InputError` for fewer than :data:`MIN_STEPS` steps, too few
    batches or rates that do not ascend, :class:`DivergedError` where one of the first :data:`START_STEPS` losses is not finite.
    """
    _check(lowest, highest, num_steps)
    rates: list[float] = np.geomspace(lowest, highest, num_steps).tolist()
    losses: list[float] = []
    end: float | None = None  # the rate that ended the search early
    learner = learner.on(learner.device)  # a scaler of its own
    with _left_as_it_was(learner.network, learner.optimizer):
        learner.network.train()
        for rate, step in _steps(learner, rates, batches, loss):
            if not math.isfinite(step.loss):
                end = rate
                break
            losses.append(step.loss)
            if on_step is not None:
                on_step(len(losses), num_steps)
            # a scaler overflows now and then, and lowers its scale
            has_burst = not step.is_finite and not learner.scaler.is_enabled()
            if has_burst or _is_hopeless(losses):
                end = rate
                break
    if end is None and len(losses) < num_steps:
        raise InputError(f"The batches ended after {len(losses)} steps; a search over {num_steps} learning rates needs as many batches.")
    if len(losses) < START_STEPS:
        raise DivergedError(
            f"The loss is NaN or infinite at a learning rate of {end:.2g}, after {len(losses)} steps: too few to suggest one. "
            "Begin the search at a lower rate, or look at the images with medseg3d doctor."
        )
    return _curve(rates[: len(losses)], losses, end, sigma=SMOOTHING * num_steps)


def _steps(
    learner: Learner, rates: Sequence[float], batches: Iterable[tuple[Tensor, Tensor]], loss: LossFunction
) -> Iterator[tuple[float, Step]]:
    running_norm = 0.0
    for rate, (image, labels) in zip(rates, batches, strict=False):  # the rates first: no batch is drawn in vain
        for group in learner.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        step = take_step(learner, image, labels, loss, running_norm=running_norm)
        running_norm = step.running_norm
        yield rate, step


def _check(lowest: float, highest: float, num_steps: int) -> None:
    if num_steps < MIN_STEPS:
        raise InputError(f"A search for the learning rate takes at least {MIN_STEPS} steps, not {num_steps}.")
    if not 0 < lowest < highest < math.inf:
        raise InputError(f"The learning rates to try run from {lowest} to {highest}; expected 0 < lowest < highest.")


@contextmanager
def _left_as_it_was(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put weights, buffers, modes and optimizer back at the end."""
    weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    settings = deepcopy(optimizer.state_dict())
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        network.load_state_dict(weights)
        optimizer.load_state_dict(settings)
        optimizer.zero_grad(set_to_none=True)
        for module, mode in modes:
            module.training = mode  # not train(mode), which would set the children as well


def _start_and_noise(losses: Sequence[float]) -> tuple[float, float]:
    """The mean of the first losses, and by how much a loss must differ from it to have changed."""
    first = np.array(losses[:START_STEPS])
    start = float(first.mean())
    return start, max(NOISE_SPREADS * float(first.std(ddof=1)), MIN_NOISE * abs(start))


def _ceiling(losses: Sequence[float]) -> float:
    """The level that ends the search: as far above the start as the loss had fallen below it, and more than the noise.

    Any multiple of the best loss, as others use, means nothing for losses that can be negative; and momentum alone, while the rate
    rises, can carry a loss back over its start before it falls again.
    """
    start, noise = _start_and_noise(losses)
    recent = np.convolve(losses, np.full(RECENT_STEPS, 1 / RECENT_STEPS), mode="valid")
    return start + max(noise, start - float(recent.min()))


def _is_hopeless(losses: Sequence[float]) -> bool:
    return len(losses) > START_STEPS and float(np.mean(losses[-RECENT_STEPS:])) > _ceiling(losses)


def _curve(rates: Sequence[float], losses: Sequence[float], end: float | None, *, sigma: float) -> LearningRateCurve:
    start, noise = _start_and_noise(losses)
    # cut: the last losses may be a million times the others, and would be smeared over them
    smoothed = gaussian_filter1d(np.minimum(losses, _ceiling(losses)), sigma, mode="nearest")
    noise /= 2  # a smoothed loss varies less than half as much
    lowest = int(smoothed.argmin())
    suggested: float | None = None
    level = start + noise  # a loss that never fell wanders about its start
    if lowest > 0 and smoothed[lowest] < start - noise:
        slope = np.gradient(smoothed[: lowest + 1], np.log(rates[: lowest + 1]))
        suggested, level = rates[int(slope.argmin())], start
    above = 1 + max(np.flatnonzero(smoothed <= level).tolist(), default=-1)
    return LearningRateCurve(
        rates=tuple(rates),
        losses=tuple(losses),
        smoothed=tuple(smoothed.tolist()),
        suggested=suggested,
        diverged=rates[above] if above < len(rates) else end,
    )
