"""Options of a comparison of presets on one fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from medseg3d.errors import InputError
from medseg3d.options.option import Option
from medseg3d.options.planning import DatasetOptions
from medseg3d.options.prediction import MirroringOptions
from medseg3d.options.resources import CasesOptions, DeviceOptions
from medseg3d.options.training import TrainingOptions

EPOCHS_OF_STEPS = 30
"""A number of steps is divided into so many epochs, as a time budget is: after each the learning rate falls and patches are measured."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(TrainingOptions, MirroringOptions, CasesOptions, DeviceOptions, DatasetOptions):
    """Options of ``compare``. ``hours`` and ``steps`` are those of each preset; ``PRESET@CONFIGURATION`` trains another configuration than
    the recommended one."""

    presets: Annotated[
        str | Sequence[str],
        Option(
            "presets",
            "two or more: the first one is what the others are compared with; PRESET@2d trains that configuration",
            metavar="PRESET",
            several="words",
            is_required=True,
        ),
    ] = ()
    fold: Annotated[str, Option("--fold", "which fold all are trained and validated on (default: 0)", metavar="K")] = "0"
    steps: Annotated[
        int | None,
        Option("--steps", "train each for so many steps, which other work on the machine does not change", metavar="N", at_least=1),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and (self.hours, self.epochs, self.iterations) != (None, None, None):
            raise InputError("--steps: give either steps, or hours, or epochs and iterations.")

    @property
    def length(self) -> dict[str, int | float | None]:
        """Epochs, steps per epoch and hours of each training; steps are rounded up to whole epochs, for all presets alike."""
        if self.steps is None:
            return {"epochs": self.epochs, "iterations": self.iterations, "hours": self.hours}
        epochs = min(EPOCHS_OF_STEPS, self.steps)
        return {"epochs": epochs, "iterations": -(-self.steps // epochs), "hours": None}
