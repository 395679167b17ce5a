"""A run that is given hours and not epochs: how large its batch may be for enough steps. A first batch goes in, a batch size comes out."""

from __future__ import annotations

import logging
import time

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


def batch_for_hours(learner: Learner, domain: TrainingDomain, image: Tensor, labels: Tensor, *, hours: float, planned: int) -> int:
    """The ``planned`` size of a batch, or a smaller one where it would leave too few steps: early on, steps count for more than their
    size. ``image`` and ``labels`` are a batch, or what one of several processes has of it.
    """
    durations = []
    for _ in range(TIMED_STEPS):  # the weights stay as they are
        began = time.perf_counter()
        compute_gradients(learner.network, image, labels, domain.loss, learner.device, scaler=learner.scaler, domain=domain.name)
        wait_for(learner.device.device)
        durations.append(time.perf_counter() - began)
    learner.network.zero_grad(set_to_none=True)
    affordable = hours * 3600 / MIN_STEPS_IN_A_TIME_BUDGET / (min(durations) / planned)
    size = max(min(MIN_BATCH, planned), min(planned, int(affordable)))
    if size < planned:
        logger.warning(
            "%sA step takes %.2g s here, so the batch is %d instead of the plan's %d: that gives about %d steps in %.2g hours.",
            f"{domain.name}: " if domain.name else "",
            min(durations),
            size,
            planned,
            hours * 3600 / (min(durations) * size / planned),
            hours,
        )
    return size
