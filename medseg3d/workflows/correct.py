"""Correct: label maps that people corrected join the training set, and the network learns on from its present weights.

The weights of before stay in ``WORK/earlier/N``, a work folder of its own; both are compared on the same validation cases.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medseg3d.data.corrections import FOLDER, read_taken, taken_label
from medseg3d.data.grouping import find_groups, recorded_patients
from medseg3d.data.open_dataset import open_dataset
from medseg3d.domain import is_universal, refuse_part_of_several
from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.evaluation.evaluate_folders import Pair, evaluate_pairs
from medseg3d.evaluation.metrics import Evaluation
from medseg3d.events import Event, Listener
from medseg3d.files import check_writable, copy_file, storage, storage_errors
from medseg3d.fingerprint.familiarity import profile_of
from medseg3d.options import CorrectOptions, PreprocessOptions, SelectOptions, TrainOptions
from medseg3d.plan import Plan
from medseg3d.records import read_record, write_record
from medseg3d.training.folds import read_folds
from medseg3d.validation.corrected import Round, Rounds, change_of
from medseg3d.wording import counted, listed
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.choose_folds import kept_folds, likeness_of
from medseg3d.workflows.evaluate import work_tolerance_mm
from medseg3d.workflows.plan import measure_dataset
from medseg3d.workflows.plan_dataset import describe_dataset
from medseg3d.workflows.preprocess import preprocess
from medseg3d.workflows.propose import image_folder_of
from medseg3d.workflows.select import select
from medseg3d.workflows.splits import num_folds, plan_digest, read_split
from medseg3d.workflows.take_corrections import Corrections, read_corrections, take_corrections
from medseg3d.workflows.taking_turns import correcting_lock, planning_lock, refuse_busy_folds
from medseg3d.workflows.train import train
from medseg3d.workflows.validate import check_trained_on
from medseg3d.workflows.verb import verb

logger = logging.getLogger(__name__)

RECORD = "corrections.json"
EARLIER = "earlier"
SHARE_OF_EPOCHS = 4
"""A quarter of the plan's: the network knows all but what was corrected."""
SHARE_OF_RATE = 10
"""A tenth of the plan's learning rate: what was learned stays, as in other fine-tuning."""
COPIED = ("plan.json", "planner.json", "splits.json", "fingerprint.json", "selection.json")
"""What makes the weights of before a model that predicts as it did."""


@verb(CorrectOptions)
def correct(root: Path, work: Path | None, options: CorrectOptions, on: Listener) -> Round:
    """Take corrections, train all trained folds on from their weights, and compare; a call that was stopped goes on.

    Raises :class:`InputError` where nothing is new, or nothing was trained yet.
    """
    folder = work_folder(root, work)
    if is_universal(folder):
        raise InputError(
            f"{folder.root}: serves several datasets, and corrections train one. Put the corrected label maps in the place of the "
            f"dataset's and train all again (medseg3d train -w {folder.root} --fold 0 --restart)."
        )
    refuse_part_of_several(folder)
    check_writable(folder.root)
    with correcting_lock(folder):
        return _next_round(root, folder, options, on)


def _next_round(root: Path, folder: WorkFolder, options: CorrectOptions, on: Listener) -> Round:
    rounds = read_rounds(folder)
    going_on = rounds.rounds[-1] if rounds.rounds and not rounds.rounds[-1].is_finished else None
    folds = {} if going_on is not None else _trained_folds(folder, folder.read_plan())
    if going_on is None and not folds:
        raise InputError(f"{folder.root}: nothing is trained here yet, so there are no weights to go on from. Run medseg3d run first.")
    if not _is_set_aside(folder, going_on):
        refuse_busy_folds(folder, "is being set aside")
    corrections = _read(root, folder, options, going_on)
    now = _begun(corrections, going_on, folds, len(rounds.rounds) + 1)
    rounds = Rounds(rounds=(*(each for each in rounds.rounds if each.number != now.number), now))
    write_record(folder.root / RECORD, rounds, "corrections of a model")  # before they are taken: a call that was stopped knows of them
    take_corrections(root, corrections)
    _tell(corrections, on)
    earlier = _set_aside(folder, now)
    _plan_again(root, folder, earlier, now, options, on)
    preprocess(root, folder.root, PreprocessOptions.of(options, configurations=list(now.folds), device="cpu"), on)
    after = {name: _trained(root, folder, earlier, name, folds, options, on) for name, folds in now.folds.items()}
    before = _evaluated_again(root, folder, earlier, now, on)
    patients = recorded_patients(folder.splits)
    changes = tuple(change_of(name, before[name], after[name], seed=options.seed, patients=patients) for name in now.folds)
    if (earlier.root / "selection.json").exists():
        select(root, folder.root, SelectOptions(device=options.device), on)
    now = replace(now, is_finished=True, changes=changes)
    write_record(folder.root / RECORD, Rounds(rounds=(*rounds.rounds[:-1], now)), "corrections of a model")
    return now


