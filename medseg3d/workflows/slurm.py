"""Write the jobs of a plan for Slurm: preprocess → an array of folds for each configuration → select → predict → report.

Plain files for ``sbatch``, which can be read and changed before ``submit.sh`` submits them. Slurm schedules; nothing here does.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg3d.domain import UNIVERSAL, Domain, domains_of
from medseg3d.errors import CasesFailedError, InputError
from medseg3d.events import Listener
from medseg3d.extensions import extension_arguments
from medseg3d.files import write_text
from medseg3d.options import SlurmOptions, TrainingOptions, TuningOptions, arguments_of
from medseg3d.work_folder import fold_names, work_folder
from medseg3d.workflows.initial_weights import is_shapes
from medseg3d.workflows.splits import all_folds, check_fold
from medseg3d.workflows.verb import verb

SECONDS_BEFORE_THE_END = 180
"""So long before its time is over a training is told to save and end; it takes the seconds of a step and of writing its state."""
SUBMIT = "submit.sh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One file for ``sbatch``: its ``name``, the jobs that must have ended well before, and the words of its commands.

    Of an array each task has one of the ``tasks`` in the place of the word ``TASK``.
    """

    name: str
    after: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    tasks: tuple[str, ...] = ()
    trains: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmResult:
    """The files that were written, in the order of their jobs, and the one that submits them."""

    jobs: tuple[Path, ...]
    submit: Path


TASK = "TASK"


@verb(SlurmOptions)
def slurm(root: Path, work: Path | None, options: SlurmOptions, on: Listener) -> SlurmResult:
    """Write a file for each job, and ``submit.sh``, into ``options.output`` (``WORK/slurm``); no job is submitted.

    Raises :class:`InputError` where there is no plan: its folds are the tasks of the arrays.
    """
    if options.restart:
        raise InputError("--restart: a job that is queued again would begin anew. Delete the folds that should be trained anew instead.")
    if options.init is not None and not is_shapes(options.init):
        options = replace(options, init=options.init.absolute())
    folder = work_folder(root, work)
    target = (options.output or folder.root / "slurm").absolute()
    jobs = list(_jobs(domains_of(root, work), root.absolute(), folder.root.absolute(), options))
    written = [write_text(target / f"{job.name}.sbatch", _text(job, target, options)) for job in jobs]
    submit = write_text(target / SUBMIT, _submit(jobs))
    submit.chmod(0o755)
    return SlurmResult(jobs=tuple(written), submit=submit)


def _jobs(domains: Sequence[Domain], root: Path, work: Path, options: SlurmOptions) -> Iterator[Job]:
    is_shared = domains[0].name is not None
    place = ("-w", str(work)) if is_shared else (str(root), "-w", str(work))
    configurations = _configurations(domains, options)
    needed = () if is_shared else ("-c", *(name for name, _, _ in configurations))
    yield Job(name="preprocess", after=(), commands=(("preprocess", *place, *needed, *_jobs_option(options)),))
    folds = fold_names(options.folds) or all_folds(domains)
    for fold in folds:
        check_fold(domains, fold)
    trained, trained_with = [], (*arguments_of(options, TrainingOptions), *arguments_of(options, TuningOptions))
    for name, earlier, is_named in configurations:
        chosen = () if is_shared else ("-c", name)
        command = ("train", *place, *chosen, "--fold", TASK, *trained_with)
        after = ("preprocess", *([f"train-{earlier}"] if earlier else []))
        yield Job(name=f"train-{name}", after=after, commands=(command,), tasks=folds if is_named else all_folds(domains), trains=True)
        trained.append(f"train-{name}")
    last = tuple(trained)
    if any(fold.isdigit() for fold in folds):
        yield Job(name="select", after=last, commands=(("select", *place),))
        last = ("select",)
    images = options.input or (root / "imagesTs" if (root / "imagesTs").is_dir() else None)
    if images is not None and not is_shared:
        parts = tuple(f"{number}/{options.predict_jobs}" for number in range(1, options.predict_jobs + 1))
        part = ("--part", TASK) if len(parts) > 1 else ()
        command = ("predict", *place, "-i", str(images.absolute()), "-o", str(work / "predictions"), *part)
        yield Job(name="predict", after=last, commands=(command,), tasks=parts if part else ())
        last = ("predict",)
    yield Job(name="report", after=last, commands=(("report", *place),))


