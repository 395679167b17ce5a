"""Options of prediction, and of what is done with a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from medseg3d.errors import InputError
from medseg3d.options.dicom import DicomOptions
from medseg3d.options.measuring import StructureOptions
from medseg3d.options.option import Option, Options
from medseg3d.options.resources import DeviceOptions

ProbabilityFormat = Literal["medseg3d", "nnunet"]
FoldChoice = str | int | Iterable[str | int] | None
"""Folds as a caller may name them: one or several, texts or numbers, ``all`` for the network of all cases; None where the code chooses."""


@dataclass(frozen=True, kw_only=True)
class MirroringOptions(Options):
    """Whether test images are mirrored as well."""

    tta: Annotated[Literal["auto", "on", "off"], Option("--tta", "mirroring at prediction (default: where validation showed a gain)")] = (
        "auto"
    )

    @property
    def mirroring(self) -> bool | None:
        """Whether to mirror; None where validation decides."""
        return {"auto": None, "on": True, "off": False}[self.tta]


@dataclass(frozen=True, kw_only=True)
class SelectOptions(DeviceOptions):
    """Options of ``select``."""


@dataclass(frozen=True, kw_only=True)
class MemberOptions(Options):
    """Which networks of a model are meant."""

    configuration: Annotated[
        str | Sequence[str] | None,
        Option(
            "-c --configuration",
            "2d, 3d_fullres …; several are averaged (default: the selected one or ensemble of two; before select, the recommended one)",
            metavar="CONFIGURATION",
            several="words",
        ),
    ] = None
    folds: Annotated[FoldChoice, Option("--fold", "only these folds (default: all finished)", metavar="K", several="words")] = None


FULL = "full"
"""In the place of a level: the whole network."""


@dataclass(frozen=True, kw_only=True)
class LevelOptions(Options):
    """How much of a network that can be pruned predicts."""

    level: Annotated[
        str | None,
        Option(
            "--level",
            "level of a UNet++ that predicts, 1 or more, or full (default: the smallest that validation found as good)",
            metavar="N|full",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.wanted_level  # noqa: B018  # refuses what is no level

    @property
    def wanted_level(self) -> int | None:
        """None where validation decides; 0 for the whole network."""
        if self.level is None or self.level == FULL:
            return None if self.level is None else 0
        if not str(self.level).isdecimal():
            raise InputError(f"--level {self.level}: expected a whole number of at least 1, or {FULL}.")
        return int(self.level)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(LevelOptions, MirroringOptions, DeviceOptions, MemberOptions):
    """How a model is loaded, and how its networks go over an image."""

    step: Annotated[
        float,
        Option("--step-size --step", "distance of windows as a share of the window (default: 0.5)", metavar="0.5", above=0, at_most=1),
    ] = 0.5
    precision: Annotated[
        Literal["auto", "float32"],
        Option(
            "--precision",
            "half precision where that is faster, a few voxels at borders differ (auto, default); float32 is exact",
        ),
    ] = "auto"
    skip_empty: Annotated[bool, Option("--skip-empty", "leave out windows that validation says hold nothing, as beside the body")] = False
    scales: Annotated[
        Sequence[float],
        Option(
            "--scales",
            "predict the image at these sizes and average, such as 0.75 1 1.25 (default: 1)",
            metavar="FACTOR",
            above=0,
            at_most=4,
            several="words",
        ),
    ] = ()
    flips: Annotated[
        Sequence[str] | None,
        Option("--flips", "flip along these axes only, of S A R (default: as --tta says)", metavar="AXIS", several="words"),
    ] = None
    whole_image: Annotated[
        bool, Option("--whole-image", "let the network see each image at once, where memory allows (default: windows)")
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flips is not None and self.mirroring is False:
            raise InputError("--flips and --tta off: give at most one of them.")
        if self.whole_image and (self.skip_empty or self.step != ModelOptions.step):
            other = "--skip-empty" if self.skip_empty else "--step-size"
            raise InputError(f"--whole-image and {other}: without windows there is no such thing.")
        if len(set(self.scales)) < len(self.scales):
            raise InputError(f"--scales {' '.join(f'{scale:g}' for scale in self.scales)}: each size once.")


@dataclass(frozen=True, kw_only=True)
class PredictOptions(DicomOptions, ModelOptions, StructureOptions):
    """Options of ``predict``."""

    probabilities: Annotated[bool, Option("--probabilities", "write CASE.npz with float16 probabilities as well")] = False
    probabilities_format: Annotated[
        Literal["medseg3d", "nnunet"] | None,
        Option("--probabilities-format", "medseg3d (x, y, z; default), or nnunet (z, y, x) for nnUNetv2_ensemble; implies --probabilities"),
    ] = None
    statistics: Annotated[
        bool, Option("--statistics", "measure volume, place and intensities of each structure as well: structures.json and .csv")
    ] = False
    overwrite: Annotated[bool, Option("--overwrite", "replace outputs of another model")] = False
    strict: Annotated[
        bool,
        Option("--strict", "let an image fail that is unlike the training images (default: a warning, also in predictions.json)"),
    ] = False
    series_description: Annotated[
        str | None,
        Option(
            "--series-description",
            "of DICOM series only those in whose description this regular expression is found",
            metavar="REGEX",
        ),
    ] = None
    part: Annotated[
        tuple[int, int] | None, Option("--part", "only the I-th of N parts of the images: one for each machine", metavar="I/N")
    ] = None
    jobs: Annotated[
        int | None,
        Option("--jobs", "predict so many images at once, each in a process with its share of the cores", metavar="N", at_least=1),
    ] = None
    cluster: Annotated[
        str | None,
        Option("--cluster", "predict on the workers of this dask scheduler, such as tcp://host:8786", metavar="ADDRESS"),
    ] = None
    max_ram_gb: Annotated[
        float | None,
        Option(
            "--max-ram",
            "memory for reading ahead and for sums of logits (default: 60 % of the free)",
            metavar="GB",
            unit="GB",
            above=0,
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise InputError(f"--part {self.part[0]}/{self.part[1]}: expected two numbers such as 2/8, the first from 1 to the second.")
        if (self.distances or self.radiomics) and not self.statistics:
            raise InputError(f"--{'distances' if self.distances else 'radiomics'}: is measured with --statistics; give it as well.")
        if self.cluster is not None and self.jobs is not None:
            raise InputError("--jobs and --cluster: the workers of a cluster are its processes; give at most one of them.")

    @property
    def wanted_probabilities(self) -> ProbabilityFormat | None:
        """How probabilities are written; None where they are not."""
        return self.probabilities_format or ("medseg3d" if self.probabilities else None)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(LevelOptions, MemberOptions):
    """Options of ``export``."""

    format: Annotated[
        Literal["medseg3d", "onnx", "monai"] | None, Option("--format", "what is written (default: what the output's name ends with)")
    ] = None
