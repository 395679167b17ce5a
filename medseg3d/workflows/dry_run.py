"""Dry run: what ``run`` would do with a dataset, how long each step takes and how much disk; nothing is written into the dataset."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg3d.data.dataset import Case, Dataset
from medseg3d.data.open_dataset import open_dataset
from medseg3d.errors import InputError
from medseg3d.events import Event, Listener, silent
from medseg3d.execution import memory_budget
from medseg3d.fingerprint.make_fingerprint import make_fingerprint
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.options import RunOptions
from medseg3d.plan import Plan
from medseg3d.planning import load_planner
from medseg3d.planning.candidates import Speed
from medseg3d.planning.inherit import inherited_plan, with_axes_of
from medseg3d.records import read_record
from medseg3d.wording import counted, duration
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.choose_folds import count_folds
from medseg3d.workflows.estimate import FoldEstimate, configurations_of, estimates, measured_speed, prediction_seconds
from medseg3d.workflows.plan import earlier_choices, earlier_model, plan_of_model
from medseg3d.workflows.plan_dataset import DEFAULT_PLANNER, describe_dataset
from medseg3d.workflows.plan_time import hours_of_one, rules_for_time
from medseg3d.workflows.preprocess import preprocess_cases

logger = logging.getLogger(__name__)
SAMPLE = 8
"""Cases that are read at most, evenly over their names: enough for medians, little enough to wait for."""
STORED_SAMPLE = 2
"""Of these, cases that are preprocessed for a try, in a temporary folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DryStep:
    """One step of a run: what is done, the seconds that it takes by estimate, and the bytes that it leaves on the disk."""

    name: str
    what: str
    seconds: float
    disk_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What a run would do. ``sampled`` of ``cases`` training cases were read; ``plan`` was made from these."""

    dataset: str
    work: Path
    device: str
    cases: int
    sampled: int
    plan: Plan
    steps: tuple[DryStep, ...]
    free_bytes: int
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(step.seconds for step in self.steps)

    @property
    def disk_bytes(self) -> float:
        """That all steps leave."""
        return sum(step.disk_bytes for step in self.steps)

    @property
    def fits_disk(self) -> bool:
        """There is space for it now."""
        return self.disk_bytes <= self.free_bytes


def dry_run(dataset: Path | str, work: Path | str | None = None, options: RunOptions | None = None, on: Listener = silent) -> DryRun:
    """What :func:`medseg3d.run` would do with these options.

    Opens the dataset as ``run`` does, and raises what it raises. Reads a sample of the cases, plans from them, preprocesses two in a
    temporary folder, and measures the device for some seconds; the numbers that follow are estimates.
    """
    options = RunOptions() if options is None else options
    root = Path(dataset)
    if options.cluster is not None:
        raise InputError("--dry-run estimates this machine, not a cluster: leave --cluster out.")
    channels = (options.channels,) if isinstance(options.channels, str) else options.channels
    opened = open_dataset(root, channels=channels)
    folder = work_folder(root, None if work is None else Path(work))
    sample = _sample(opened)
    on(Event(stage="dry run: read cases", total=len(sample.training)))
    began = time.perf_counter()
    fingerprint = _fingerprint(sample, folder, options, on)
    reading = (time.perf_counter() - began) / len(sample.training)
    plan, warnings = _planned(sample, fingerprint, folder, options, hours_of_one(options, opened, folder))
    plan = replace(plan, num_training=len(opened.training))
    names = configurations_of(plan, options)
    stored = _stored(sample, plan, names, options)
    on(Event(stage="dry run: measure the device", total=1))
    speed = measured_speed(options.device)
    on(Event(stage="dry run: measure the device", done=1, total=1))
    num_folds = options.members or count_folds(opened, folder.splits)
    folds = estimates(plan, folder, options, speed, num_folds=num_folds)
    steps = [
        DryStep(name="plan", what=f"read and measure {counted(len(opened.training), 'case')}", seconds=reading * len(opened.training)),
        DryStep(
            name="preprocess",
            what=f"{counted(len(opened.training), 'case')} for {', '.join(names)}",
            seconds=stored.seconds * len(opened.training),
            disk_bytes=stored.disk_bytes * len(opened.training),
        ),
        *(_train_step(fold) for fold in folds),
        *_further_steps(opened, plan, names, folds, speed, num_folds),
    ]
    return DryRun(
        dataset=opened.name,
        work=folder.root,
        device=speed.device,
        cases=len(opened.training),
        sampled=len(sample.training),
        plan=plan,
        steps=tuple(steps),
        free_bytes=_free_bytes(folder.root),
        warnings=tuple(warnings) if len(sample.training) == len(opened.training) else (),  # a sample lacks rare labels
    )


def _free_bytes(folder: Path) -> int:
    """On the disk where a folder is, or will be."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(there).free


def _sample(dataset: Dataset) -> Dataset:
    """The dataset with few of its training cases, evenly spaced."""
    cases = dataset.training
    every = max(1, len(cases) / SAMPLE)
    chosen = tuple(cases[int(place * every)] for place in range(min(SAMPLE, len(cases))))
    return replace(dataset, training=chosen, declared_splits=None)


