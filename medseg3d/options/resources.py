"""What a command may use of the machine, and what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medseg3d.options.option import Option, Options

MAX_SEED = 2**63 - 1
"""That of torch and of NumPy alike."""


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options):
    """Where networks run."""

    device: Annotated[
        str,
        Option(
            "--device",
            "where networks run, cuda:1 for the second GPU (default: a GPU if any)",
            metavar="auto|cpu|cuda|mps",
            group="devices",
        ),
    ] = "auto"  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CasesOptions(Options):
    """How many cases are worked on at once, and where."""

    jobs: Annotated[
        int | None, Option("--jobs", "cases measured or preprocessed at once (default: the cores)", metavar="N", at_least=1)
    ] = None
    max_ram_gb: Annotated[
        float | None, Option("--max-ram", "memory that these may take (default: 60 % of the free)", metavar="GB", unit="GB", above=0)
    ] = None
    cluster: Annotated[
        str | None,
        Option("--cluster", "work on the workers of this dask scheduler, such as tcp://host:8786", metavar="ADDRESS"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SeedOptions(Options):
    """What is drawn at random."""

    seed: Annotated[int, Option("--seed", "seed of everything random (default: 0)", at_least=0, at_most=MAX_SEED)] = 0


@dataclass(frozen=True, kw_only=True)
class OutputOptions(Options):
    """What every command takes: how much it says, and the user's own parts."""

    verbose: Annotated[bool, Option("-v --verbose", "say more")] = False
    quiet: Annotated[bool, Option("-q --quiet", "say only what went wrong")] = False
    json: Annotated[bool, Option("--json", "print one JSON document on standard output")] = False
    extensions: Annotated[
        tuple[Path, ...],
        Option("--extension", "a Python file with your own parts; may be given again", metavar="FILE.py", several="again"),
    ] = ()


def in_hours(options: Options) -> None:
    """A record with ``hours`` and ``minutes`` keeps the hours alone: all else knows no minutes."""
    minutes = getattr(options, "minutes", None)
    if minutes is not None:
        object.__setattr__(options, "hours", minutes / 60)
        object.__setattr__(options, "minutes", None)