def read_rounds(folder: WorkFolder) -> Rounds:
    """What was learned from corrections so far."""
    file = folder.root / RECORD
    return read_record(file, Rounds, "corrections of a model") if file.exists() else Rounds()


def _read(root: Path, folder: WorkFolder, options: CorrectOptions, going_on: Round | None) -> Corrections:
    """The corrections that are new; a round that goes on may have taken them all."""
    place = options.corrections or root / FOLDER
    if going_on is not None and not place.is_dir():
        return Corrections(found=(), maps={})
    plan = folder.read_plan()
    dataset = open_dataset(root, channels=plan.channels)
    found = read_corrections(dataset, plan, options.corrections, options.images or image_folder_of(folder))
    if going_on is not None:
        return _not_yet_taken(root, found, going_on)
    if not found.found:
        raise InputError(
            f"{place}: no correction that is new since the last call. Put corrected label maps there, each called as its case."
        )
    return found


def _not_yet_taken(root: Path, found: Corrections, going_on: Round) -> Corrections:
    """Of what is new that which the round had recorded; its folds may be trained already, so that the rest waits for the next one."""
    taken = read_taken(root).cases
    own = tuple(
        each
        for each in found.found
        if each.case in going_on.digests
        and (each.case not in taken or taken[each.case].digest != going_on.digests[each.case] or not taken_label(root, each.case).is_file())
    )
    waiting = [each.case for each in found.found if each not in own]
    if waiting:
        logger.warning("Round %d goes on first; %s waits for the next call.", going_on.number, listed(waiting))
    return Corrections(found=own, maps=found.maps)


def _begun(corrections: Corrections, going_on: Round | None, folds: dict[str, tuple[str, ...]], number: int) -> Round:
    """A new round, or the one that goes on."""
    names, added = [each.case for each in corrections.found], [each.case for each in corrections.found if each.is_new]
    if going_on is not None:
        return going_on
    digests = {each.case: each.digest for each in corrections.found}
    return Round(number=number, taken=tuple(names), added=tuple(added), earlier=f"{EARLIER}/{number}", folds=folds, digests=digests)


def _tell(corrections: Corrections, on: Listener) -> None:
    names, added = [each.case for each in corrections.found], sum(each.is_new for each in corrections.found)
    if names:
        more = f", {added} of them of images that had no label before" if added else ""
        on(Event(stage="correct", message=f"{counted(len(names), 'correction')} taken ({listed(names)}){more}."))


def _is_set_aside(folder: WorkFolder, now: Round | None) -> bool:
    return now is not None and (folder.root / now.earlier / "models").exists()


def _trained_folds(folder: WorkFolder, plan: Plan) -> dict[str, tuple[str, ...]]:
    """The finished folds of each configuration, earlier stages of a cascade first.

    Raises :class:`PlanMismatchError` for one that was trained with another plan or other cases than those of now: its weights may have seen
    what would measure them, and the round could not train it on.
    """
    order = sorted(plan.configurations, key=lambda name: len(plan.stages_of(name)))
    found = {name: folds for name in order if (folds := folder.finished_folds(name))}
    for name, folds in found.items():
        configuration = plan.configuration(name)
        for fold in folds:
            if fold.isdigit() and int(fold) >= num_folds(folder):
                raise PlanMismatchError(
                    f"{folder.fold(name, fold)}: was trained with other folds than are planned now, of which there are fewer. Move it away."
                )
            check_trained_on(folder, configuration, fold, plan_digest(plan, configuration, read_split(folder, fold)))
    return found