def _fingerprint(sample: Dataset, folder: WorkFolder, options: RunOptions, on: Listener) -> Fingerprint:
    try:
        previous = read_record(folder.fingerprint, Fingerprint, "fingerprint")
    except InputError:
        previous = None
    total = len(sample.training)
    return make_fingerprint(
        sample,
        previous=previous,
        num_workers=options.jobs,
        max_bytes=memory_budget(options.max_ram_gb),
        on_case=lambda cases: on(Event(stage="dry run: read cases", done=min(total, len(cases)), total=total)),
    )


def _planned(
    sample: Dataset, fingerprint: Fingerprint, folder: WorkFolder, options: RunOptions, hours: float | None
) -> tuple[Plan, Sequence[str]]:
    """The plan that the sample gives, by the rules that ``run`` would follow for trainings of some ``hours``."""
    names = dict(options.label_names or {})
    rules, memory = load_planner(options.planner or DEFAULT_PLANNER), options.gpu_memory_gb
    if folder.plan.exists():
        names = names or dict(folder.read_plan().given_names)
        if options.planner is None:
            rules, memory, _ = earlier_choices(folder, memory, None)
    model = earlier_model(folder) if options.inherit_plan is None and options.planner is None else None
    if options.inherit_plan is not None:
        model = plan_of_model(Path(options.inherit_plan))
    if model is not None:
        theirs, fingerprint = with_axes_of(model[0], fingerprint)
        described = describe_dataset(sample, fingerprint, names)
        decided = inherited_plan(described.plan_by(rules, memory), described.summary, rules, theirs, model[1])
        return decided.value, described.warnings
    described = describe_dataset(sample, fingerprint, names)
    rules = rules_for_time(rules, folder, described.summary, hours=hours, gpu_memory_gb=memory, device=options.device)
    return described.plan_by(rules, memory).value, described.warnings


def _stored(sample: Dataset, plan: Plan, names: Sequence[str], options: RunOptions) -> DryStep:
    """Seconds and bytes of one case that is preprocessed."""
    tried: Sequence[Case] = sample.training[:STORED_SAMPLE]
    with tempfile.TemporaryDirectory(prefix="medseg3d-dry-run-") as place:
        began = time.perf_counter()
        configurations = [plan.configuration(name) for name in names]
        for done in preprocess_cases(
            replace(sample, training=tuple(tried)), plan, configurations, WorkFolder(Path(place)), jobs=options.jobs
        ):
            if done.failure is not None:
                logger.warning("%s", done.failure)
        seconds = time.perf_counter() - began
        size = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
    return DryStep(name="preprocess", what="", seconds=seconds / len(tried), disk_bytes=size / len(tried))


def _train_step(fold: FoldEstimate) -> DryStep:
    if fold.epochs_done >= fold.epochs:
        what = "is trained"
    else:
        done = f", {fold.epochs_done} are done" if fold.epochs_done else ""
        what = f"{'as many epochs as fit' if fold.ends_by_time else f'{fold.epochs} epochs'}{done}"
    return DryStep(name=f"train {fold.configuration} fold {fold.fold}", what=what, seconds=fold.seconds, disk_bytes=fold.disk_bytes)


def _further_steps(
    opened: Dataset, plan: Plan, names: Sequence[str], folds: Sequence[FoldEstimate], speed: Speed, num_folds: int
) -> list[DryStep]:
    """Validation, and the prediction of test images."""
    trained = {fold.fold for fold in folds}
    validated = sum(fold.isdigit() for fold in trained)
    steps = []
    if validated:
        cases = max(1, round(validated / num_folds * len(opened.training)))
        seconds = sum(prediction_seconds(plan, plan.configuration(name), speed, num_cases=cases, num_networks=1) for name in names)
        steps.append(DryStep(name="validate", what=f"{counted(cases, 'case')} by {', '.join(names)}", seconds=seconds))
    if opened.test:
        configuration = plan.configuration(names[-1])
        seconds = prediction_seconds(plan, configuration, speed, num_cases=len(opened.test), num_networks=len(trained))
        what = f"{counted(len(opened.test), 'test case')} by {counted(len(trained), 'network')}"
        steps.append(DryStep(name="predict", what=what, seconds=seconds))
    return steps


def advice(found: DryRun, hours: float | None) -> list[str]:
    """Sentences about what is worth knowing before the run begins."""
    lines = []
    if found.sampled < found.cases:
        lines.append(f"The plan is from {found.sampled} of {found.cases} cases; run measures all of them.")
    training = sum(step.seconds for step in found.steps if step.name.startswith("train"))
    if hours is None and training > LONG_SECONDS:
        lines.append(
            f"Training takes about {duration(training)} here. --hours 8 makes all of it fit into eight hours; --folds 0 trains one."
        )
    if not found.fits_disk:
        lines.append(
            f"The disk of {found.work} has {found.free_bytes / 1e9:.1f} GB free, and {found.disk_bytes / 1e9:.1f} GB are needed. "
            "Name another place with -w."
        )
    return lines


LONG_SECONDS = 12 * 3600.0
"""More than a night."""
