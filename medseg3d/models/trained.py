"""What training leaves as a model: a work folder, which predicts as its validation showed to be best, or a single fold of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medseg3d.data.grouping import recorded_patients
from medseg3d.domain import UNIVERSAL, is_universal, read_domains
from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.models.checkpoints import load_tensors, read_card
from medseg3d.models.parts import (
    DICE,
    DICE_CASES,
    Configurations,
    Facts,
    MemberDescription,
    ModelDescription,
    ModelParts,
    Source,
    facts_of,
    names_of,
)
from medseg3d.plan import Plan
from medseg3d.provenance import changed_first_stage, is_known, split_key, validation_changes, weights_digest
from medseg3d.records import read_record
from medseg3d.validation.box import BOXES, BoxChoice, BoxRule, combined_rule
from medseg3d.validation.empty_window_record import EMPTY_WINDOWS, EmptyWindows, combined
from medseg3d.validation.levels import LEVELS, FoldLevels, LevelChoice, choose_level
from medseg3d.validation.postprocessing import NO_POSTPROCESSING
from medseg3d.validation.selection import FoldMirroring, Selection, read_fold_mirroring, read_selection
from medseg3d.wording import listed
from medseg3d.work_folder import DEFAULT_NAME, WorkFolder

logger = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
ALL = "all"
"""The fold that trains on every case."""


def open_work(path: Path, configuration: Configurations, folds: tuple[str, ...] | None) -> ModelParts:
    """The selected configurations of a work folder, or of a dataset's, with all finished folds; before a selection the recommended one.

    The selected postprocessing and measures belong to the selected configurations only. Raises :class:`InputError` where nothing is
    trained, or several datasets share the folder.
    """
    work = _work_at(path)
    if is_universal(work):
        domains = ", ".join(str(domain.name) for domain in read_domains(work))
        advice = f"Name the work folder of one of them: {work.root}/domains/NAME."
        raise InputError(f"{work.root}: serves several datasets ({domains}). {advice}")
    selection, note = read_selection(work)
    if note is not None:
        logger.warning("%s", note)
    if (named := names_of(configuration)) is not None:
        names = list(named)
    elif selection is not None:
        names = list(selection.configurations)
    else:
        plan = work.read_plan()
        trained = [name for name in plan.configurations if work.trained_folds(name)]
        names = [plan.recommended] if plan.recommended in trained else trained[:1]
    if not names:
        raise InputError(f"{work.root}: nothing is trained here yet. Run medseg3d train --fold 0 first.")
    return trained_parts(work, names, folds=folds, selection=selection)


def trained_parts(
    work: WorkFolder, names: Sequence[str], *, folds: tuple[str, ...] | None = None, selection: Selection | None = None
) -> ModelParts:
    """The named configurations of a work folder, averaged, with the named folds or all finished ones.

    ``selection`` says whether to mirror, and more where it chose exactly these configurations. Raises :class:`InputError` where a fold
    is not trained, :class:`PlanMismatchError` where they were trained with different plans.
    """
    used = {name: _trained(work, name, folds) for name in names}
    files = [work.weights(name, fold) for name in names for fold in used[name]]
    plan = _common_plan({file: read_card(file).plan for file in files}, names)
    earlier = _earlier_stages(work, plan, used)
    _warn_of_first_stages(work, {**earlier, **used})
    if not _fits(plan, work.read_plan(), names):
        logger.warning(
            "%s was changed since %s was trained: the plan of the training is used. Train again with --restart to follow the new one.",
            work.plan,
            " and ".join(names),
        )
    is_selected = selection is not None and list(names) == list(selection.configurations)
    postprocessing = selection.postprocessing if selection is not None and is_selected else NO_POSTPROCESSING
    networks = [(name, fold) for stages in (used, earlier) for name, chosen in stages.items() for fold in chosen]
    identity = [f"{name}/{fold}/{weights_digest(work.weights(name, fold))}" for name, fold in networks]
    boxes = {name: _box_rule(work, plan, name, chosen) for name, chosen in {**earlier, **used}.items()}
    identity += [f"{name} in {rule}" for name, rule in boxes.items() if rule is not None]

    def member(name: str, chosen: tuple[str, ...]) -> MemberDescription:
        is_mirrored = _is_mirrored(work, name, chosen, selection)
        return MemberDescription(
            configuration=name,
            folds=chosen,
            mirroring=is_mirrored,
            empty_windows=empty_windows_of(work, name, chosen),
            levels=levels_of(work, name, chosen, is_mirrored=is_mirrored),
            box=boxes[name],
        )

    return ModelParts(
        path=work.root,
        description=ModelDescription(
            plan=plan,
            members=tuple(member(name, used[name]) for name in names),
            previous=tuple(member(name, chosen) for name, chosen in earlier.items()),
            postprocessing=replace(postprocessing, failures=()),  # they name cases
            facts={**facts_of(plan), **_measures(selection, used)},
        ),
        identity=";".join([*identity, repr(postprocessing)]),
        read=lambda name, fold: load_tensors(work.weights(name, fold))[0],
    )


def _work_at(path: Path) -> WorkFolder:
    own = WorkFolder(path)
    return own if own.plan.exists() or is_universal(own) else WorkFolder(path / DEFAULT_NAME)


def _is_work(path: Path) -> bool:
    work = _work_at(path)
    return work.plan.exists() or is_universal(work)


def _held_by_work(path: Path) -> dict[str, tuple[str, ...]]:
    """The recommended configuration first; of a folder that several datasets share only the network that they share."""
    work = _work_at(path)
    if is_universal(work):
        names = [UNIVERSAL]
    else:
        names = [work.read_plan().recommended, *sorted(folder.name for folder in (work.root / "models").glob("*"))]
    return {name: folds for name in names if (folds := work.trained_folds(name))}


WORK_FOLDER = Source(name="a work folder or its dataset", opens=_is_work, held=_held_by_work, open=open_work)


def open_fold(path: Path, configuration: Configurations, folds: tuple[str, ...] | None) -> ModelParts:
    """The network of one fold, from its weights alone, which know no validation: mirrored, and without postprocessing."""
    file = _weights_at(path)
    card = read_card(file)
    if card.is_universal:
        raise InputError(
            f"{file}: holds a universal network for {', '.join(card.plans)}. Name the work folder with --domain, or the weights of one "
            "of its datasets (WORK/domains/NAME/models)."
        )
    if names_of(configuration) not in (None, (card.configuration,)) or folds not in (None, (card.fold,)):
        raise InputError(f"{file}: holds {card.configuration}, fold {card.fold}, and nothing else. Name the work folder to have others.")
    return ModelParts(
        path=file,
        description=ModelDescription(
            plan=card.plan,
            members=(MemberDescription(configuration=card.configuration, folds=(card.fold,)),),
            facts={**facts_of(card.plan), **card.facts},
        ),
        identity=weights_digest(file),
        read=lambda name, fold: load_tensors(file)[0],
    )


def _weights_at(path: Path) -> Path:
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path


def _held_by_fold(path: Path) -> dict[str, tuple[str, ...]]:
    card = read_card(_weights_at(path))
    return {UNIVERSAL if card.is_universal else card.configuration: (card.fold,)}


FOLD = Source(
    name=f"a fold's folder or its {WEIGHTS}",
    opens=lambda path: (file := _weights_at(path)).is_file() and file.suffix == ".safetensors",
    held=_held_by_fold,
    open=open_fold,
)


def common_network(path: Path, fold: str) -> Path | None:
    """The weights that several datasets share, at a path that one of these sources opens; None where it holds ordinary ones."""
    file = _weights_at(path) if FOLD.opens(path) else _work_at(path).weights(UNIVERSAL, fold)
    return file if file.exists() and read_card(file).is_universal else None


def _usual_folds(work: WorkFolder, configuration: str) -> tuple[str, ...]:
    """All finished folds; where none is, those that have weights at all, with a warning.

    A network trained on all cases would see nothing new from the folds, and the folds' mean is what was validated.
    """
    found = work.finished_folds(configuration)
    if not found:
        found = work.trained_folds(configuration)
        if found:
            logger.warning("%s: training of fold %s is not finished; its best weights so far are used.", configuration, ", ".join(found))
    return tuple(fold for fold in found if fold != ALL) or found


def empty_windows_of(work: WorkFolder, configuration: str, folds: Sequence[str]) -> EmptyWindows | None:
    """What the validations of these folds say together; nothing where one of them was made with other weights or label maps."""

    def said(fold: str) -> EmptyWindows | None:
        file, weights = work.validation(configuration, fold) / EMPTY_WINDOWS, work.weights(configuration, fold)
        if not file.exists() or validation_changes(work, configuration, fold) is not None:
            return None
        is_younger = file.stat().st_mtime >= weights.stat().st_mtime  # all that older versions left to tell it by
        if not (is_known(work, configuration, fold) or is_younger):
            return None
        try:
            return read_record(file, EmptyWindows, "empty windows")
        except InputError as error:
            logger.warning("%s It is left out; medseg3d validate --fold %s makes it again.", error, fold)
            return None

    return combined([said(fold) for fold in folds])


def levels_of(work: WorkFolder, configuration: str, folds: Sequence[str], *, is_mirrored: bool) -> LevelChoice | None:
    """The level that the validations of these folds choose together; None where one has none, or was made with other weights or labels."""
    files = {fold: work.validation(configuration, fold) / LEVELS for fold in folds}
    if not all(file.exists() for file in files.values()) or any(validation_changes(work, configuration, fold) for fold in folds):
        return None
    try:
        found = [read_record(file, FoldLevels, "levels") for file in files.values()]
    except InputError as error:
        logger.warning("%s The whole network predicts; medseg3d validate makes the file again.", error)
        return None
    return choose_level(found, is_mirrored=is_mirrored, patients=recorded_patients(work.splits))


def _trained(work: WorkFolder, name: str, folds: tuple[str, ...] | None) -> tuple[str, ...]:
    available = work.trained_folds(name)
    wanted = folds or _usual_folds(work, name)
    missing = [fold for fold in wanted if fold not in available]
    if missing or not wanted:
        raise InputError(
            f"{work.root}: {name} has no finished fold {', '.join(missing) or 'at all'}; trained: {', '.join(available) or 'none'}."
        )
    return wanted


def _earlier_stages(work: WorkFolder, plan: Plan, used: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The earlier stages of cascades that are no members themselves, with the folds of the stage after them where those are trained.

    The network of all cases comes after the first stage's network of all cases, after the mean of its folds where there is none. Raises
    :class:`InputError` where a fold is not trained, :class:`PlanMismatchError` where it was trained with another plan.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, folds in used.items():
        for stage in plan.stages_of(name)[1:]:
            if stage not in used:
                is_whole = folds == (ALL,) and ALL not in work.trained_folds(stage)
                found[stage] = _trained(work, stage, None if is_whole else folds)
    for stage, folds in found.items():
        for fold in folds:
            file = work.weights(stage, fold)
            if not _fits(plan, read_card(file).plan, [stage]):
                raise PlanMismatchError(
                    f"{file}: was trained with another plan than {' and '.join(used)}, whose first stage it is. Train it again with "
                    "--restart, and the stage after it then."
                )
    return found


def _box_rule(work: WorkFolder, plan: Plan, name: str, folds: Sequence[str]) -> BoxRule | None:
    """How the folds of a crop cascade find their box; None for other configurations. Raises :class:`InputError` where that is not there."""
    if not plan.configuration(name).is_cropped:
        return None
    return combined_rule(read_record(work.fold(name, fold) / BOXES, BoxChoice, "boxes").rule for fold in folds)


def _warn_of_first_stages(work: WorkFolder, used: Mapping[str, tuple[str, ...]]) -> None:
    """Say where the second stage of a cascade was trained after other weights of the first one than predict now."""
    for name, folds in used.items():
        for fold in folds:
            changed = changed_first_stage(work, name, fold)
            if changed:
                logger.warning(
                    "%s fold %s was trained on label maps of other weights of %s, which was trained again since. Train it anew with "
                    "medseg3d train -c %s --fold %s --restart.",
                    name,
                    fold,
                    listed([f"{stage} fold {number}" for stage, number in map(split_key, changed)]),
                    name,
                    fold,
                )


def _is_mirrored(work: WorkFolder, name: str, folds: Sequence[str], selection: Selection | None) -> bool:
    """As selected; before that, as the folds' own validation says; True where nothing is known."""
    if selection is not None and name in selection.mirroring:
        return selection.mirroring[name].is_used
    known = [found.is_used for fold in folds if (found := _measured_mirroring(work, name, fold)) is not None]
    return sum(known) * 2 >= len(known)  # also where nothing is known


