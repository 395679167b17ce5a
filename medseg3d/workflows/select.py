"""Select: the best configuration or ensemble of two by cross-validation, then the postprocessing that helps it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from medseg3d.data.dataset import Case
from medseg3d.data.grouping import recorded_patients
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.reading import read_label_maps
from medseg3d.errors import BusyError, InputError, PlanMismatchError
from medseg3d.evaluation.metrics import Evaluation, mean_of, read_evaluation
from medseg3d.events import Event, Listener
from medseg3d.files import remove_file
from medseg3d.fingerprint.records import CaseFingerprint, Fingerprint
from medseg3d.label_codes import LabelCodes
from medseg3d.labels import Labels
from medseg3d.models.loading import load_models
from medseg3d.models.trained import levels_of
from medseg3d.options import SelectOptions
from medseg3d.plan import Plan
from medseg3d.provenance import METRICS, Origin, merged, read_origin, write_origin
from medseg3d.records import read_record, write_record
from medseg3d.validation.levels import MIRRORED, PLAIN, LevelChoice, level_folder
from medseg3d.validation.postprocessing_choice import choose_postprocessing
from medseg3d.validation.postprocessing_evidence import ValidatedCase
from medseg3d.validation.selection import (
    MIRRORING,
    Candidate,
    MirroringChoice,
    PairMirroring,
    Selection,
    choose_mirroring,
    pairs_of,
    read_fold_mirroring,
)
from medseg3d.validation.selection import select as choose
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.evaluate import work_tolerance_mm
from medseg3d.workflows.origins import check_first_stage, origin_of_validation, validation_age
from medseg3d.workflows.preprocess import warn_of_other_labels
from medseg3d.workflows.splits import num_folds, read_split
from medseg3d.workflows.taking_turns import fold_lock, selection_lock
from medseg3d.workflows.validate import may_be_repaired, predict_and_evaluate, use_other_mirroring, validate
from medseg3d.workflows.verb import verb

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """A candidate's folds and their metrics, and where the label maps of each lie; ``levels`` is the level that was chosen, if any."""

    names: tuple[str, ...]
    folds: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    label_maps: tuple[Path, ...]
    levels: LevelChoice | None = None


@verb(SelectOptions)
def select(root: Path, work: Path | None, options: SelectOptions, on: Listener) -> Selection:
    """Choose among all configurations with validated folds, and all ensembles of two; written as ``selection.json``.

    Works with whatever folds are finished; one that another process is validating is left out, with a note. Raises
    :class:`InputError` where no fold is.
    """
    folder = work_folder(root, work)
    folder.read_plan()
    with ExitStack() as held:
        held.enter_context(selection_lock(folder, on))
        return _select(root, folder, held, options.device, on)


def _select(root: Path, folder: WorkFolder, held: ExitStack, device: str, on: Listener) -> Selection:
    plan = folder.read_plan()
    left_out: list[str] = []
    measured = [m for name in plan.configurations if (m := _single(root, folder, name, held, left_out, device, on)) is not None]
    if not measured:
        if left_out:
            raise BusyError(left_out[0])
        raise InputError(f"{folder.root}: no fold with validation is finished. Run medseg3d train --fold 0 first.")
    mirroring = {m.names[0]: mirroring_of(folder, m.names[0], m.folds) for m in measured}
    measured = [_evaluated_so(folder, m, mirroring[m.names[0]].is_used) for m in measured]
    folds_of = {m.names[0]: m.folds for m in measured}
    detectors = {each.previous_stage for each in plan.configurations.values() if each.is_cropped}  # too coarse to add to anything
    for pair in pairs_of([name for name in folds_of if name not in detectors]):
        common = tuple(fold for fold in folds_of[pair[0]] if fold in folds_of[pair[1]])
        if common:
            measured.append(_pair(root, folder, plan, pair, common, {name: mirroring[name].is_used for name in pair}, device, on))
    candidates = [
        Candidate(
            configurations=m.names,
            folds=dict.fromkeys(m.names, m.folds),
            dice=_dice_of_cases(m.evaluations),
        )
        for m in measured
    ]
    selection = choose(candidates, recommended=plan.recommended, patients=recorded_patients(folder.splits))
    best = next(m for m in measured if m.names == selection.configurations)
    measured_cases = _measured_cases(folder)
    chosen = choose_postprocessing(
        _validated(root, folder, plan, best),
        plan.labels,
        num_split=_num_split(measured_cases, plan.labels),
        max_bytes_per_case=BYTES_PER_VOXEL * max((math.prod(case.shape) for case in measured_cases), default=0),
    )
    notes = (*selection.notes, *left_out, *(f"{name}: {choice.reason}." for name, choice in mirroring.items() if choice.gain is not None))
    origin = merged([_origin(root, folder, plan, m.names, fold) for m in measured for fold in m.folds])
    notes += tuple(f"{m.names[0]}: L{m.levels.level} predicts: {m.levels.reason} ({m.levels.table()})." for m in measured if m.levels)
    selection = replace(selection, postprocessing=chosen, mirroring=mirroring, notes=notes, origin=origin)
    write_record(folder.selection, selection, "selection")
    return selection