def _set_aside(folder: WorkFolder, now: Round) -> WorkFolder:
    """Move the weights of before into a work folder of their own; the move of the models is the last step, and may be repeated."""
    earlier = WorkFolder(folder.root / now.earlier)
    models = earlier.root / "models"
    if _is_set_aside(folder, now):
        return earlier
    refuse_busy_folds(folder, "is being set aside")
    begun = [
        fold
        for fold in sorted((folder.root / "models").glob("*/fold_*"))
        if fold.name.removeprefix("fold_") not in now.folds.get(fold.parent.name, ())
    ]
    if begun:
        logger.warning(
            "%s: not finished, and set aside as well. medseg3d train -w %s goes on with it; here it begins anew.",
            listed([f"{fold.parent.name} {fold.name}" for fold in begun], most=5),
            earlier.root,
        )
    with storage_errors(earlier.root):
        storage().make_folder(earlier.root)
        for name in COPIED:
            if (folder.root / name).exists():
                copy_file(folder.root / name, earlier.root / name)
        storage().replace(folder.root / "models", models)
    return earlier


def _plan_again(root: Path, folder: WorkFolder, earlier: WorkFolder, now: Round, options: CorrectOptions, on: Listener) -> None:
    """The plan of the weights for the cases of now: networks, spacing and normalization stay, as the weights know nothing else.

    A new case is trained by every trained fold where a fold is left that is not.
    """
    before = earlier.read_plan()
    dataset = open_dataset(root, channels=before.channels)
    dataset = replace(dataset, label_names={**dataset.label_names, **before.given_names})
    with planning_lock(folder, on):
        described = describe_dataset(dataset, measure_dataset(dataset, folder, options, on), before.given_names)
        labels, known = described.summary.labels, before.labels
        if (labels.names, labels.values, labels.regions) != (known.names, known.values, known.regions):
            raise PlanMismatchError(
                f"{root}: the labels are {listed(labels.names[1:])} now, and the weights know {listed(known.names[1:])}. For other labels "
                "plan anew: medseg3d plan, then train --init with the earlier weights."
            )
        write_record(folder.fingerprint, described.fingerprint, "fingerprint")
        cases = tuple(case.name for case in described.fingerprint.cases)
        trained = {int(fold) for names in now.folds.values() for fold in names if fold.isdigit()}
        found = find_groups(cases, likeness_of(described.fingerprint))
        kept = kept_folds(read_folds(folder.splits), dataset, cases, found, avoid=trained)
        if kept is None:
            raise PlanMismatchError(f"{folder.splits}: the corrections do not fit into these folds. Plan and train anew: medseg3d run.")
        write_record(folder.splits, kept[0], "splits")
        made = replace(
            before,
            labels=labels,
            num_training=described.summary.num_cases,
            fingerprint_digest=described.summary.digest,
            images=profile_of(described.fingerprint),
        )
        write_record(folder.plan, made, "plan")


def _trained(
    root: Path, folder: WorkFolder, earlier: WorkFolder, name: str, folds: tuple[str, ...], options: CorrectOptions, on: Listener
) -> dict[str, Evaluation]:
    """Each fold from the weights that it had; by fold, where it validates."""
    settings = earlier.read_plan().configuration(name).training
    has_length = any(each is not None for each in (options.epochs, options.hours))
    epochs = options.epochs if has_length else max(1, settings.epochs // SHARE_OF_EPOCHS)
    rate = options.learning_rate or settings.learning_rate / SHARE_OF_RATE
    found: dict[str, Evaluation] = {}
    for fold in folds:
        init = earlier.fold(name, fold)
        on(Event(stage="correct", message=f"Training {name} fold {fold} on from {init}"))
        training = TrainOptions.of(options, configuration=name, fold=fold, init=init, epochs=epochs, learning_rate=rate)
        evaluation = train(root, folder.root, training, on)[None]
        if evaluation is not None:
            found[fold] = evaluation
    return found


def _evaluated_again(
    root: Path, folder: WorkFolder, earlier: WorkFolder, now: Round, on: Listener
) -> Mapping[str, Mapping[str, Evaluation]]:
    """The label maps that the weights of before made of their validation cases, measured against the label maps of today."""
    plan = folder.read_plan()
    cases = {case.name: case for case in open_dataset(root, channels=plan.channels).training}
    found: dict[str, dict[str, Evaluation]] = {}
    for name, folds in now.folds.items():
        found[name] = {}
        for fold in folds:
            files = {file.name.removesuffix(".nii.gz"): file for file in sorted(earlier.validation(name, fold).glob("*.nii.gz"))}
            pairs = [
                Pair(case=case, prediction=file, reference=label, annotated=cases[case].annotated)
                for case, file in files.items()
                if case in cases and (label := cases[case].label) is not None
            ]
            if pairs:
                found[name][fold] = evaluate_pairs(
                    pairs, labels=plan.labels, tolerance_mm=work_tolerance_mm(folder), patients=recorded_patients(folder.splits), on=on
                )
    return found
