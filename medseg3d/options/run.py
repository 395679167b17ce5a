"""Options of the whole chain: those of planning and of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from medseg3d.options.option import Option
from medseg3d.options.planning import PlanningOptions
from medseg3d.options.prediction import FoldChoice
from medseg3d.options.resources import CasesOptions, DeviceOptions
from medseg3d.options.training import TrainingOptions, TuningOptions


@dataclass(frozen=True, kw_only=True)
class RunOptions(TuningOptions, TrainingOptions, CasesOptions, DeviceOptions, PlanningOptions):
    """Options of ``run``. ``hours`` is the time of all training together, shared equally by the folds."""

    configurations: Annotated[
        str | Sequence[str] | None,
        Option(
            "-c --configuration",
            "2d, 3d_fullres, 3d_lowres … (default: the recommended one)",
            metavar="CONFIGURATION",
            several="words",
        ),
    ] = None
    folds: Annotated[FoldChoice, Option("--folds", "folds to train (default: all)", metavar="K", several="words")] = None
