"""A run that is given hours and not epochs: how large its batch may be for enough steps. A first batch goes in, a batch size comes out."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from torch import Tensor

from medseg3d.devices import wait_for
from medseg3d.training.domains import TrainingDomain
from medseg3d.training.step import Learner, compute_gradients

logger = logging.getLogger(__name__)

TIMED_STEPS = 3
"""The first step sets up memory and kernels; the fastest of three is what the others will take."""
MIN_STEPS_IN_A_TIME_BUDGET = 2500
"""Ten epochs of 250: nnU-Net's plain network reaches 99 % of its final pseudo-Dice on Hippocampus by then."""
MIN_BATCH = 2
"""The smallest batch of nnU-Net's plans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Affordable:
    """How large a batch is in a run of some hours, and about how many seconds a step of it takes."""

    batch_size: int
    step_seconds: float


def batch_for_hours(
    learner: Learner, domain: TrainingDomain, image: Tensor, labels: Tensor, *, hours: float, planned: int, is_fixed: bool = False
) -> Affordable:
    """The ``planned`` size of a batch, or a smaller one where it would leave too few steps: early on, steps count for more than their
    size, unless it ``is_fixed``. ``image`` and ``labels`` are a batch, or what one of several processes has of it.
    """
    durations = []
    for _ in range(TIMED_STEPS):  # the weights stay as they are
        began = time.perf_counter()
        compute_gradients(learner.network, image, labels, domain.loss, learner.device, scaler=learner.scaler, domain=domain.name)
        wait_for(learner.device.device)
        durations.append(time.perf_counter() - began)
    learner.network.zero_grad(set_to_none=True)
    affordable = hours * 3600 / MIN_STEPS_IN_A_TIME_BUDGET / (min(durations) / planned)
    size = planned if is_fixed else max(min(MIN_BATCH, planned), min(planned, int(affordable)))
    found = Affordable(batch_size=size, step_seconds=min(durations) * size / planned)
    if size < planned:
        logger.warning(
            "%sA step takes %.2g s here, so the batch is %d instead of the plan's %d: that gives about %d steps in %.2g hours.",
            f"{domain.name}: " if domain.name else "",
            min(durations),
            size,
            planned,
            hours * 3600 / found.step_seconds,
            hours,
        )
    return found