def _measured_mirroring(work: WorkFolder, name: str, fold: str) -> FoldMirroring | None:
    """What the validation of a fold says, where it belongs to its weights."""
    if validation_changes(work, name, fold) is not None:
        return None
    try:
        return read_fold_mirroring(work.validation(name, fold))
    except InputError as error:
        logger.warning("%s It is left out; medseg3d validate --fold %s makes it again.", error, fold)
        return None


def _measures(selection: Selection | None, folds: Mapping[str, tuple[str, ...]]) -> Facts:
    """The cross-validation of exactly these networks."""
    for candidate in selection.candidates if selection is not None else ():
        if candidate.configurations == tuple(folds) and candidate.folds == folds and candidate.own_dice.mean is not None:
            return {DICE: candidate.own_dice.mean, DICE_CASES: candidate.own_dice.n}
    return {}


def _common_plan(plans: Mapping[Path, Plan], names: Sequence[str]) -> Plan:
    """The plan that weights were trained with; raises :class:`PlanMismatchError` where they were trained with different ones."""
    (first, plan), *others = plans.items()
    for file, other in others:
        if not _fits(plan, other, names):
            raise PlanMismatchError(
                f"{file}: was trained with another plan than {first}, so they cannot predict together. Train one of them again with "
                "--restart, or name the folds to use with --fold."
            )
    return plan


def _fits(plan: Plan, other: Plan, names: Sequence[str]) -> bool:
    """Both plans mean the same for the networks of these configurations."""
    shared = [(each.labels, each.axis_order, each.orientation, each.channels, each.frame) for each in (plan, other)]
    return shared[0] == shared[1] and all(plan.configurations.get(name) == other.configurations.get(name) for name in names)
