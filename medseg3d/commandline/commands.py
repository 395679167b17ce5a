"""What each command takes: the options of its verb, with the folders and files that are named by their place, and how much it says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from medseg3d.options import (
    CompareOptions,
    CorrectOptions,
    DeviceOptions,
    DistillOptions,
    ExportOptions,
    FindLrOptions,
    ListenOptions,
    MeasureOptions,
    MemberOptions,
    Option,
    Options,
    OutputOptions,
    PlanOptions,
    PredictOptions,
    PreprocessOptions,
    ProposeOptions,
    ReproduceOptions,
    RunOptions,
    SeedOptions,
    SelectOptions,
    ServeOptions,
    SlurmOptions,
    TrainOptions,
    ValidateOptions,
)


@dataclass(frozen=True, kw_only=True)
class WorkOptions(Options):
    """Where a dataset's results lie."""

    work: Annotated[Path | None, Option("-w --work", "work folder (default: DATASET/medseg3d-work)", metavar="WORK")] = None


@dataclass(frozen=True, kw_only=True)
class OnDataset(WorkOptions):
    """A dataset and its work folder."""

    dataset: Annotated[Path, Option("dataset", "the dataset's folder (default: here)", metavar="DATASET")] = Path()


@dataclass(frozen=True, kw_only=True)
class OnDatasets(WorkOptions):
    """One dataset, or several that share a network."""

    datasets: Annotated[
        tuple[Path, ...],
        Option(
            "datasets",
            "the dataset's folder (default: here); several, with -w, share a network",
            metavar="DATASET",
            several="words",
        ),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class OnDomain(OnDataset):
    """A dataset, which may be one of those that share a network."""

    domain: Annotated[
        str | None, Option("--domain", "which dataset of a universal work folder (default: that of DATASET)", metavar="NAME")
    ] = None


@dataclass(frozen=True, kw_only=True)
class OnModel(Options):
    """A trained model of any kind."""

    model: Annotated[
        Path,
        Option(
            "model",
            "work folder or its dataset, .medseg3d file, weights.safetensors, or nnU-Net result folder or zip (default: here)",
            metavar="MODEL",
        ),
    ] = Path()


@dataclass(frozen=True, kw_only=True)
class RunCommand(OutputOptions, RunOptions, OnDatasets):
    """``medseg3d run``."""

    dry_run: Annotated[bool, Option("--dry-run", "say what would be done, how long and how much disk it takes; write nothing")] = False
    yes: Annotated[bool, Option("-y --yes", "ask nothing, also on a terminal: take names and groups as they are found")] = False


@dataclass(frozen=True, kw_only=True)
class PlanCommand(OutputOptions, PlanOptions, OnDatasets):
    """``medseg3d plan``."""

    fingerprint: Annotated[
        Path | None, Option("--fingerprint", "plan without images, from our fingerprint.json or nnU-Net's", metavar="FILE")
    ] = None


@dataclass(frozen=True, kw_only=True)
class PreprocessCommand(OutputOptions, PreprocessOptions, OnDomain):
    """``medseg3d preprocess``."""


@dataclass(frozen=True, kw_only=True)
class TrainCommand(OutputOptions, TrainOptions, OnDataset):
    """``medseg3d train``."""

    add_domain: Annotated[
        Path | None, Option("--add-domain", "train one more dataset on a universal network, with -w WORK", metavar="DATASET")
    ] = None
    validate: Annotated[bool, Option("--validate", "the former name of medseg3d validate", group="goal")] = False
    find_lr: Annotated[bool, Option("--find-lr", "the former name of medseg3d find-lr", group="goal")] = False


@dataclass(frozen=True, kw_only=True)
class ValidateCommand(OutputOptions, ValidateOptions, OnDomain):
    """``medseg3d validate``."""


@dataclass(frozen=True, kw_only=True)
class FindLrCommand(OutputOptions, FindLrOptions, OnDomain):
    """``medseg3d find-lr``."""


@dataclass(frozen=True, kw_only=True)
class SelectCommand(OutputOptions, SelectOptions, OnDomain):
    """``medseg3d select``."""


@dataclass(frozen=True, kw_only=True)
class CompareCommand(OutputOptions, CompareOptions):
    """``medseg3d compare``."""

    dataset: Annotated[Path, Option("-d --dataset", "the dataset's folder (default: here)", metavar="DATASET")] = Path()
    work: Annotated[Path | None, Option("-w --work", "folder of the comparison (default: DATASET/medseg3d-compare)", metavar="FOLDER")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class PredictCommand(OutputOptions, PredictOptions, OnDomain):
    """``medseg3d predict``."""

    input: Annotated[
        Path,
        Option("-i --input", "a folder of images, one image, or a tree of DICOM series", metavar="INPUT", is_required=True),
    ] = Path()
    output: Annotated[
        Path, Option("-o --output", "a folder, or a .nii.gz or .dcm file for one image", metavar="OUTPUT", is_required=True)
    ] = Path()
    model: Annotated[
        Path | None,
        Option(
            "-m --model",
            "a work folder, a .medseg3d file, an nnU-Net result folder or zip, a fold's folder or a weights.safetensors file",
            metavar="MODEL",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ReportCommand(DeviceOptions, OutputOptions, OnDomain):
    """``medseg3d report``."""

    uncertainty: Annotated[
        bool, Option("--uncertainty", "predict the cases that are shown once more, to show where the networks were unsure")
    ] = False
    study: Annotated[
        Path | None,
        Option("--study", "what only the authors know, for the CLAIM checklist (default: study.toml beside the dataset)", metavar="FILE"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DoctorCommand(OutputOptions, OnDomain):
    """``medseg3d doctor``."""

    fix: Annotated[bool, Option("--fix", "repair what can be repaired without doubt")] = False


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(OutputOptions, SeedOptions):
    """``medseg3d evaluate``."""

    predictions: Annotated[Path, Option("predictions", "a folder of label maps", is_required=True)] = Path()
    references: Annotated[Path, Option("references", "a folder of reference label maps with the same names", is_required=True)] = Path()
    output: Annotated[
        Path | None,
        Option(
            "-o --output",
            "a .json file (.csv beside it) or a folder (default: metrics.json in the folder of predictions; for two files none)",
            metavar="FILE",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ProposeCommand(OutputOptions, ProposeOptions, OnDataset):
    """``medseg3d propose``."""


@dataclass(frozen=True, kw_only=True)
class CorrectCommand(OutputOptions, CorrectOptions, OnDataset):
    """``medseg3d correct``."""


@dataclass(frozen=True, kw_only=True)
class MeasureCommand(OutputOptions, MeasureOptions):
    """``medseg3d measure``."""

    label_maps: Annotated[Path, Option("label_maps", "a folder of label maps, or one", metavar="LABELS", is_required=True)] = Path()
    images: Annotated[
        Path | None, Option("images", "the folder of their images, of the same names, for intensities; or one", metavar="IMAGES")
    ] = None
    output: Annotated[
        Path | None,
        Option(
            "-o --output",
            "a .json file (.csv beside it) or a folder (default: structures.json in the folder of label maps; for one file none)",
            metavar="FILE",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DistillCommand(OutputOptions, DistillOptions):
    """``medseg3d distill``."""

    dataset: Annotated[Path, Option("dataset", "the labelled images", metavar="DATASET", is_required=True)] = Path()
    model: Annotated[
        Path, Option("-m --model", "the teacher: a work folder, a .medseg3d file, any model", metavar="MODEL", is_required=True)
    ] = Path()
    output: Annotated[Path, Option("-o --output", "a new folder for the dataset with soft labels", metavar="FOLDER", is_required=True)] = (
        Path()
    )


@dataclass(frozen=True, kw_only=True)
class DemoCommand(OutputOptions, SeedOptions):
    """``medseg3d demo``."""

    folder: Annotated[Path, Option("folder", "a new folder", is_required=True)] = Path()
    dicom: Annotated[bool, Option("--dicom", "write the test images as DICOM series as well, into FOLDER/dicom")] = False


@dataclass(frozen=True, kw_only=True)
class ExportCommand(OutputOptions, ExportOptions, OnModel):
    """``medseg3d export``."""

    output: Annotated[Path, Option("-o --output", "NAME.medseg3d, NAME.onnx, or a new folder", metavar="OUTPUT", is_required=True)] = Path()


@dataclass(frozen=True, kw_only=True)
class ImportCommand(OutputOptions, MemberOptions):
    """``medseg3d import``."""

    kind: Annotated[Literal["nnunet"], Option("kind", "which program: nnunet (version 2)", metavar="nnunet", is_required=True)] = "nnunet"
    model: Annotated[
        Path,
        Option(
            "model", "its result folder, TRAINER__PLANS__CONFIGURATION, or a zip that it exported", metavar="MODEL_FOLDER", is_required=True
        ),
    ] = Path()
    output: Annotated[Path, Option("-o --output", "the file to write", metavar="NAME.medseg3d", is_required=True)] = Path()


@dataclass(frozen=True, kw_only=True)
class InfoCommand(OutputOptions, OnModel):
    """``medseg3d info``."""


@dataclass(frozen=True, kw_only=True)
class ServeCommand(OutputOptions, ServeOptions, OnModel):
    """``medseg3d serve``."""


@dataclass(frozen=True, kw_only=True)
class ListenCommand(OutputOptions, ListenOptions):
    """``medseg3d listen``."""

    rules: Annotated[
        Path, Option("rules", "a TOML file: what is listened to, which series, where results go", metavar="RULES", is_required=True)
    ] = Path()


@dataclass(frozen=True, kw_only=True)
class ReproduceCommand(OutputOptions, ReproduceOptions):
    """``medseg3d reproduce``."""

    work: Annotated[Path, Option("work", "the work folder of the run", metavar="WORK", is_required=True)] = Path()


@dataclass(frozen=True, kw_only=True)
class SlurmCommand(OutputOptions, SlurmOptions, OnDataset):
    """``medseg3d slurm``."""


@dataclass(frozen=True, kw_only=True)
class CompletionCommand(OutputOptions):
    """``medseg3d completion``."""

    shell: Annotated[Literal["bash", "zsh", "fish"], Option("shell", "the shell to write a script for", is_required=True)] = "bash"


@dataclass(frozen=True, kw_only=True)
class DocsCommand(OutputOptions):
    """``medseg3d docs``."""

    page: Annotated[
        str | None, Option("page", "the name of a page or of a command, PAGE#SECTION for a part (default: the list)", metavar="PAGE")
    ] = None
