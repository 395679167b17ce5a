"""Options of a listener: the rest stands in its file of rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medseg3d.options.option import Option
from medseg3d.options.prediction import ModelOptions


@dataclass(frozen=True, kw_only=True)
class ListenOptions(ModelOptions):
    """Options of ``listen``."""

    spool: Annotated[
        Path | None,
        Option("--spool", "where studies, results and the log are kept (default: spool, beside the rules)", metavar="FOLDER"),
    ] = None
    once: Annotated[bool, Option("--once", "end when nothing is left to do, instead of waiting for more")] = False
