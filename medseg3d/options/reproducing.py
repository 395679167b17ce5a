"""Options of making a run again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medseg3d.options.option import Option, Options


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions(Options):
    """Options of ``reproduce``."""

    dataset: Annotated[Path | None, Option("--dataset", "where the dataset lies now (default: as recorded)", metavar="DATASET")] = None
    output: Annotated[Path | None, Option("-o --output", "folder of the new run (default: WORK-again)", metavar="FOLDER")] = None
    device: Annotated[str | None, Option("--device", "where networks run (default: as recorded)", metavar="auto|cpu|cuda")] = None
