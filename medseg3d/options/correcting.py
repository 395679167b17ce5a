"""Options of learning from corrections, and of proposals of what to annotate next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medseg3d.options.option import Option
from medseg3d.options.prediction import MirroringOptions, ModelOptions
from medseg3d.options.resources import CasesOptions, DeviceOptions
from medseg3d.options.training import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class CorrectOptions(TrainingOptions, MirroringOptions, CasesOptions, DeviceOptions):
    """Options of ``correct``. Without a length each fold trains a quarter of the plan's epochs, at a tenth of its learning rate."""

    corrections: Annotated[
        Path | None, Option("--corrections", "folder of the corrected label maps (default: DATASET/corrections)", metavar="FOLDER")
    ] = None
    images: Annotated[
        Path | None,
        Option(
            "-i --images", "images of corrected cases that the dataset does not have (default: those that propose saw)", metavar="IMAGES"
        ),
    ] = None
    learning_rate: Annotated[
        float | None, Option("--learning-rate", "the highest learning rate (default: a tenth of the plan's)", metavar="LR", above=0)
    ] = None


@dataclass(frozen=True, kw_only=True)
class ProposeOptions(ModelOptions):
    """Options of ``propose``."""

    images: Annotated[Path, Option("-i --images", "a folder of images without labels", metavar="IMAGES", is_required=True)] = Path()
    number: Annotated[int, Option("-n --number", "so many cases (default: 10)", metavar="N", at_least=1)] = 10
    diversity: Annotated[
        float,
        Option(
            "--diversity",
            "weight of what a case is unlike, from 0 (only unsure cases) to 1 (only unlike ones) (default: 0.5)",
            metavar="SHARE",
            at_least=0,
            at_most=1,
        ),
    ] = 0.5
