"""From a path to a model that is ready: a work folder, a ``.medseg3d`` file, a fold's weights, or an nnU-Net result folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medseg3d.devices import Device, choose_device
from medseg3d.errors import InputError, PlanMismatchError
from medseg3d.models.checkpoints import filled_network, load_network, read_card
from medseg3d.models.model import Model
from medseg3d.models.model_file import ENDING, MemberDescription, ModelParts, read_model_file
from medseg3d.models.nnunet import is_nnunet_model, read_nnunet_model
from medseg3d.plan import Plan
from medseg3d.prediction.empty_windows import Skipping
from medseg3d.prediction.predict_case import Member
from medseg3d.provenance import is_known, validation_changes, weights_digest
from medseg3d.records import read_record
from medseg3d.validation.empty_window_record import EMPTY_WINDOWS, EmptyWindows, combined
from medseg3d.validation.postprocessing import NO_POSTPROCESSING, Postprocessing
from medseg3d.validation.selection import FoldMirroring, Selection, read_fold_mirroring, read_selection
from medseg3d.work_folder import Folds, WorkFolder, fold_names

logger = logging.getLogger(__name__)


def load_model(
    path: Path | str,
    *,
    configuration: str | None = None,
    folds: Folds = None,
    device: str = "auto",
    precision: str = "auto",
    mirroring: bool | None = None,
    step: float = 0.5,
    skip_empty: bool = False,
) -> Model:
    """Load a work folder, a ``.medseg3d`` file, a ``weights.safetensors`` (or its folder), or an nnU-Net v2 result folder.

    A work folder gives its selected configuration (or the recommended one, or ``configuration``) with all trained folds (or
    ``folds``), and the selected postprocessing. ``precision`` float32 leaves out the mixed precision of the device. ``mirroring`` None
    mirrors where validation showed a gain, and where nothing is known. ``skip_empty`` leaves out windows that validation says are empty.
    Raises :class:`InputError` where nothing is trained there.
    """
    place = Path(path)
    chosen = choose_device(device, precision)
    if not place.exists():
        raise InputError(
            f"{place}: no such model. Name a work folder (the one that holds models/), a .medseg3d file, a weights.safetensors file, or "
            "an nnU-Net result folder."
        )
    if place.is_file() and place.name.endswith(ENDING):
        return _assembled(chosen_parts(read_model_file(place), place, configuration, folds), chosen, mirroring, step, skip_empty)
    if is_nnunet_model(place):
        parts = read_nnunet_model(place, configuration=configuration, folds=fold_names(folds))
        return _assembled(parts, chosen, mirroring, step, skip_empty)
    if (place / "weights.safetensors").is_file():
        place = place / "weights.safetensors"
    if place.is_file() and place.suffix != ".safetensors":
        advice = " An nnU-Net checkpoint needs its plans: name the folder that holds plans.json." if place.suffix == ".pth" else ""
        raise InputError(f"{place}: not a model; expected a .medseg3d file or a weights.safetensors.{advice}")
    if place.is_file():
        network, card = load_network(place, chosen.device)
        member = Member(configuration=card.plan.configuration(card.configuration), networks=(network,), mirroring=mirroring is not False)
        if skip_empty:
            _skipping(None, card.configuration, card.plan)
        return Model(card.plan, [member], chosen, step=step, identity=weights_digest(place))
    work = WorkFolder(place if (place / "models").exists() else place / "medseg3d-work")
    if not work.plan.exists():
        raise InputError(_no_model(place))
    plan = work.read_plan()
    postprocessing = NO_POSTPROCESSING
    names = [configuration] if configuration else []
    selection, note = read_selection(work)
    if note is not None:
        logger.warning("%s", note)
    if selection is not None:
        names = names or list(selection.configurations)
        if names == list(selection.configurations):  # it was validated with these and no others
            postprocessing = selection.postprocessing
    if not names:
        trained = [name for name in plan.configurations if work.trained_folds(name)]
        names = [plan.recommended] if plan.recommended in trained else trained[:1]
    if not names:
        raise InputError(f"{work.root}: nothing is trained here yet. Run medseg3d train --fold 0 first.")
    return load_models(
        work,
        names,
        folds=folds,
        device=device,
        precision=precision,
        mirroring=mirroring,
        step=step,
        skip_empty=skip_empty,
        postprocessing=postprocessing,
        selection=selection,
    )


def _skipping(found: EmptyWindows | None, name: str, plan: Plan) -> Skipping | None:
    """What is left out, and a word on it."""
    if found is None or found.agreement is None:
        logger.warning("%s: its validation held no windows that were known to be empty, so none is left out.", name)
        return None
    if found.level is None or not found.is_safe:
        logger.warning("%s: no window is left out, as that would not have been safe: dark windows were %s.", name, found)
        return None
    logger.warning("%s: windows darker than %.3g are left out as empty; these were %s.", name, found.level, found)
    return Skipping(level=found.level, is_regions=bool(plan.labels.regions))


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


def _no_model(place: Path) -> str:
    """What a folder without a model looks like, and what to name instead."""
    if (place / "plans.json").exists() or any(place.glob("fold_*/checkpoint_*.pth")):
        lacking = [name for name in ("plans.json", "dataset.json") if not (place / name).exists()]
        what = f"lacks {' and '.join(lacking)}" if lacking else "holds no fold_K/checkpoint_*.pth"
        return f"{place}: looks like an nnU-Net result folder, but {what}."
    if any(place.glob("checkpoint_*.pth")):
        return f"{place}: a fold of an nnU-Net result folder. Name the folder above it, which holds plans.json."
    if (place / "configs" / "metadata.json").exists():
        return f"{place}: a MONAI bundle, which MONAI runs; medseg3d reads .medseg3d files and work folders."
    return f"{place}: no model here. Name a work folder with a trained model, its dataset, a .medseg3d file or an nnU-Net result folder."


def _assembled(parts: ModelParts, device: Device, mirroring: bool | None, step: float, skip_empty: bool) -> Model:
    """Networks from tensors."""
    description = parts.description
    stages = {stage.configuration: stage for stage in (*description.previous, *description.members)}

    def member(stage: MemberDescription) -> Member:
        configuration = description.plan.configuration(stage.configuration)
        networks = []
        for fold in stage.folds:
            source = Path(stage.configuration) / f"fold_{fold}"
            network = filled_network(configuration.network, parts.weights[stage.configuration][fold], source)
            networks.append(network.to(device.device).eval())
        return Member(
            configuration=configuration,
            networks=tuple(networks),
            mirroring=stage.mirroring if mirroring is None else mirroring,
            previous=member(stages[configuration.previous_stage]) if configuration.previous_stage else None,
            skipping=_skipping(stage.empty_windows, stage.configuration, description.plan)
            if skip_empty and stage in description.members
            else None,
        )

    return Model(
        description.plan,
        [member(stage) for stage in description.members],
        device,
        postprocessing=description.postprocessing,
        step=step,
        identity=parts.identity,
    )


def chosen_parts(parts: ModelParts, path: Path, configuration: str | None, folds: Folds) -> ModelParts:
    """Only the named configuration and folds, without the postprocessing that was chosen for all; all where none is named."""
    description = parts.description
    wanted = fold_names(folds)
    if configuration is None and wanted is None:
        return parts
    members = [m for m in description.members if configuration in (None, m.configuration)]
    if not members:
        held = ", ".join(m.configuration for m in description.members)
        raise InputError(f"{path}: holds no configuration {configuration}; it holds {held}.")
    for member in members:
        missing = [fold for fold in wanted or () if fold not in member.folds]
        if missing:
            raise InputError(f"{path}: {member.configuration} has no fold {', '.join(missing)}; it holds {', '.join(member.folds)}.")
    members = [replace(member, folds=tuple(wanted or member.folds)) for member in members]
    is_all = len(members) == len(description.members)
    cleaning = description.postprocessing if is_all else NO_POSTPROCESSING
    identity = f"{parts.identity}/{','.join(f'{m.configuration}:{m.folds}' for m in members)}"
    return replace(parts, description=replace(description, members=tuple(members), postprocessing=cleaning), identity=identity)


def usual_folds(work: WorkFolder, configuration: str) -> tuple[str, ...]:
    """All finished folds; where none is, those that have weights at all, with a warning.

    A network trained on all cases would see nothing new from the folds, and the folds' mean is what was validated.
    """
    found = work.finished_folds(configuration)
    if not found:
        found = work.trained_folds(configuration)
        if found:
            logger.warning("%s: training of fold %s is not finished; its best weights so far are used.", configuration, ", ".join(found))
    return tuple(fold for fold in found if fold != "all") or found


def _is_mirrored(
    work: WorkFolder, name: str, folds: Sequence[str], selection: Selection | None, wanted: bool | Mapping[str, bool] | None
) -> bool:
    """As wanted; else as selected; before that, as the folds' own validation says; True where nothing is known."""
    if wanted is not None:
        return wanted if isinstance(wanted, bool) else wanted[name]
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
    return (plan.labels, plan.axis_order, plan.orientation, plan.channels, plan.frame.directions) == (
        other.labels,
        other.axis_order,
        other.orientation,
        other.channels,
        other.frame.directions,
    ) and all(plan.configurations.get(name) == other.configurations.get(name) for name in names)


