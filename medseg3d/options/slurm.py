"""Options of the jobs for Slurm: those of training, and what ``sbatch`` is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from medseg3d.options.option import Option
from medseg3d.options.prediction import FoldChoice
from medseg3d.options.training import TrainingOptions, TuningOptions


@dataclass(frozen=True, kw_only=True)
class SlurmOptions(TuningOptions, TrainingOptions):
    """Options of ``slurm``."""

    configurations: Annotated[
        str | Sequence[str] | None,
        Option("-c --configuration", "2d, 3d_fullres … (default: the recommended one)", metavar="CONFIGURATION", several="words"),
    ] = None
    folds: Annotated[FoldChoice, Option("--folds", "folds to train, one a job (default: all)", metavar="K", several="words")] = None
    input: Annotated[Path | None, Option("-i --input", "images to predict at the end (default: imagesTs)", metavar="INPUT")] = None
    output: Annotated[Path | None, Option("-o --output", "folder of the files (default: WORK/slurm)", metavar="FOLDER")] = None
    sbatch: Annotated[str, Option("--sbatch", "options of every job, in one word: '--account=a --cpus-per-task=8'", metavar="OPTIONS")] = ""
    sbatch_train: Annotated[
        str, Option("--sbatch-train", "further ones of the trainings: '--partition=gpu --gres=gpu:1 --time=24:00:00'", metavar="OPTIONS")
    ] = ""
    setup: Annotated[str, Option("--setup", "shell commands at the beginning of every job: 'module load cuda'", metavar="COMMANDS")] = ""
    command: Annotated[
        str | None, Option("--command", "how jobs call medseg3d, such as a container (default: this Python)", metavar="COMMAND")
    ] = None
    jobs: Annotated[int | None, Option("--jobs", "cases preprocessed at once (default: the job's cores)", metavar="N", at_least=1)] = None
    predict_jobs: Annotated[int, Option("--predict-jobs", "jobs that share the prediction (default: 1)", metavar="N", at_least=1)] = 1
