"""Write the report of a work folder: read what it holds so far into a :class:`ReportInput`, and hand that to the page.

In: a work folder, and the dataset for the pictures. Out: ``report.html``. What is not there yet stays empty; what is there but
cannot be read becomes a warning on the page, never a gap that looks like "nothing happened".
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from medseg3d.errors import CaseFailure, InputError, MedsegError
from medseg3d.parsing import parse_json
from medseg3d.plan import Plan
from medseg3d.records import read_json, read_record, to_plain
from medseg3d.reporting.case_pictures import ScoredCase, mistakes_of, picture_cases
from medseg3d.reporting.page import (
    DatasetFacts,
    FoldResult,
    LabelFacts,
    ReportInput,
    build_report,
    case_rows,
    configuration_names,
)
from medseg3d.reporting.paper import write_paper
from medseg3d.reporting.scores import scores_of
from medseg3d.reporting.study import NAME, Study, read_study
from medseg3d.reporting.study_facts import study_facts
from medseg3d.reporting.training_facts import partition_of, training_facts
from medseg3d.reporting.unsure import Unsure, predicted_uncertainty, stored_uncertainty
from medseg3d.work_folder import WorkFolder

if TYPE_CHECKING:
    from medseg3d.data.dataset import Dataset
    from medseg3d.evaluation.metrics import Evaluation
    from medseg3d.fingerprint.records import Fingerprint

logger = logging.getLogger(__name__)
T = TypeVar("T")


def write_page(
    root: Path,
    work: Path,
    output: Path,
    *,
    failures: Sequence[CaseFailure] = (),
    warnings: Sequence[str] = (),
    is_uncertainty_shown: bool = False,
    device: str = "auto",
    study: Path | None = None,
) -> Path:
    """Write the page of the dataset in ``root`` and its work folder to ``output``; what is not there yet, the page says.

    The methods, tables and checklist for a paper are written into the folder beside it that is called like it, without the ending.

    With ``is_uncertainty_shown`` the cases that are shown are predicted once more, on ``device``, to say where the networks were unsure.
    Without readable images the page has no pictures and says why. ``study`` is what the authors say of it, ``study.toml`` beside the
    dataset by default. Raises :class:`StorageError` where the page cannot be written, :class:`InputError` for a named study that cannot
    be read.
    """
    from medseg3d.data.label_names import other_meaning
    from medseg3d.data.open_dataset import open_dataset

    folder = WorkFolder(work)
    dataset, found = None, list(warnings)
    try:
        plan = folder.read_plan() if folder.plan.exists() else None
        dataset = open_dataset(root, channels=None if plan is None else plan.channels)
        if plan is not None and (others := other_meaning(dataset.labels, plan.labels, plan.given_names)):
            found.append(f"In dataset.json {others}. All names here are those of the plan.")
    except MedsegError as error:
        found.append(f"The dataset could not be opened for the pictures: {error}")
    said = _study(root, study, found)
    unsure = _predicting(folder, device) if is_uncertainty_shown and folder.plan.exists() else None
    report = replace(read_work(folder, dataset=dataset, failures=failures, warnings=found, unsure=unsure), output=output, study=said)
    write_paper(report, output.with_suffix(""))
    return build_report(report)


def _study(root: Path, named: Path | None, troubles: list[str]) -> Study | None:
    """What the authors say; the page is written also where the file that lies beside the dataset is wrong."""
    if named is not None:
        return read_study(named)
    if not (root / NAME).is_file():
        return None
    try:
        return read_study(root / NAME)
    except InputError as error:
        troubles.append(str(error))
        return None


def read_work(
    work: WorkFolder,
    *,
    dataset: Dataset | None = None,
    failures: Sequence[CaseFailure] = (),
    warnings: Sequence[str] = (),
    unsure: Unsure | None = None,
) -> ReportInput:
    """Everything the report shows, from the files of a work folder.

    With ``dataset`` the worst, median and best validation cases are drawn, which reads their images. ``failures`` and
    ``warnings`` of the caller stand before those found here. ``unsure`` says where the networks were, by default from probabilities beside
    the label maps.
    """
    from medseg3d.fingerprint.records import Fingerprint
    from medseg3d.version import __version__

    troubles: list[str] = []
    fingerprint = _read(work.fingerprint, Fingerprint, "fingerprint", troubles)
    plan = _read(work.plan, Plan, "plan", troubles)
    folds, evaluations = _read_folds(work, troubles)
    test = _read_test(work, troubles)
    selected, selection_notes = _read_selection(work, troubles)
    if test is not None:
        evaluations.append(test)
    skipped = sum(int(record.get("skipped_iterations") or 0) for fold in folds for record in fold.history)
    if skipped:
        troubles.append(f"{skipped} training steps were skipped because their loss or gradient was not finite.")
    for evaluation in evaluations:
        if evaluation.missing_predictions:
            names = ", ".join(evaluation.missing_predictions)
            troubles.append(f"Not predicted, and so not part of the means: {names}.")
    partition = partition_of(work.splits)
    training = tuple(training_facts(work.fold(fold.configuration, fold.fold)) for fold in folds)
    report = ReportInput(
        output=work.report,
        dataset=plan.dataset if plan else fingerprint.dataset if fingerprint else work.root.resolve().parent.name,
        work=str(work.root.resolve()),
        facts=dataset_facts(fingerprint, plan, num_test=len(dataset.test) if dataset else None) if fingerprint else None,
        plan=plan,
        explanations=_explanations(work, plan, fingerprint, troubles) if plan and fingerprint else (),
        folds=folds,
        selected=selected,
        selection_notes=selection_notes,
        test_scores=scores_of(test) if test else None,
        nsd_tolerance_mm=_tolerance(evaluations, troubles),
        timings=_read_timings(work.timings, troubles),
        training=training,
        study_facts=study_facts(dataset, partition.patients, [each.begun for each in training]) if dataset is not None else None,
        patients=partition.patients,
        grouping=partition.grouping,
        num_folds=partition.num_folds,
        members=partition.members,
        fold_sizes=partition.sizes,
        left_out=partition.left_out,
        failures=_unique([*failures, *(fingerprint.failures if fingerprint else ()), *(f for e in evaluations for f in e.failures)]),
        made_by=f"medseg3d {__version__}",
    )
    if dataset and plan:
        report = replace(report, **_look_at_cases(report, plan, work, dataset, unsure or stored_uncertainty(plan.labels), troubles))
    return replace(report, warnings=tuple(dict.fromkeys([*warnings, *troubles])))


def _explanations(work: WorkFolder, plan: Plan, fingerprint: Fingerprint, troubles: list[str]) -> tuple[dict[str, Any], ...]:
    """Why each number of the plan is what it is: the planner's rules are asked again, nothing of it is stored but their numbers."""
    from medseg3d.planning import Planner, explain, load_planner, summarize

    try:
        rules = read_record(work.planner, Planner, "planner") if work.planner.exists() else None
        if rules is None or rules.name != plan.planner:
            rules = load_planner(plan.planner)
        summary = summarize(fingerprint, plan.labels, modality_reason=plan.modality_reason, left_right_doubt=plan.left_right_doubt)
        return tuple(to_plain(explanation) for explanation in explain(plan, summary, rules))
    except MedsegError as error:
        troubles.append(f"The plan cannot be explained: {error}")
        logger.warning("The report is written without the reasons of the plan. %s", error)
        return ()


