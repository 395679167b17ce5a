"""Validate: predict the validation cases of a trained fold on the grid of their files, and evaluate the label maps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from medseg3d.boundary import CaseBoundary
from medseg3d.data.dataset import Case
from medseg3d.data.grouping import recorded_patients
from medseg3d.data.open_dataset import open_dataset
from medseg3d.domain import Domain
from medseg3d.errors import CaseFailure, InputError, PlanMismatchError
from medseg3d.evaluation.evaluate_folders import Pair, evaluate_pairs
from medseg3d.evaluation.metrics import Evaluation, read_evaluation, write_evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.files import remove_file, remove_tree, storage, storage_errors
from medseg3d.images import write_label_map
from medseg3d.models.loading import load_models
from medseg3d.models.model import Model
from medseg3d.options import ValidateOptions
from medseg3d.plan import Configuration, Plan
from medseg3d.provenance import METRICS, ORIGIN, write_origin
from medseg3d.records import write_record
from medseg3d.team import ALONE, Team
from medseg3d.training.domains import running_parts
from medseg3d.training.state import check_same_parts
from medseg3d.validation.empty_window_record import EMPTY_WINDOWS
from medseg3d.validation.levels import LEVELS
from medseg3d.validation.selection import MIRRORING, FoldMirroring, choose_mirroring, read_fold_mirroring
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.evaluate import work_tolerance_mm
from medseg3d.workflows.measure_levels import LevelMeasurement
from medseg3d.workflows.origins import check_first_stage, origin_of_validation, raw_cases, validation_age
from medseg3d.workflows.preprocess import warn_of_other_labels
from medseg3d.workflows.splits import own_fold, plan_digest, read_split
from medseg3d.workflows.taking_turns import fold_lock
from medseg3d.workflows.verb import verb

logger = logging.getLogger(__name__)
WHOLE_NETWORK = 0
"""The level of a network that is measured: all of them then, of one pass."""


@verb(ValidateOptions)
def validate(root: Path, work: Path | None, options: ValidateOptions, on: Listener) -> Evaluation:
    """Predict the validation cases of a fold whole, on the grid of their files, and evaluate them.

    Raises :class:`BusyError` where another process trains or validates the fold.
    """
    return _validate_together(root, work, options, on, ALONE)


def _validate_together(root: Path, work: Path | None, options: ValidateOptions, on: Listener, team: Team) -> Evaluation:
    folder = work_folder(root, work)
    chosen = folder.read_plan().configuration(options.configuration)
    read_split(folder, options.fold)
    with fold_lock(folder.fold(chosen.name, options.fold), "is being validated") if team.is_first else nullcontext():
        return _validate(root, folder, chosen, options, on, team)


def validate_domain(domain: Domain, options: ValidateOptions, on: Listener = silent, team: Team = ALONE) -> Evaluation | None:
    """:func:`validate` for a domain and what it trains; None where it has no such fold of its own. The processes of a ``team`` predict
    some of the cases each."""
    if own_fold(domain, options.fold) != options.fold:
        on(Event(stage="validate", message=domain.named(f"has no fold {options.fold}; it took part in the training with another one.")))
        return None
    if domain.name is not None:
        on(Event(stage="validate", message=f"Measuring {domain.name}"))
    options = replace(options, configuration=options.configuration or domain.configuration)
    return _validate_together(domain.dataset, domain.folder.root, options, on, team)


def _validate(root: Path, folder: WorkFolder, chosen: Configuration, options: ValidateOptions, on: Listener, team: Team) -> Evaluation:
    plan, fold, tta = folder.read_plan(), options.fold, options.tta
    target = folder.validation(chosen.name, fold)
    split = read_split(folder, fold)
    check_trained_on(folder, chosen, fold, plan_digest(plan, chosen, split))
    check_first_stage(folder, chosen.name, fold)
    if options.keep_finished:
        kept = team.from_first(lambda: _kept_evaluation(root, folder, plan, chosen.name, fold, tta))
        if kept is not None:
            return kept
    if not split.validation:
        raise InputError(f"Fold {fold} has no validation cases, so there is nothing to validate.")
    model = load_models(folder, [chosen.name], folds=[fold], device=options.device, mirroring=tta != "off", level=WHOLE_NETWORK)
    evaluate = evaluate_both_ways if tta == "auto" and chosen.mirror_axes else predict_and_evaluate
    if team.is_first:
        remove_tree(target)  # an evaluation that is stopped leaves none that belongs to other label maps
        write_origin(target, origin_of_validation(root, folder, plan, [chosen.name], fold, split.validation))
        if evaluate is predict_and_evaluate:
            write_record(target / MIRRORING, FoldMirroring(is_used=tta != "off", has_other=False), "mirroring")
    team.wait()
    survey = model.survey_windows()
    both_ways = evaluate is evaluate_both_ways
    levels = LevelMeasurement(model, target, both_ways=both_ways, is_mirrored=tta != "off") if model.levels else None

    def finish() -> None:
        survey.add_all(team.collected(survey.windows))
        if team.is_first:
            write_record(target / EMPTY_WINDOWS, survey.result(), "empty windows")

    return evaluate(
        root,
        model,
        split.validation,
        target,
        tolerance_mm=work_tolerance_mm(folder),
        patients=recorded_patients(folder.splits),
        finish=finish,
        levels=levels,
        on=on,
        team=team,
    )


def _kept_evaluation(root: Path, folder: WorkFolder, plan: Plan, name: str, fold: str, tta: str) -> Evaluation | None:
    """The metrics of a fold, where they belong to its weights and cases and were made with the wanted mirroring; in place afterwards."""
    target = folder.validation(name, fold)
    metrics = target / METRICS
    if not (metrics.exists() and folder.weights(name, fold).exists()):
        return None
    changes = validation_age(root, folder, plan, [name], fold)
    if changes is not None:
        logger.info("%s was made from %s, and is made anew.", metrics, changes)
        return None
    try:
        made, evaluation = read_fold_mirroring(target), read_evaluation(metrics)
    except InputError as error:
        logger.warning("%s The fold is validated again.", error)
        return None
    made = made or FoldMirroring(is_used=True, has_other=False)
    with suppress(OSError):
        (target / replace(made, is_used=not made.is_used).other).rmdir()  # an exchange that was stopped at its end has left it empty
    if made.has_other and not (target / made.other / METRICS).exists():
        return None
    if tta != "auto" and made.is_used != (tta == "on"):
        if not made.has_other:
            return None
        use_other_mirroring(target)
        evaluation = read_evaluation(metrics)
    return None if may_be_repaired(root, plan, evaluation) else evaluation


def may_be_repaired(root: Path, plan: Plan, evaluation: Evaluation) -> bool:
    """Whether a case that failed in a validation is there now, so that it is worth another try."""
    readable = raw_cases(root, plan) if evaluation.failures else {}
    return any(failure.case in readable for failure in evaluation.failures)


def use_other_mirroring(validation: Path) -> None:
    """Exchange the label maps and metrics of a validation with those that were made the other way.

    The metrics leave first and come last: where this is stopped half-way there are none, and the fold is validated again.
    """
    made = read_fold_mirroring(validation)
    if made is None or not made.has_other:
        raise InputError(f"{validation}: was evaluated one way only.")
    now = replace(made, is_used=not made.is_used)
    other, own = validation / made.other, validation / now.other
    with storage_errors(validation):
        storage().make_folder(own)
        storage().replace(validation / METRICS, own / METRICS)
        _exchange_label_maps(validation, other, own)
        write_record(validation / MIRRORING, now, "mirroring")
        storage().replace(other / METRICS, validation / METRICS)
        other.rmdir()


def _exchange_label_maps(validation: Path, other: Path, own: Path) -> None:
    """Put all but the metrics of ``validation`` into ``own``, and those of ``other`` in their place."""
    for file in sorted(
        file for file in validation.iterdir() if file.is_file() and file.name not in (MIRRORING, EMPTY_WINDOWS, LEVELS, ORIGIN)
    ):
        storage().replace(file, own / file.name)
    for file in sorted(file for file in other.iterdir() if file.name != METRICS):
        storage().replace(file, validation / file.name)


def check_trained_on(folder: WorkFolder, chosen: Configuration, fold: str, digest: str) -> None:
    """Raise :class:`PlanMismatchError` where a fold was trained with another plan, on other cases, or with another version of the network
    than now."""
    state, target = folder.training_state(chosen.name, fold), folder.fold(chosen.name, fold)
    if state is not None and state.get("plan_digest") != digest:
        raise PlanMismatchError(
            f"{target}: was trained with another plan or other cases than are planned now, so its validation would not be "
            "honest. Train this fold again with --restart."
        )
    if state is not None:
        check_same_parts(state.get("providers", {}), running_parts([chosen]), target, is_over=True)


def predict_and_evaluate(
    root: Path,
    model: Model,
    names: tuple[str, ...],
    target: Path,
    *,
    tolerance_mm: float | None,
    patients: Mapping[str, str],
    on: Listener,
    finish: Callable[[], None] = lambda: None,
    levels: LevelMeasurement | None = None,
    team: Team = ALONE,
) -> Evaluation:
    """Label maps and ``metrics.json`` of training cases, in ``target``; a case that fails is listed there, the others go on.

    The metrics are written last, after ``finish``: where they are, everything is. The processes of a ``team`` predict some of the cases
    each, and the first one evaluates. Intervals resample whole ``patients`` (by case).
    """

    def predict(case: Case) -> None:
        file = target / f"{case.name}.nii.gz"
        if levels is None:
            model.predict_case(case, file)
            return
        prepared = model.prepare(model.read(case), in_place=True)
        (indices,) = levels.segment(prepared, case)
        write_label_map(file, model.finish(indices, prepared.orientation), prepared.header)

    cases, failures = _predict_validation(root, model, names, predict, on, team)
    finish()

    def measure() -> Evaluation:
        for name in set(names) - {case.name for case in cases}:
            remove_file(target / f"{name}.nii.gz")
        evaluation = _evaluated(cases, failures, model, target, tolerance_mm, patients, on)
        if levels is not None:
            levels.finish([evaluation], lambda place: _evaluated(cases, failures, model, place, tolerance_mm, patients, on), on)
        write_evaluation(evaluation, target / METRICS)
        return evaluation

    return team.from_first_alone(measure)


def evaluate_both_ways(
    root: Path,
    model: Model,
    names: tuple[str, ...],
    target: Path,
    *,
    tolerance_mm: float | None,
    patients: Mapping[str, str],
    on: Listener,
    finish: Callable[[], None] = lambda: None,
    levels: LevelMeasurement | None = None,
    team: Team = ALONE,
) -> Evaluation:
    """:func:`predict_and_evaluate` with and without mirroring, of one pass over each image; what is better stays in ``target``.

    The other way lies beside it (:class:`~medseg3d.validation.selection.FoldMirroring`). Mirroring must gain enough to be worth its time.
    """
    record = FoldMirroring(is_used=True, has_other=True)
    plain = target / record.other

    def predict(case: Case) -> None:
        prepared = model.prepare(model.read(case), in_place=True)
        both = model.segment_both(prepared) if levels is None else levels.segment(prepared, case)
        for folder, indices in zip((target, plain), both, strict=True):
            write_label_map(folder / f"{case.name}.nii.gz", model.finish(indices, prepared.orientation), prepared.header)

    cases, failures = _predict_validation(root, model, names, predict, on, team)
    finish()

    def choose() -> Evaluation:
        with_mirroring, without = (_evaluated(cases, failures, model, folder, tolerance_mm, patients, on) for folder in (target, plain))
        choice = choose_mirroring(with_mirroring.dice_per_case(), without.dice_per_case(), patients=patients)
        on(Event(stage="validate", message=f"Evaluated with and without mirroring: {choice.reason}."))
        if levels is not None:
            levels.finish(
                [with_mirroring, without], lambda place: _evaluated(cases, failures, model, place, tolerance_mm, patients, on), on
            )
        used, other, made = with_mirroring, without, record
        if not choice.is_used:
            used, other, made = without, with_mirroring, replace(record, is_used=False)
            storage().make_folder(target / made.other)
            _exchange_label_maps(target, plain, target / made.other)
            remove_tree(plain)
        write_record(target / MIRRORING, made, "mirroring")
        write_evaluation(other, target / made.other / METRICS)
        write_evaluation(used, target / METRICS)
        return used

    return team.from_first_alone(choose)


def _predict_validation(
    root: Path, model: Model, names: tuple[str, ...], predict: Callable[[Case], None], on: Listener, team: Team
) -> tuple[list[Case], list[CaseFailure]]:
    """Predict training cases one by one; those that worked, and the failures. Each process of a team predicts some of them."""
    dataset = open_dataset(root, channels=model.plan.channels)
    warn_of_other_labels(dataset, model.plan)
    cases = {case.name: case for case in dataset.training}
    failures = [failure for failure in dataset.failures if failure.case in names]
    names = tuple(name for name in names if name not in {failure.case for failure in failures})
    missing = [name for name in names if name not in cases]
    if missing:
        raise PlanMismatchError(f"{root}: the splits name cases that the dataset does not have: {', '.join(missing[:5])}. Plan again.")
    failed: list[CaseFailure] = []
    boundary = CaseBoundary("validate")
    own = names[team.rank :: team.size]
    on(Event(stage="validate", total=len(own)))
    for index, name in enumerate(own):
        with boundary.around(name) as attempt:
            predict(cases[name])
        if attempt.failure is not None:
            failed.append(attempt.failure)
            continue
        on(Event(stage="validate", done=index + 1, total=len(own)))
    if own:
        boundary.finish()
    failures += [failure for found in team.collected(failed) for failure in found]
    without = {failure.case for failure in failures}
    return [cases[name] for name in names if name not in without], failures


def _evaluated(
    cases: list[Case],
    failures: list[CaseFailure],
    model: Model,
    target: Path,
    tolerance_mm: float | None,
    patients: Mapping[str, str],
    on: Listener,
) -> Evaluation:
    pairs = [
        Pair(case=case.name, prediction=target / f"{case.name}.nii.gz", reference=_label_of(case), annotated=case.annotated)
        for case in cases
    ]
    evaluation = evaluate_pairs(pairs, labels=model.plan.labels, tolerance_mm=tolerance_mm, patients=patients, on=on)
    return replace(evaluation, failures=(*failures, *evaluation.failures))


def _label_of(case: Case) -> Path:
    if case.label is None:
        raise InputError(f"{case.name}: has no label map to compare with.")
    return case.label