def _dice_of_cases(evaluations: Sequence[Evaluation]) -> dict[str, float | None]:
    """The Dice of each case; the mean of those networks that were validated on the same one."""
    found: dict[str, list[float | None]] = {}
    for evaluation in evaluations:
        for case, dice in evaluation.dice_per_case().items():
            found.setdefault(case, []).append(dice)
    return {case: mean_of(values).mean for case, values in found.items()}


BYTES_PER_VOXEL = 20
"""Of the largest case. Prediction and reference as indices (up to 8 bytes each while they are encoded), a mask and its objects."""


def _measured_cases(folder: WorkFolder) -> tuple[CaseFingerprint, ...]:
    return read_record(folder.fingerprint, Fingerprint, "fingerprint").cases if folder.fingerprint.exists() else ()


def _num_split(cases: Sequence[CaseFingerprint], labels: Labels) -> dict[int, int]:
    """By label index, in how many cases of the dataset the label has several objects; the fingerprint does not know it of regions, nor
    where parts of a case are not annotated."""
    if labels.regions or labels.ignore is not None:
        return {}
    found: dict[int, int] = {}
    for index in labels.foreground:
        value = labels.values[index]
        found[index] = sum(value in case.labels and case.labels[value].components > 1 for case in cases)
    return found


def _single(
    root: Path, folder: WorkFolder, name: str, held: ExitStack, left_out: list[str], device: str, on: Listener
) -> _Evaluated | None:
    there = {fold: _is_planned(folder, name, fold, left_out, on) for fold in folder.finished_folds(name) if fold.isdigit()}
    finished = (fold for fold, is_planned in there.items() if is_planned and read_split(folder, fold).validation)
    current = (fold for fold in finished if _is_current(folder, name, fold, left_out, on))
    folds = tuple(fold for fold in current if _is_free(folder.fold(name, fold), held, left_out, on))
    if not folds:
        return None
    work = folder.root
    evaluations = tuple(validate(root, work, configuration=name, fold=fold, device=device, keep_finished=True, on=on) for fold in folds)
    return _Evaluated((name,), folds, evaluations, tuple(folder.validation(name, fold) for fold in folds))


def _is_planned(folder: WorkFolder, name: str, fold: str, left_out: list[str], on: Listener) -> bool:
    """False, and a note, for a fold that was trained when there were more of them."""
    if int(fold) < num_folds(folder):
        return True
    left_out.append(f"Left out: {folder.fold(name, fold)} was trained with other folds than are planned now, of which there are fewer.")
    on(Event(stage="select", message=left_out[-1]))
    return False


def _is_current(folder: WorkFolder, name: str, fold: str, left_out: list[str], on: Listener) -> bool:
    """False, and a note, for a fold of a cascade whose first stage was trained again since."""
    try:
        check_first_stage(folder, name, fold)
    except PlanMismatchError as error:
        left_out.append(f"Left out: {error}")
        on(Event(stage="select", message=left_out[-1]))
        return False
    return True


def _is_free(fold: Path, held: ExitStack, left_out: list[str], on: Listener) -> bool:
    """Keep other processes from a fold until the selection is made; False, and a note, where one is at work there."""
    try:
        held.enter_context(fold_lock(fold, "is being selected from"))
    except BusyError as error:
        left_out.append(f"Left out: {error}")
        on(Event(stage="select", message=left_out[-1]))
        return False
    return True


def mirroring_of(folder: WorkFolder, name: str, folds: tuple[str, ...]) -> MirroringChoice:
    """By all cases that were evaluated both ways, each by the mean of its networks; as most folds were evaluated, where none was."""
    both: dict[bool, list[Evaluation]] = {True: [], False: []}
    ways: list[bool] = []
    for fold in folds:
        validation = folder.validation(name, fold)
        made = read_fold_mirroring(validation)
        ways.append(made is None or made.is_used)
        if made is not None and made.has_other:
            both[made.is_used].append(read_evaluation(validation / METRICS))
            both[not made.is_used].append(read_evaluation(validation / made.other / METRICS))
    if both[True]:
        with_mirroring, without = (_dice_of_cases(both[is_used]) for is_used in (True, False))
        return choose_mirroring(with_mirroring, without, patients=recorded_patients(folder.splits))
    is_used = sum(ways) * 2 >= len(ways)
    return MirroringChoice(is_used=is_used, gain=None, reason="evaluated one way only")