def dataset_facts(fingerprint: Fingerprint, plan: Plan | None, *, num_test: int | None = None) -> DatasetFacts:
    """The dataset at a glance; labels are named by the plan, by their values without one."""
    names = dict(zip(plan.labels.values, plan.labels.names, strict=True)) if plan else {}
    values = [value for value in names if value != fingerprint.background] if names else list(fingerprint.label_values)
    orientations: dict[str, int] = {}
    for case in fingerprint.cases:
        orientations[case.orientation] = orientations.get(case.orientation, 0) + 1
    labels = []
    for value in values:
        parts = plan.labels.members(plan.labels.values.index(value)) if plan else (value,)
        found = ([case.labels[part] for part in parts if part in case.labels] for case in fingerprint.cases)
        mine = [labels_of_case for labels_of_case in found if labels_of_case]
        labels.append(
            LabelFacts(
                name=names.get(value, f"label {value}"),
                value=value,
                num_cases=len(mine),
                volumes_ml=tuple(sum(label.volume_mm3 for label in own) / 1000 for own in mine),
                components=tuple(own[0].components for own in mine) if len(parts) == 1 else (),  # parts of a region may touch
            )
        )
    return DatasetFacts(
        channels=fingerprint.channel_names,
        shapes=tuple(case.shape for case in fingerprint.cases),
        spacings=tuple(case.spacing for case in fingerprint.cases),
        orientations=orientations,
        labels=tuple(labels),
        num_test=num_test,
        names=tuple(case.name for case in fingerprint.cases),
    )


