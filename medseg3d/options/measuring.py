"""Options of what is measured of structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from medseg3d.options.option import Option, Options


@dataclass(frozen=True, kw_only=True)
class StructureOptions(Options):
    """What is measured beside shape, place and intensities."""

    distances: Annotated[
        str | Sequence[str],
        Option("--distances", "surface distances of pairs of labels, such as tumor:vessel, or of all", metavar="A:B", several="words"),
    ] = ()
    radiomics: Annotated[bool, Option("--radiomics", "the features of pyradiomics as well, where it is installed")] = False


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(StructureOptions):
    """Options of ``measure``."""

    jobs: Annotated[int | None, Option("--jobs", "cases measured at once (default: the cores)", metavar="N", at_least=1)] = None
    max_ram_gb: Annotated[
        float | None, Option("--max-ram", "memory that these may take (default: 60 % of the free)", metavar="GB", unit="GB", above=0)
    ] = None