def _evaluated_so(folder: WorkFolder, measured: _Evaluated, is_mirrored: bool) -> _Evaluated:
    """The same folds with their label maps and metrics made the chosen way, where they were made both ways, and by the chosen level."""
    name = measured.names[0]
    for fold in measured.folds:
        validation = folder.validation(name, fold)
        made = read_fold_mirroring(validation)
        if made is not None and made.has_other and made.is_used != is_mirrored:
            use_other_mirroring(validation)
    levels = levels_of(folder, name, measured.folds, is_mirrored=is_mirrored)
    places = tuple(_label_maps(folder.validation(name, fold), levels, is_mirrored=is_mirrored) for fold in measured.folds)
    return replace(measured, evaluations=tuple(read_evaluation(place / METRICS) for place in places), label_maps=places, levels=levels)


def _label_maps(validation: Path, levels: LevelChoice | None, *, is_mirrored: bool) -> Path:
    """Where the label maps and metrics of the chosen level lie; those of the whole network where it was not predicted this way."""
    if levels is None or levels.level == levels.deepest:
        return validation
    place = level_folder(validation, levels.level, MIRRORED if is_mirrored else PLAIN)
    return place if (place / METRICS).exists() else validation


def _pair(
    root: Path,
    folder: WorkFolder,
    plan: Plan,
    names: tuple[str, str],
    folds: tuple[str, ...],
    mirroring: dict[str, bool],
    device: str,
    on: Listener,
) -> _Evaluated:
    evaluations = []
    chosen = {name: levels_of(folder, name, folds, is_mirrored=mirroring[name]) for name in names}
    wanted = PairMirroring(is_used=mirroring, levels={name: levels.level for name, levels in chosen.items() if levels is not None})
    for fold in folds:
        target = folder.validation("+".join(names), fold)
        metrics, made = target / METRICS, target / MIRRORING
        is_same = made.exists() and read_record(made, PairMirroring, "mirroring") == wanted
        if is_same and metrics.exists() and validation_age(root, folder, plan, names, fold) is None:
            known = read_evaluation(metrics)
            if not may_be_repaired(root, plan, known):
                evaluations.append(known)
                continue
        on(Event(stage="select", message=f"Evaluating the ensemble {' + '.join(names)}, fold {fold}"))
        model = load_models(folder, names, folds=[fold], device=device, mirroring=mirroring, level=wanted.levels)
        remove_file(metrics)
        validation = read_split(folder, fold).validation
        write_origin(target, origin_of_validation(root, folder, plan, names, fold, validation))
        write_record(made, wanted, "mirroring")
        evaluations.append(
            predict_and_evaluate(
                root,
                model,
                validation,
                target,
                tolerance_mm=work_tolerance_mm(folder),
                patients=recorded_patients(folder.splits),
                on=on,
            )
        )
    return _Evaluated(names, folds, tuple(evaluations), tuple(folder.validation("+".join(names), fold) for fold in folds))


def _origin(root: Path, folder: WorkFolder, plan: Plan, names: Sequence[str], fold: str) -> Origin:
    """What a validation was made from; of one that an older version made, what is there now."""
    known = read_origin(folder.validation("+".join(names), fold))
    return known or origin_of_validation(root, folder, plan, names, fold, read_split(folder, fold).validation)


def _validated(root: Path, folder: WorkFolder, plan: Plan, best: _Evaluated) -> Iterator[ValidatedCase]:
    """The validation cases of a candidate; each loads its predicted and reference indices when it is asked to.

    Each is given once, also where several networks were validated on it: it is evidence once.
    """
    given: set[str] = set()
    patients = recorded_patients(folder.splits)
    dataset = open_dataset(root, channels=plan.channels)
    warn_of_other_labels(dataset, plan)
    cases = {case.name: case for case in dataset.training}
    for fold, target in zip(best.folds, best.label_maps, strict=True):
        for name in read_split(folder, fold).validation:
            label = cases[name].label if name in cases and name not in given else None
            given.add(name)
            if label is not None:
                load = partial(_load, plan, cases[name], target / f"{name}.nii.gz", label)
                yield ValidatedCase(name=name, load=load, patient=patients.get(name, ""))


def _load(plan: Plan, case: Case, predicted: Path, label: Path) -> tuple[np.ndarray, np.ndarray]:
    """Label indices and the codes of the reference, in canonical axes; the label may be stored with other axes than the image."""
    prediction, reference, _ = read_label_maps(predicted, label, case.name, soft=case.soft)
    return plan.labels.encode(prediction, str(predicted)), LabelCodes(plan.labels).encode(reference, str(label), case.annotated)