def _look_at_cases(
    report: ReportInput, plan: Plan, work: WorkFolder, dataset: Dataset, unsure: Unsure, troubles: list[str]
) -> dict[str, Any]:
    """Pictures, and what went wrong: of the first configuration that has scores, and of the test set."""
    training, test = ({case.name: case for case in cases} for cases in (dataset.training, dataset.test))
    rows = next(filter(None, (_validated(report, work, name) for name in configuration_names(report))), [])
    tested = _scored([FoldResult(configuration="", fold="", scores=report.test_scores)], lambda row: work.predictions)
    return {
        "pictures": picture_cases(rows, training, plan, troubles, unsure),
        "test_pictures": picture_cases(tested, test, plan, troubles, unsure),
        "mistakes": mistakes_of(rows, training, plan, troubles, tolerance_mm=report.nsd_tolerance_mm),
        "test_mistakes": mistakes_of(tested, test, plan, troubles, tolerance_mm=report.nsd_tolerance_mm),
    }


def _predicting(work: WorkFolder, device: str) -> Unsure:
    selected, _ = _read_selection(work, [])
    return predicted_uncertainty(work, selected or (work.read_plan().recommended,), device=device)


def _validated(report: ReportInput, work: WorkFolder, configuration: str) -> list[ScoredCase]:
    folds = [fold for fold in report.folds if fold.configuration == configuration]
    return _scored(folds, lambda row: work.validation(configuration, row["fold"]))


def _scored(folds: Sequence[FoldResult], folder: Callable[[Mapping[str, Any]], Path]) -> list[ScoredCase]:
    """Cases with a mean, worst first, and where their label maps lie."""
    rows = [row for row in case_rows(folds) if row["mean"] is not None]
    return [ScoredCase(case=row["case"], mean=row["mean"], folder=folder(row), dice=row["dice"]) for row in rows]


def _read_folds(work: WorkFolder, troubles: list[str]) -> tuple[tuple[FoldResult, ...], list[Evaluation]]:
    from medseg3d.evaluation.metrics import RECORD_KIND, Evaluation
    from medseg3d.provenance import validation_changes

    results, evaluations = [], []
    for folder in sorted((work.root / "models").glob("*/fold_*"), key=lambda path: (path.parent.name, path.name.zfill(12))):
        configuration, fold = folder.parent.name, folder.name.removeprefix("fold_")
        history = read_history(folder / "history.jsonl", troubles)
        metrics = work.validation(configuration, fold) / "metrics.json"
        changes = validation_changes(work, configuration, fold) if metrics.exists() else None
        evaluation = _read(metrics, Evaluation, RECORD_KIND, troubles) if changes is None else None
        if changes is not None:
            troubles.append(
                f"{configuration}, fold {fold}: its validation was made from {changes}, and is not shown. "
                f"Run medseg3d train -c {configuration} --fold {fold} to make it anew."
            )
        if evaluation is not None:
            evaluations.append(evaluation)
        if not history and evaluation is None:
            continue
        results.append(
            FoldResult(
                configuration=configuration,
                fold=fold,
                history=tuple(history),
                scores=scores_of(evaluation) if evaluation is not None else None,
                is_finished=_is_finished(folder, len(history), has_metrics=evaluation is not None),
            )
        )
    return tuple(results), evaluations


