"""Run: the whole chain on a dataset, ending in a report. What is finished already is not done again."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from medseg3d.data.open_dataset import open_dataset
from medseg3d.devices import choose_device
from medseg3d.errors import CaseFailure, InputError
from medseg3d.evaluation.evaluate_folders import Pair, evaluate_pairs
from medseg3d.evaluation.metrics import Evaluation, write_evaluation
from medseg3d.events import Event, Listener
from medseg3d.files import check_writable, remove_leftovers
from medseg3d.options import PlanOptions, PredictOptions, PreprocessOptions, RunOptions, SelectOptions, TrainOptions
from medseg3d.provenance import Origin, mark_file, weights_of, write_origin
from medseg3d.records import read_record, write_record
from medseg3d.reporting.report import write_page
from medseg3d.training.folds import read_folds
from medseg3d.validation.selection import Selection
from medseg3d.work_folder import WorkFolder, fold_names, work_folder
from medseg3d.workflows.choose_folds import tell_divided
from medseg3d.workflows.evaluate import work_tolerance_mm
from medseg3d.workflows.plan import plan
from medseg3d.workflows.predict import predict
from medseg3d.workflows.preprocess import preprocess
from medseg3d.workflows.select import select
from medseg3d.workflows.splits import read_split, refuse_cascade
from medseg3d.workflows.train import train
from medseg3d.workflows.verb import verb

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds that each stage took, added up over all calls."""

    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What the chain gave: the choice, the measures of the test set (where it has labels), and the report."""

    report: Path
    selection: Selection | None
    test: Evaluation | None
    failures: tuple[CaseFailure, ...]


@verb(RunOptions)
def run(root: Path, work: Path | None, options: RunOptions, on: Listener) -> RunResult:
    """Plan, preprocess, train, select, predict ``imagesTs``, evaluate, report.

    ``hours`` is the time for all training together, shared equally by the folds. Stopped and called again it goes on. Without
    ``planner`` the choices of a plan that is there (planner, memory, channels) are kept.
    """
    channels, configurations = ((name,) if isinstance(name, str) else name for name in (options.channels, options.configurations))
    folds, device = fold_names(options.folds), options.device
    open_dataset(root, channels=channels)  # says what is wrong with the folder before anything is written into it
    choose_device(device)
    folder = work_folder(root, work)
    check_writable(folder.root)
    clock = _Clock(folder)
    with clock.stage("plan"):
        planned = plan(root, work, PlanOptions.of(options), on)
    doubt = (planned.plan.left_right_doubt,) if planned.plan.left_right_doubt else ()
    for warning in (*planned.warnings, *doubt):
        on(Event(stage="plan", message=warning))
    failures = list(planned.failures)
    names = [planned.plan.configuration(name).name for name in configurations or [planned.plan.recommended]]
    for name in names:
        refuse_cascade(planned.plan.configuration(name))
    for fold in folds or ():
        read_split(folder, fold)  # raises for one that is not there
    with clock.stage("preprocess"):
        limits = PreprocessOptions(configurations=names, jobs=options.jobs, max_ram_gb=options.max_ram_gb)
        prepared = preprocess(root, work, limits, on)
    failures += [failure for failure in prepared.failures if failure.case not in {f.case for f in failures}]
    wanted = [(name, fold) for name in names for fold in folds or _all_folds(folder)]
    share = None if options.hours is None else options.hours / len(wanted)
    for name, fold in wanted:
        with clock.stage(f"train {name} fold {fold}"):
            evaluation = train(root, work, TrainOptions.of(options, configuration=name, fold=fold, hours=share), on)
        known = {failure.case for failure in failures}
        failures += [failure for failure in (evaluation.failures if evaluation else ()) if failure.case not in known]
    selection = None
    if any(fold.isdigit() for _, fold in wanted):
        with clock.stage("select"):
            selection = select(root, work, SelectOptions(device=device), on)
    with clock.stage("predict"):
        test, test_failures = predict_test_set(root, folder, work, device, on)
    failures += test_failures
    with clock.stage("report"):
        page = write_report(root, folder, failures=failures, warnings=planned.warnings)
    return RunResult(report=page, selection=selection, test=test, failures=tuple(failures))


def write_report(root: Path, folder: WorkFolder, *, failures: Sequence[CaseFailure] = (), warnings: Sequence[str] = ()) -> Path:
    """``report.html`` from what lies in the work folder, with failures and warnings that are not written there.

    Raises :class:`InputError` where there is no work folder.
    """
    if not folder.root.is_dir():
        raise InputError(f"{folder.root}: there is no work folder here, so nothing to report. Run medseg3d run or plan first.")
    if not warnings and folder.splits.exists():
        warnings = [message for message in (tell_divided(folder.splits),) if message]
    remove_leftovers(folder.root)
    return write_page(root, folder.root, folder.report, failures=failures, warnings=warnings)


def _all_folds(folder: WorkFolder) -> list[str]:
    return [str(index) for index in range(len(read_folds(folder.splits).folds))]


def predict_test_set(
    root: Path, folder: WorkFolder, work: Path | None, device: str, on: Listener
) -> tuple[Evaluation | None, tuple[CaseFailure, ...]]:
    """Predict the test images where there are any, and measure them where they have labels."""
    opened = open_dataset(root, channels=folder.read_plan().channels)
    if not opened.test:
        return None, opened.test_failures
    result = predict(opened.test, folder.predictions, PredictOptions(device=device, overwrite=True), dataset=root, work=work, on=on)
    failed = {failure.case for failure in result.failures}
    pairs = [
        Pair(case=case.name, prediction=folder.predictions / f"{case.name}.nii.gz", reference=case.label)
        for case in opened.test
        if case.label is not None and case.name not in failed
    ]
    failures = (*opened.test_failures, *result.failures)
    if not pairs:
        return None, failures
    labels = {pair.case: mark_file(pair.reference, folder) for pair in pairs}
    write_origin(folder.predictions, Origin(weights=weights_of(result.model), labels=labels))
    evaluation = evaluate_pairs(pairs, labels=folder.read_plan().labels, tolerance_mm=work_tolerance_mm(folder))
    write_evaluation(evaluation, folder.predictions / "metrics.json")
    return evaluation, (*failures, *evaluation.failures)


class _Clock:
    """Adds the seconds of each stage to ``timings.json``."""

    def __init__(self, folder: WorkFolder) -> None:
        self._file = folder.timings
        try:
            self._seconds = dict(read_record(self._file, Timings, "timings").seconds)
        except InputError:
            self._seconds = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began
            write_record(self._file, Timings(seconds=self._seconds), "timings")
