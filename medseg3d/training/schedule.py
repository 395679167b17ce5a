"""The learning rate over a run, by epochs or by the share of a time budget that is used, and per part of the network.

torch's own schedulers count steps and must know their number beforehand. A run here may last a number of hours instead, and how
many steps fit into them is only known at its end; so everything is a function of ``progress``, the share of the run that is
over. It keeps no state: a continued run has nothing to restore.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from medseg3d.errors import PlanError
from medseg3d.plan import ScheduleName, TrainingPlan

WARMUP_START = 0.1
"""Warm-up begins at this share of the learning rate: at zero, a first epoch with one rate for all its steps would learn nothing."""
CYCLICAL_RATIO = 4.0
"""The highest rate of a cycle over its lowest; Smith 2017, section 3.3, advises 3 or 4."""


def learning_rate(training: TrainingPlan, progress: float) -> float:
    """The learning rate after the share ``progress`` of the run, 0 to 1; beyond 1, where a step outlasts the budget, that of 1.

    Over the first ``warmup`` of the run it rises linearly from :data:`WARMUP_START` times ``learning_rate``; the schedule
    then runs from 0 to 1 over what is left. With R the plan's ``learning_rate``, p the progress after warm-up, and q the
    progress inside each of ``cycles`` equal cycles:

    - ``poly``: R (1 - p)^``poly_exponent``, see :func:`poly`.
    - ``cosine``: R (1 + cos πp) / 2, one half wave down to 0 (Loshchilov & Hutter 2017, equation 5, without restarts).
    - ``cosine_restarts``: R (1 + cos πq) / 2, back at R with every cycle (the same paper, SGDR with T_mult = 1).
    - ``cyclical``: from R / :data:`CYCLICAL_RATIO` in a straight line to R at q = 1/2 and back (Smith 2017, ``triangular``).

    >>> from medseg3d.plan import TrainingPlan
    >>> plan = TrainingPlan(learning_rate=0.01, schedule="cosine", warmup=0.2)
    >>> [round(learning_rate(plan, progress), 4) for progress in (0, 0.1, 0.2, 0.6, 1)]
    [0.001, 0.0055, 0.01, 0.005, 0.0]
    """
    peak, warmup = training.learning_rate, training.warmup
    if progress < warmup:
        return peak * (WARMUP_START + (1 - WARMUP_START) * max(0.0, progress) / warmup)
    left = (min(progress, 1.0) - warmup) / (1 - warmup) if warmup < 1 else 1.0
    return SCHEDULES[training.schedule](training, left)


def poly(initial: float, progress: float, exponent: float) -> float:
    """``initial * (1 - progress) ** exponent`` with progress from 0 to 1 (nnU-Net 2.8.1 ``PolyLRScheduler``, exponent 0.9).

    >>> poly(0.01, 0.0, 0.9)
    0.01
    >>> poly(0.01, 1.0, 0.9)
    0.0
    """
    return float(initial * max(0.0, 1.0 - progress) ** exponent)


def _poly(training: TrainingPlan, progress: float) -> float:
    return poly(training.learning_rate, progress, training.poly_exponent)


def _cosine(training: TrainingPlan, progress: float) -> float:
    return training.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def _cosine_restarts(training: TrainingPlan, progress: float) -> float:
    return _cosine(training, _progress_in_cycle(progress, training.cycles))


def _cyclical(training: TrainingPlan, progress: float) -> float:
    peak, base = training.learning_rate, training.learning_rate / CYCLICAL_RATIO
    distance = abs(2 * _progress_in_cycle(progress, training.cycles) - 1)
    return peak - (peak - base) * distance


SCHEDULES: dict[ScheduleName, Callable[[TrainingPlan, float], float]] = {
    "poly": _poly,
    "cosine": _cosine,
    "cosine_restarts": _cosine_restarts,
    "cyclical": _cyclical,
}
"""The learning rate after warm-up by the plan, and the progress after warm-up, 0 to 1."""


def _progress_in_cycle(progress: float, cycles: int) -> float:
    """0 to 1 in each of equal cycles; where one ends the next begins, but the run ends with the end of the last, at 1."""
    if progress >= 1:
        return 1.0
    # an epoch that begins a cycle must not fall to the end of the one before it by a rounding error
    return round(progress * cycles, 9) % 1.0


def parameter_groups(network: nn.Module, training: TrainingPlan) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: ``params``, ``lr``, and ``factor``, what the schedule's value is to be multiplied by.

    A key of ``layer_learning_rates`` stands for the parameters whose dotted name begins with it, part by part: ``encoder.1`` means
    ``encoder.1.conv.weight``, not ``encoder.10.conv.weight``. The longest key that fits wins; the parameters that none fits come
    first, with factor 1. Without ``layer_learning_rates`` there is one group in the order of ``network.parameters()``, as in
    states that were saved before there were groups. Parameters without ``requires_grad`` are left out, and so are groups that
    would be empty. Raises :class:`PlanError` for keys that fit no parameter, all of them at once.
    """
    factors = {"": 1.0, **training.layer_learning_rates}
    names = [name for name, _ in network.named_parameters()]
    unknown = [repr(prefix) for prefix in factors if not any(_begins_with(name, prefix) for name in names)]
    if unknown:
        raise PlanError(
            f"training.layer_learning_rates: no parameter's name begins with {', '.join(unknown)}. The network has "
            f"{', '.join(dict.fromkeys(name.split('.')[0] for name in names))}; "
            f"a key is the whole first part of a name, or several, such as {names[0].rsplit('.', 1)[0]}."
        )
    members: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in factors}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            members[max((prefix for prefix in factors if _begins_with(name, prefix)), key=len)].append(parameter)
    return [
        {"params": parameters, "lr": training.learning_rate * factors[prefix], "factor": factors[prefix]}
        for prefix, parameters in members.items()
        if parameters
    ]


def _begins_with(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(prefix.removesuffix(".") + ".")
