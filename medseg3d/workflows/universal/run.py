"""The whole chain for several datasets, ending in a report for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg3d.events import Event, Listener, silent
from medseg3d.options import PlanOptions, PreprocessOptions, RunOptions, TrainOptions
from medseg3d.work_folder import WorkFolder, fold_names
from medseg3d.workflows.run import RunResult, predict_test_set, write_report
from medseg3d.workflows.select import select
from medseg3d.workflows.splits import ALL_CASES
from medseg3d.workflows.universal.planning import domains_of, plan_universal, preprocess_universal
from medseg3d.workflows.universal.training import train_universal


def run_universal(datasets: Sequence[Path], work: Path, options: RunOptions, on: Listener = silent) -> dict[str, RunResult]:
    """The whole chain for several datasets, ending in a report for each; the results by domain.

    ``hours`` is the time of all training together, shared equally by the folds (all of them, if none are named).
    """
    planned = plan_universal(datasets, work, PlanOptions.of(options), on)
    for name, result in planned.items():
        for warning in result.warnings:
            on(Event(stage="plan", message=f"{name}: {warning}"))
    prepared = preprocess_universal(work, PreprocessOptions(jobs=options.jobs, max_ram_gb=options.max_ram_gb), on)
    most = max(len(result.folds.folds) if result.folds else 1 for result in planned.values())
    wanted = list(fold_names(options.folds) or map(str, range(most)))
    share = None if options.hours is None else options.hours / len(wanted)
    failures = {name: [*planned[name].failures, *prepared[name].failures] for name in planned}
    for fold in wanted:
        for name, evaluation in train_universal(work, TrainOptions.of(options, fold=fold, hours=share), on).items():
            failures[name] += evaluation.failures
    results: dict[str, RunResult] = {}
    for name, root, home in domains_of(work):
        if name not in planned:  # it was added, and its report is made by medseg3d report
            continue
        selection = select(root, home, device=options.device, on=on) if any(fold != ALL_CASES for fold in wanted) else None
        test, test_failures = predict_test_set(root, WorkFolder(home), home, options.device, on)
        unique = tuple({failure.case: failure for failure in (*failures[name], *test_failures)}.values())
        page = write_report(root, WorkFolder(home), failures=unique, warnings=planned[name].warnings)
        results[name] = RunResult(report=page, selection=selection, test=test, failures=unique)
    return results
