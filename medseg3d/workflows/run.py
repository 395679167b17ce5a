"""Run: the whole chain on a dataset, ending in a report. What is finished already is not done again."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from medseg3d.data.dataset import Dataset
from medseg3d.data.open_dataset import open_dataset
from medseg3d.devices import choose_device, several_devices
from medseg3d.domain import Domain, domain_of, domains_of
from medseg3d.errors import CaseFailure, InputError
from medseg3d.evaluation.evaluate_folders import Pair, evaluate_pairs
from medseg3d.evaluation.metrics import Evaluation, write_evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.files import check_writable, remove_leftovers
from medseg3d.options import PlanOptions, PredictOptions, PreprocessOptions, RunOptions, SelectOptions, TrainOptions
from medseg3d.provenance import Origin, mark_file, weights_of, write_origin
from medseg3d.records import read_record, write_record
from medseg3d.reporting.report import write_page
from medseg3d.validation.selection import Selection
from medseg3d.wording import counted
from medseg3d.work_folder import WorkFolder, fold_names, work_folder
from medseg3d.workflows.choose_folds import tell_divided
from medseg3d.workflows.cluster import Evaluations, train_there
from medseg3d.workflows.evaluate import work_tolerance_mm
from medseg3d.workflows.plan import PlanResult
from medseg3d.workflows.plan_domains import plan_domains, share_a_network
from medseg3d.workflows.plan_time import hours_of_one
from medseg3d.workflows.predict import predict
from medseg3d.workflows.preprocess import PreprocessResult, preprocess
from medseg3d.workflows.select import select
from medseg3d.workflows.splits import all_folds, check_cascade, check_fold, trainings
from medseg3d.workflows.train import train
from medseg3d.workflows.verb import verb
from medseg3d.workflows.workers import Workers, cluster_workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds that each stage took, added up over all calls."""

    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What the chain gave: the choice, the metrics of the test set (where it has labels), and the report."""

    report: Path
    selection: Selection | None
    test: Evaluation | None
    failures: tuple[CaseFailure, ...]


Review = Callable[[PlanResult, WorkFolder, RunOptions], RunOptions]


@verb(RunOptions)
def run(root: Path, work: Path | None, options: RunOptions, on: Listener) -> RunResult:
    """Plan, preprocess, train, select, predict ``imagesTs``, evaluate, report.

    ``hours`` is the time for all training together, shared equally by the folds. Stopped and called again it goes on. Without
    ``planner`` the choices of a plan that is there (planner, memory, channels) are kept.
    """
    results = run_domains([root], work, options, on)
    return results[domain_of(root, work).name]


def run_domains(
    datasets: Sequence[Path], work: Path | None, options: RunOptions, on: Listener = silent, *, review: Review | None = None
) -> dict[str | None, RunResult]:
    """:func:`run` for a dataset, the current folder where none is named, or for several that share a network; the results by domain.

    ``review`` is called with the plan of a single dataset before anything is trained in its work folder, and may change the options; the
    dataset is planned again then.
    """
    is_shared = share_a_network(datasets, work, options.planner)
    root = Path() if is_shared or not datasets else datasets[0]
    channels, configurations = ((name,) if isinstance(name, str) else name for name in (options.channels, options.configurations))
    folds = fold_names(options.folds)
    if is_shared and configurations:
        raise InputError("-c: all datasets of a universal network train 3d_fullres (2d where a dataset has single slices).")
    # says what is wrong with a folder before anything is written into it
    opened = [open_dataset(dataset, channels=channels) for dataset in (datasets if is_shared else [root])]
    if options.cluster is None:
        choose_device(options.device)
        if options.devices is not None:
            several_devices(str(options.devices))
    folder = work_folder(root, work)
    check_writable(folder.root)
    clock = _Clock(folder)
    with clock.stage("plan"):
        planned = plan_domains(datasets, work, _plan_options(options, () if is_shared else opened, folder), on)
    if review is not None and not is_shared and not folder.has_trainings:
        changed = review(planned[None], folder, options)
        if changed != options:
            options = changed
            with clock.stage("plan"):
                planned = plan_domains(datasets, work, _plan_options(options, () if is_shared else opened, folder), on)
    chains = [_Chain(domain, planned[domain.name], clock, options, on) for domain in domains_of(root, work) if not domain.is_added]
    wanted = _wanted(chains, configurations, folds)
    names = tuple(dict.fromkeys(name for name, _ in wanted))
    with clock.stage("preprocess"):
        for chain in chains:
            chain.preprocess(
                PreprocessOptions(configurations=names, jobs=options.jobs, max_ram_gb=options.max_ram_gb, cluster=options.cluster)
            )
    whole = _Whole(len(wanted), on)
    with cluster_workers(options.cluster, on) as cluster:
        at_once = 1 if cluster is None else cluster.num_networks
        share = None if options.hours is None else options.hours / math.ceil(len(wanted) / at_once)
        for name, pairs in groupby(wanted, key=itemgetter(0)):  # a later configuration may need an earlier one's folds
            folds_of = [TrainOptions.of(options, configuration=None if is_shared else name, fold=fold, hours=share) for _, fold in pairs]
            for evaluations in _trained(root, work, name, folds_of, clock, cluster, whole):
                whole.num_done += 1
                for chain in chains:
                    chain.note(evaluations[chain.domain.name])
    is_validated = any(fold.isdigit() for _, fold in wanted)
    return {chain.domain.name: chain.finish(is_validated=is_validated) for chain in chains}


def _plan_options(options: RunOptions, alone: Sequence[Dataset], folder: WorkFolder) -> PlanOptions:
    """Those of planning; the hours are the share of one training, and count for a dataset that has its network alone."""
    return PlanOptions.of(options, hours=hours_of_one(options, alone[0], folder) if alone else None)


def _trained(
    root: Path, work: Path | None, name: str, folds: Sequence[TrainOptions], clock: _Clock, cluster: Workers | None, whole: _Whole
) -> Iterator[Evaluations]:
    """Train folds of a configuration, one after the other here, or at once on the workers of a cluster."""
    if cluster is None:
        for one in folds:
            with clock.stage(f"train {name} fold {one.fold}"):
                evaluations = train(root, work, one, whole.of_all)
            yield evaluations
        return
    with clock.stage(f"train {name}, {counted(len(folds), 'fold')} on a cluster"):
        for number, (one, evaluations) in enumerate(train_there(root, work, folds, cluster), 1):
            message = f"{name} fold {one.fold} is trained and validated, {number} of {len(folds)}."
            whole.on(Event(stage="train", message=message))
            yield evaluations


class _Whole:
    """Tells how much of all trainings is done, of which ``num_done`` are over."""

    def __init__(self, total: int, on: Listener) -> None:
        self._total, self.num_done, self.on = total, 0, on

    def of_all(self, event: Event) -> None:
        """Pass an event of the training at hand on, its share as one of the whole."""
        if event.overall is not None:
            event = replace(event, overall=(self.num_done + event.overall) / self._total)
        self.on(event)


def _wanted(chains: Sequence[_Chain], configurations: Sequence[str] | None, folds: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    """The trainings of the configurations, of the recommended one where none is named; raises :class:`InputError` for what is not there."""
    domains, plan = [chain.domain for chain in chains], chains[0].planned.plan
    names = [plan.configuration(name).name for name in configurations or [plan.recommended]]
    for name in names:
        for chain in chains:  # all of them must have it
            check_cascade(chain.domain, chain.planned.plan.configuration(name))
    for fold in folds or ():
        check_fold(domains, fold)
    return trainings(plan, names, folds, all_folds(domains))


class _Chain:
    """What the chain does for one domain alone, and what failed in it."""

    def __init__(self, domain: Domain, planned: PlanResult, clock: _Clock, options: RunOptions, on: Listener) -> None:
        self.domain, self.planned, self._clock, self._options, self._on = domain, planned, clock, options, on
        self._failures = list(planned.failures)
        doubt = (planned.plan.left_right_doubt,) if planned.plan.left_right_doubt else ()
        for warning in (*planned.warnings, *doubt):
            on(Event(stage="plan", message=domain.named(warning)))

    def preprocess(self, options: PreprocessOptions) -> None:
        self.note(preprocess(self.domain.dataset, self.domain.folder.root, options, self._on))

    def note(self, result: PreprocessResult | Evaluation | None) -> None:
        """Remember failures, of each case the first one."""
        known = {failure.case for failure in self._failures}
        self._failures += [failure for failure in (result.failures if result else ()) if failure.case not in known]

    def finish(self, *, is_validated: bool) -> RunResult:
        """Select, predict and evaluate the test images, report."""
        root, folder, selection = self.domain.dataset, self.domain.folder, None
        if is_validated:
            with self._clock.stage(self.domain.named("select")):
                selection = select(
                    root, folder.root, SelectOptions(device=self._options.device if self._options.cluster is None else "auto"), self._on
                )
        with self._clock.stage(self.domain.named("predict")):
            test, failures = predict_test_set(root, folder, self._options, self._on)
        failures = (*self._failures, *failures)
        self._on(Event(stage=self.domain.named("report"), total=1))  # its pictures take seconds, which are not the prediction's
        with self._clock.stage(self.domain.named("report")):
            page = write_report(root, folder, failures=failures, warnings=self.planned.warnings)
        self._on(Event(stage=self.domain.named("report"), done=1, total=1))
        return RunResult(report=page, selection=selection, test=test, failures=failures)


def write_report(
    root: Path,
    folder: WorkFolder,
    *,
    failures: Sequence[CaseFailure] = (),
    warnings: Sequence[str] = (),
    is_uncertainty_shown: bool = False,
    device: str = "auto",
    study: Path | None = None,
) -> Path:
    """``report.html`` from what lies in the work folder, with failures and warnings that are not written there.

    With ``is_uncertainty_shown`` the cases that it shows are predicted once more, on ``device``. ``study`` is a file with what only its
    authors know, by default ``study.toml`` beside the dataset.

    Raises :class:`InputError` where there is no work folder.
    """
    if not folder.root.is_dir():
        raise InputError(f"{folder.root}: there is no work folder here, so nothing to report. Run medseg3d run or plan first.")
    if not warnings and folder.splits.exists():
        warnings = [message for message in (tell_divided(folder.splits),) if message]
    remove_leftovers(folder.root)
    return write_page(
        root,
        folder.root,
        folder.report,
        failures=failures,
        warnings=warnings,
        is_uncertainty_shown=is_uncertainty_shown,
        device=device,
        study=study,
    )


def predict_test_set(
    root: Path, folder: WorkFolder, options: RunOptions, on: Listener
) -> tuple[Evaluation | None, tuple[CaseFailure, ...]]:
    """Predict the test images where there are any, and evaluate them where they have labels."""
    opened = open_dataset(root, channels=folder.read_plan().channels)
    if not opened.test:
        return None, opened.test_failures
    result = predict(
        opened.test,
        folder.predictions,
        PredictOptions(device=options.device, cluster=options.cluster, overwrite=True),
        dataset=root,
        work=folder.root,
        on=on,
    )
    failed = {failure.case for failure in result.failures}
    pairs = [
        Pair(case=case.name, prediction=folder.predictions / f"{case.name}.nii.gz", reference=case.label, annotated=case.annotated)
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
