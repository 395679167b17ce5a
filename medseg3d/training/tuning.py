"""What a user changes of a plan's training for one run: which parts keep their weights, and how fast the others learn.

A run keeps what it was begun with, and goes on with it where it is not said again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from medseg3d.errors import InputError
from medseg3d.options import TuningOptions
from medseg3d.training.domains import TrainingDomain

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Patterns of the names of parameters that stay, factors on the learning rate of others by the beginning of their names, and the rate.

    None, or nothing, for what the plan says.
    """

    freeze: tuple[str, ...] = ()
    layer_rates: dict[str, float] = field(default_factory=dict)
    learning_rate: float | None = None

    @classmethod
    def of(cls, options: TuningOptions) -> Tuning:
        """As a user asks for it."""
        patterns = [options.freeze] if isinstance(options.freeze, str) else options.freeze
        return cls(freeze=tuple(patterns or ()), layer_rates=dict(options.layer_rates or {}), learning_rate=options.learning_rate)


def tuning_for(options: TuningOptions, saved: Tuning | None, folder: Path) -> Tuning:
    """What is asked for, or what the run in ``folder`` was begun with, None where there is no run.

    Raises :class:`InputError` where it is asked for something else than it was begun with.
    """
    asked = Tuning.of(options)
    if saved is None or asked == saved:
        return asked
    for name, flag in (("freeze", "--freeze"), ("layer_rates", "--layer-rates"), ("learning_rate", "--learning-rate")):
        given, before = getattr(asked, name), getattr(saved, name)
        if given and given != before:
            raise InputError(
                f"{flag} {_in_words(given)}: {folder} holds a run that was begun with {_in_words(before)}. Leave {flag} out to go on with "
                "it, or say --restart to begin anew."
            )
    return saved


def _in_words(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={number:g}" for name, number in value.items()) or "none"
    return " ".join(value) or "none" if isinstance(value, tuple) else "the plan's" if value is None else f"{value:g}"


def tuned(domains: Sequence[TrainingDomain], tuning: Tuning) -> list[TrainingDomain]:
    """The domains with the learning rates of a run in their plans' place."""
    if tuning.learning_rate is None and not tuning.layer_rates:
        return list(domains)
    found = []
    for domain in domains:
        training = domain.configuration.training
        changed = replace(
            training,
            learning_rate=training.learning_rate if tuning.learning_rate is None else tuning.learning_rate,
            layer_learning_rates={**training.layer_learning_rates, **tuning.layer_rates},
        )
        found.append(replace(domain, configuration=replace(domain.configuration, training=changed)))
    return found


def freeze(network: nn.Module, patterns: Sequence[str]) -> tuple[nn.Module, ...]:
    """Let parameters whose names fit a pattern stay as they are; the norms among them, which must go on as if they predicted.

    A pattern is that of file names, or the beginning of names up to a point. Raises :class:`InputError` for one that fits nothing, and
    where nothing is left to learn.
    """
    parameters = dict(network.named_parameters())
    idle = [pattern for pattern in patterns if not any(_fits(name, pattern) for name in parameters)]
    parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in parameters))
    if idle:
        example = next(iter(parameters)).split(".")[0]
        raise InputError(
            f"--freeze {' '.join(idle)}: no parameter has such a name. The network has {parts}; a pattern is such as '{example}.*'."
        )
    for name, parameter in parameters.items():
        if any(_fits(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(f"--freeze {' '.join(patterns)}: nothing is left to learn. The network has {parts}.")
    if patterns:
        kept = sum(not parameter.requires_grad for parameter in parameters.values())
        logger.warning("%d of %d tensors keep their weights (--freeze %s).", kept, len(parameters), " ".join(patterns))
    return tuple(frozen_norms(network)) if patterns else ()


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(pattern.removesuffix(".") + ".")


def frozen_norms(network: nn.Module) -> Iterator[nn.Module]:
    """Those that are frozen, whose running means would go on following the new images."""
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if getattr(module, "running_mean", None) is not None and own and not any(parameter.requires_grad for parameter in own):
            yield module