def load_models(
    work: WorkFolder,
    names: Sequence[str],
    *,
    folds: Folds = None,
    device: str = "auto",
    precision: str = "auto",
    mirroring: bool | Mapping[str, bool] | None = None,
    step: float = 0.5,
    skip_empty: bool = False,
    postprocessing: Postprocessing = NO_POSTPROCESSING,
    selection: Selection | None = None,
) -> Model:
    """A model of the named configurations of a work folder, averaged; ``mirroring`` may be given for each. Raises as :func:`load_model`.

    ``selection`` says whether to mirror where ``mirroring`` does not.
    """
    planned = work.read_plan()
    chosen = choose_device(device, precision)
    named = fold_names(folds)
    members, identity = [], []
    plans: dict[Path, Plan] = {}
    for name in names:
        available = work.trained_folds(name)
        wanted = named or usual_folds(work, name)
        missing = [fold for fold in wanted if fold not in available]
        if missing or not wanted:
            raise InputError(
                f"{work.root}: {name} has no finished fold {', '.join(missing) or 'at all'}; trained: {', '.join(available) or 'none'}."
            )
        files = [work.weights(name, fold) for fold in wanted]
        plans |= {file: read_card(file).plan for file in files}
        members.append(
            Member(
                configuration=plans[files[0]].configuration(name),
                networks=tuple(load_network(file, chosen.device)[0] for file in files),
                mirroring=_is_mirrored(work, name, wanted, selection, mirroring),
                skipping=_skipping(empty_windows_of(work, name, wanted), name, plans[files[0]]) if skip_empty else None,
            )
        )
        identity += [f"{name}/{fold}/{weights_digest(file)}" for fold, file in zip(wanted, files, strict=True)]
    plan = _common_plan(plans, names)
    if not _fits(plan, planned, names):
        logger.warning(
            "%s was changed since %s was trained: the plan of the training is used. Train again with --restart to follow the new one.",
            work.plan,
            " and ".join(names),
        )
    return Model(
        plan,
        members,
        chosen,
        postprocessing=postprocessing,
        step=step,
        identity=";".join([*identity, repr(postprocessing)]),
    )
