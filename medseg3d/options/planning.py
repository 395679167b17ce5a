"""Options of planning and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Annotated

from medseg3d.errors import InputError
from medseg3d.options.option import Option, Options
from medseg3d.options.resources import CasesOptions, in_hours


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(Options):
    """What a user says of a dataset, and of the memory that there is; which cases belong together."""

    gpu_memory_gb: Annotated[
        float | None, Option("--gpu-memory", "memory that a training step may take", metavar="GB", unit="GB", above=0)
    ] = None
    channels: Annotated[str | Sequence[str] | None, Option("--channels", "modality of each channel", metavar="CT,…", several="commas")] = (
        None
    )
    label_names: Annotated[
        Mapping[int, str] | None,
        Option("--labels", "names of label values (default: dataset.json, labels.csv)", metavar="2=left_kidney,…"),
    ] = None
    group_pattern: Annotated[
        str | None,
        Option("--group-pattern", "cases with the same match (first group) stay in one fold", metavar="REGEX", group="groups"),
    ] = None
    groups: Annotated[
        Path | str | None,
        Option("--groups", "columns case,group: cases of a group stay in one fold", metavar="FILE", group="groups"),
    ] = None
    no_groups: Annotated[
        bool, Option("--no-groups", "cases whose names look like one patient's may be in different folds", group="groups")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {} if self.label_names is None else self.label_names
        if not isinstance(names, Mapping) or not all(isinstance(v, Integral) and isinstance(name, str) for v, name in names.items()):
            raise InputError(f"--labels {names}: expected names by label value, such as 2=left_kidney.")


@dataclass(frozen=True, kw_only=True)
class PlanningOptions(DatasetOptions):
    """What the numbers of a plan depend on beside the images, and which cases belong together."""

    planner: Annotated[
        str | Path | None, Option("--planner", "rules to plan by (default: those of the present plan)", metavar="NAME|FILE.toml")
    ] = None
    inherit_plan: Annotated[
        Path | None,
        Option("--inherit-plan", "plan as a model was planned, so that its weights fit (train --init MODEL)", metavar="MODEL"),
    ] = None
    members: Annotated[
        int | None,
        Option("--members", "networks with other seeds on the cases of fold 0, in the place of folds", metavar="N", at_least=1),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PlanOptions(CasesOptions, PlanningOptions):
    """Options of ``plan``; ``device`` is the one whose speed counts for ``hours``."""

    with_candidates: Annotated[
        bool, Option("--explain", "for every number: the rule, its inputs, what would change it; and which networks suit the dataset")
    ] = False
    real_time: Annotated[bool, Option("--real-time", "with --explain, propose networks that predict quickly")] = False
    hours: Annotated[
        float | None,
        Option(
            "--hours",
            "time of one training on this machine: plan a network that makes enough steps in it",
            metavar="H",
            unit="hours",
            above=0,
            group="time",
        ),
    ] = None
    minutes: Annotated[float | None, Option("--minutes", "as --hours, in minutes", metavar="M", unit="minutes", above=0, group="time")] = (
        None
    )
    device: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        in_hours(self)


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions(CasesOptions):
    """Options of ``preprocess``."""

    configurations: Annotated[
        str | Sequence[str] | None,
        Option("-c --configuration", "2d, 3d_fullres, 3d_lowres … (default: all of the plan)", metavar="CONFIGURATION", several="words"),
    ] = None
    device: Annotated[str, Option("--device", "where images are resampled (default: cpu)", metavar="auto|cpu|cuda")] = "cpu"