def _is_finished(folder: Path, num_epochs: int, *, has_metrics: bool) -> bool:
    """Whether the training came to its end: it was validated, or as many epochs are done as its state asks for."""
    if has_metrics:
        return True
    try:
        state = read_json(folder / "training.json")
    except InputError:
        return False
    state = state.get("state", state) if isinstance(state, dict) else {}
    hours, epochs = state.get("hours"), state.get("epochs")
    if hours is not None:
        return float(state.get("elapsed_seconds") or 0.0) >= float(hours) * 3600
    return isinstance(epochs, int) and num_epochs >= epochs


def read_history(path: Path, troubles: list[str]) -> list[dict[str, Any]]:
    """The records of ``history.jsonl``; lines that cannot be read are told in ``troubles``. The last line of an epoch counts."""
    if not path.exists():
        return []
    records: dict[float, dict[str, Any]] = {}
    broken = []
    for line_number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line, str(path))
        except InputError:
            broken.append(line_number)
            continue
        epoch = record.get("epoch") if isinstance(record, dict) else None
        if isinstance(epoch, int | float) and math.isfinite(epoch):
            records[float(epoch)] = record
        else:
            broken.append(line_number)
    if broken:
        troubles.append(f"{path}: some lines cannot be read and are left out: {', '.join(map(str, broken))}.")
    return [records[epoch] for epoch in sorted(records)]


def _read_selection(work: WorkFolder, troubles: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from medseg3d.validation.selection import read_selection

    try:
        selection, note = read_selection(work)
    except InputError as error:
        troubles.append(str(error))
        return (), ()
    if note is not None:
        troubles.append(note)
    if selection is None:
        return (), ()
    notes = [selection.reason, *selection.notes]
    decisions = sorted(selection.postprocessing.decisions, key=lambda decision: not decision.accepted)
    notes += [
        f"Postprocessing, {d.step.operation.replace('_', ' ')} ({d.label}): {'' if d.accepted else 'not chosen, '}{d.reason}"
        for d in decisions
        if d.accepted or ", but " in d.reason
    ]
    if selection.postprocessing.steps:
        notes.append("The cross-validation below is evaluated before postprocessing; predictions of new images get it.")
    return selection.configurations, tuple(note[:1].upper() + note[1:] for note in notes)


def _read_test(work: WorkFolder, troubles: list[str]) -> Evaluation | None:
    """The metrics of the test images, where they belong to the weights and label maps of today."""
    from medseg3d.evaluation.metrics import RECORD_KIND, Evaluation
    from medseg3d.provenance import changes_since, read_origin

    origin = read_origin(work.predictions)
    changes = changes_since(origin, work) if origin is not None else None
    if changes is not None:
        troubles.append(f"The metrics of the test images were made from {changes}, and are not shown. Run medseg3d run to make them anew.")
        return None
    return _read(work.predictions / "metrics.json", Evaluation, RECORD_KIND, troubles)


def _read_timings(path: Path, troubles: list[str]) -> dict[str, float]:
    """Stage → seconds of ``timings.json``, which holds them under ``seconds``."""
    if not path.exists():
        return {}
    try:
        seconds = read_json(path).get("seconds")
        return {str(stage): float(value) for stage, value in seconds.items()}
    except (InputError, AttributeError, TypeError, ValueError) as error:
        troubles.append(f"{path}: the times cannot be read ({error}).")
        return {}


def _read(path: Path, record_type: type[T], kind: str, troubles: list[str]) -> T | None:
    if not path.exists():
        return None
    try:
        return read_record(path, record_type, kind)
    except InputError as error:
        logger.warning("%s", error)
        troubles.append(str(error))
        return None


def _tolerance(evaluations: Sequence[Evaluation], troubles: list[str]) -> float | None:
    """The tolerance of all surface scores; folds with different ones cannot be pooled, which is told."""
    tolerances = sorted({evaluation.tolerance_mm for evaluation in evaluations})
    if len(tolerances) > 1:
        found = ", ".join(f"{t:g}" for t in tolerances)
        troubles.append(f"NSD was computed with different tolerances ({found} mm); its means over folds mix them.")
        return None
    return tolerances[0] if tolerances else None


def _unique(failures: Sequence[CaseFailure]) -> tuple[CaseFailure, ...]:
    return tuple(dict.fromkeys(failures))
