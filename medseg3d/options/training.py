"""Options of training, and of what is done with a fold: validation, the search for a learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Annotated

from medseg3d.errors import InputError
from medseg3d.options.option import Option, Options
from medseg3d.options.prediction import MirroringOptions
from medseg3d.options.resources import DeviceOptions, SeedOptions, in_hours


@dataclass(frozen=True, kw_only=True)
class BatchOptions(SeedOptions):
    """What a training step sees."""

    batch_size: Annotated[int | None, Option("--batch-size", "samples of a step (default: the plan's)", metavar="N", at_least=1)] = None


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(BatchOptions):
    """What a user may say of a training beside the plan; None means the plan's value."""

    epochs: Annotated[int | None, Option("--epochs", "epochs to train (default: the plan's)", metavar="N", at_least=1)] = None
    iterations: Annotated[int | None, Option("--iterations", "steps per epoch (default: the plan's)", metavar="N", at_least=1)] = None
    hours: Annotated[
        float | None,
        Option("--hours", "train for this time; the learning rate follows it", metavar="H", unit="hours", above=0, group="time"),
    ] = None
    minutes: Annotated[float | None, Option("--minutes", "as --hours, in minutes", metavar="M", unit="minutes", above=0, group="time")] = (
        None
    )
    devices: Annotated[
        str | None,
        Option(
            "--devices",
            "train each network on several devices: the first N GPUs, cuda:0,2, or N processes on the CPU, cpu:N",
            metavar="N|cuda:I,…|cpu:N",
            group="devices",
        ),
    ] = None
    track: Annotated[
        str | Sequence[str] | None,
        Option(
            "--track",
            "write curves for tensorboard, mlflow, wandb or aim, offline (default: tensorboard where it is installed)",
            metavar="NAME",
            several="words",
        ),
    ] = None
    profile: Annotated[bool, Option("--profile", "write a trace of some steps, and the ten operations that take most time")] = False
    deterministic: Annotated[
        bool, Option("--deterministic", "the same bits every time on a GPU as well, slower; on a CPU they always are")
    ] = False
    restart: Annotated[
        bool, Option("--restart", "begin anew instead of going on, also where the plan or the cases changed", group="goal")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        in_hours(self)


@dataclass(frozen=True, kw_only=True)
class TuningOptions(Options):
    """What a training begins with, and what of it learns how fast."""

    init: Annotated[
        Path | None,
        Option(
            "--init",
            "start from the weights of another model of any kind, of another library (.safetensors, .pth), or of generated shapes",
            metavar="MODEL|shapes",
        ),
    ] = None
    freeze: Annotated[
        str | Sequence[str] | None,
        Option("--freeze", "parameters that keep their weights, by name: 'encoder.*'", metavar="PATTERN", several="words"),
    ] = None
    layer_rates: Annotated[
        Mapping[str, float] | None,
        Option("--layer-rates", "factors on the learning rate of parts of the network", metavar="encoder=0.1,…"),
    ] = None
    learning_rate: Annotated[
        float | None, Option("--learning-rate", "the highest learning rate (default: the plan's)", metavar="LR", above=0)
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = {} if self.layer_rates is None else self.layer_rates
        if not isinstance(rates, Mapping) or not all(isinstance(name, str) and _is_factor(rate) for name, rate in rates.items()):
            raise InputError(f"--layer-rates {rates}: expected factors of at least 0 by the beginning of names, such as encoder=0.1.")


def _is_factor(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < math.inf


@dataclass(frozen=True, kw_only=True)
class FoldOptions(DeviceOptions):
    """Which fold of which configuration, and where its network runs."""

    configuration: Annotated[
        str | None,
        Option("-c --configuration", "2d, 3d_fullres, 3d_lowres … (default: the recommended one)", metavar="CONFIGURATION"),
    ] = None
    fold: Annotated[
        str,
        Option("--fold", "which fold; all trains on every case without validation", metavar="K|all", is_required=True),
    ] = "0"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TuningOptions, TrainingOptions, MirroringOptions, FoldOptions):
    """Options of ``train``."""


@dataclass(frozen=True, kw_only=True)
class ValidateOptions(MirroringOptions, FoldOptions):
    """Options of ``validate``; with ``keep_finished`` metrics stay that belong to the weights and cases of today."""

    keep_finished: bool = False


@dataclass(frozen=True, kw_only=True)
class FindLrOptions(BatchOptions, FoldOptions):
    """Options of ``find-lr``. ``num_steps`` rates are tried."""

    num_steps: int = 100