def _jobs_option(options: SlurmOptions) -> tuple[str, ...]:
    return () if options.jobs is None else ("--jobs", str(options.jobs))


def _configurations(domains: Sequence[Domain], options: SlurmOptions) -> list[tuple[str, str | None, bool]]:
    """The configurations to train, each with the one whose folds it needs, and whether it was asked for itself.

    Earlier stages of a cascade come before it, with all their folds: it learns from label maps of cases that they have not seen.
    """
    plan = domains[0].folder.read_plan()
    if domains[0].name is not None:
        if options.configurations:
            raise InputError("A universal network trains the configuration of its plan: leave -c out.")
        return [(UNIVERSAL, None, True)]
    named = (options.configurations,) if isinstance(options.configurations, str) else options.configurations
    wanted = [plan.configuration(name).name for name in named or [plan.recommended]]
    stages = dict.fromkeys(stage for name in wanted for stage in reversed(plan.stages_of(name)))
    return [(name, plan.configuration(name).previous_stage, name in wanted) for name in stages]


def _text(job: Job, target: Path, options: SlurmOptions) -> str:
    """The file of a job. A training that is told to end saves its state; where its time was over it is queued again, and goes on."""
    number = "%A_%a" if job.tasks else "%j"
    # sbatch reads a directive as a shell reads words
    settings = [shlex.quote(word) for word in (f"--job-name=medseg3d-{job.name}", f"--output={target / f'{job.name}-{number}.log'}")]
    settings += [f"--array=0-{len(job.tasks) - 1}"] if job.tasks else []
    settings += [f"--signal=B:USR1@{SECONDS_BEFORE_THE_END}", "--requeue"] if job.trains else []
    settings += [line for line in (options.sbatch, options.sbatch_train if job.trains else "") if line.strip()]
    lines = ["#!/bin/bash", *(f"#SBATCH {setting}" for setting in settings), "set -euo pipefail"]
    lines += [options.setup] if options.setup else []
    if job.tasks:
        lines += [f"tasks=({shlex.join(job.tasks)})", 'task="${tasks[$SLURM_ARRAY_TASK_ID]}"']
    called = options.command or shlex.join([sys.executable, "-m", "medseg3d"])
    for command in job.commands:
        words = (*command, *extension_arguments(), "-q") if job.trains else (*command, *extension_arguments())
        line = " ".join([called, *('"$task"' if word == TASK else shlex.quote(word) for word in words)])
        lines += [f"{line} || {_SOME_FAILED}"] if not job.trains else _training(line)
    return "\n".join(lines) + "\n"


_SOME_FAILED = (
    f"{{ code=$?; [ $code = {CasesFailedError.exit_code} ] || exit $code; }}  # the cases that failed are listed, the rest goes on"
)
"""Jobs wait for those before them to end well; a damaged file is no reason to cancel them."""


def _training(line: str) -> list[str]:
    return [
        "ended_by_slurm= training=",
        "trap 'ended_by_slurm=yes; kill -TERM $training' USR1",
        "trap 'kill -TERM $training' TERM INT",
        f"{line} &",
        "training=$! code=0",
        "wait $training || code=$?",
        "while kill -0 $training 2> /dev/null; do code=0; wait $training || code=$?; done  # a signal ends a wait early",
        'if [ -n "$ended_by_slurm" ] && [ $code = 143 ]; then',
        '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"  # its state is saved, and it goes on from there',
        "fi",
        f"[ $code != {CasesFailedError.exit_code} ] || code=0  # the cases that failed are listed, the rest goes on",
        "exit $code",
    ]


def _submit(jobs: Sequence[Job]) -> str:
    """Submit the jobs one after the other, each with the jobs that must have ended well before it."""
    lines = ["#!/bin/bash", "set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")"']
    for job in jobs:
        after = ":".join(f"${{{_variable(name)}%%;*}}" for name in job.after)
        depends = f'--dependency="afterok:{after}" --kill-on-invalid-dep=yes ' if after else ""
        lines.append(f"{_variable(job.name)}=$(sbatch --parsable {depends}{shlex.quote(f'{job.name}.sbatch')})")
        lines.append(f'echo "{job.name}: ${{{_variable(job.name)}}}"')
    return "\n".join(lines) + "\n"


def _variable(name: str) -> str:
    """A name in the shell.

    >>> _variable("train-3d_fullres")
    'train_3d_fullres'
    """
    return "".join(letter if letter.isalnum() else "_" for letter in name)
