"""Turn an nnU-Net result folder into a whole model: its plan, the tensors of its folds, the previous stage of a cascade.

``DATASET/TRAINER__PLANS__CONFIGURATION`` holds ``plans.json``, ``dataset.json`` and ``fold_0`` … ``fold_4`` or ``fold_all`` with a
checkpoint each; the stages of a cascade lie beside each other.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg3d.errors import InputError
from medseg3d.files import file_digest
from medseg3d.models.nnunet.best import read_best
from medseg3d.models.nnunet.checkpoint import Checkpoint, load_checkpoint
from medseg3d.models.nnunet.plans import read_plan
from medseg3d.models.nnunet.postprocessing import postprocessing_places, read_postprocessing
from medseg3d.models.nnunet.weights import our_tensors
from medseg3d.models.parts import (
    Configurations,
    Facts,
    MemberDescription,
    ModelDescription,
    ModelParts,
    Source,
    Tensors,
    names_of,
)
from medseg3d.plan import Configuration, Plan
from medseg3d.validation.postprocessing import Postprocessing
from medseg3d.wording import listed

logger = logging.getLogger(__name__)

FINAL = "checkpoint_final.pth"
BEST = "checkpoint_best.pth"
LATEST = "checkpoint_latest.pth"
CHECKPOINTS = (FINAL, BEST, LATEST)
"""The first of a fold that is there is used."""
ALL = "all"
"""The fold that was trained on every case."""


def read_nnunet_model(folder: Path, configuration: Configurations = None, folds: Sequence[str] | None = None) -> ModelParts:
    """A model that predicts the voxels that nnU-Net predicts with the folder.

    ``folder`` is that of a trainer, or of a dataset with several of them, among which ``configuration`` chooses; several are averaged, as
    ``nnUNetv2_ensemble`` does. Without it ``inference_information.json`` chooses, which ``nnUNetv2_find_best_configuration`` writes.
    ``folds`` are all numbered ones, or ``all`` where there are no others. Where no fold has a final checkpoint the best ones are used, or
    the latest, with a warning. A cascade brings the same folds of its previous stage. Raises :class:`InputError` for what is missing or
    damaged, :class:`UnsupportedError` for what a plan cannot say, :class:`PlanMismatchError` for tensors that do not fit.
    """
    names, best = names_of(configuration), None
    if names is None and not _is_trained(folder):
        best = read_best(folder)
        names = None if best is None else best.configurations
    chains = [_read_chain(folder, name, folds) for name in names or (None,)]
    (first, *_), *others = chains
    for chain in others:
        _check_same_dataset(first, chain[0], "so they are no ensemble. Name configurations of one dataset.")
    members = [chain[0] for chain in chains]
    member_names = {member.configuration.name for member in members}
    earlier = {stage.configuration.name: stage for chain in chains for stage in chain[1:] if stage.configuration.name not in member_names}
    postprocessing = _postprocessing_of(members)
    stages = {**earlier, **{stage.configuration.name: stage for stage in members}}
    in_order = (*members, *earlier.values())
    return ModelParts(
        path=folder,
        description=ModelDescription(
            plan=replace(first.plan, configurations={stage.configuration.name: stage.configuration for stage in in_order}),
            members=tuple(stage.member for stage in members),
            previous=tuple(stage.member for stage in earlier.values()),
            postprocessing=postprocessing,
            facts=first.facts,
        ),
        read=lambda name, fold: stages[name].weights[fold],
        identity=";".join([*(part for stage in in_order for part in stage.identity), repr(postprocessing.steps)]),
    )


def _read_chain(folder: Path, configuration: str | None, folds: Sequence[str] | None) -> tuple[_Stage, ...]:
    """A configuration and the earlier stages that it needs, the last stage first."""
    first = _read_stage(_trainer_folder(folder, configuration), configuration, folds)
    earlier: list[_Stage] = []
    while (name := (first, *earlier)[-1].configuration.previous_stage) is not None:
        if name in (first.configuration.name, *(stage.configuration.name for stage in earlier)):
            raise InputError(
                f"{first.folder / 'plans.json'}: the configuration {name} is an earlier stage of itself. Correct previous_stage."
            )
        earlier.append(_read_stage(_previous_folder((first, *earlier)[-1], name), name, folds))
        _check_same_dataset(first, earlier[-1], "so they are no cascade. Put the stage there that the cascade was trained with.")
    return (first, *earlier)


def _postprocessing_of(members: Sequence[_Stage]) -> Postprocessing:
    """Of one configuration, or what was chosen for exactly this ensemble; an ensemble that was never validated has none."""
    first = members[0]
    if len(members) == 1:
        return read_postprocessing(postprocessing_places(first.folder, tuple(first.weights)), first.plan.labels)
    folders = [member.folder.resolve() for member in members]
    folds = "_".join(first.weights)
    places = [
        folders[0].parent / "ensembles" / f"ensemble___{one.name}___{other.name}___{folds}"
        for one, other in ((folders[0], folders[-1]), (folders[-1], folders[0]))
    ]
    return read_postprocessing(places if len(members) == 2 else (), first.plan.labels)


def is_nnunet_model(path: Path) -> bool:
    """The folder of a trainer with at least one checkpoint, or a folder of such folders."""
    return _is_trained(path) or any(_trained_below(path))


def _held(path: Path) -> dict[str, tuple[str, ...]]:
    """Which configuration a folder of another name holds its first checkpoint says."""
    found: dict[str, tuple[str, ...]] = {}
    for folder in [path] if _is_trained(path) else _trained_below(path):
        checkpoints = _checkpoint_paths(folder, None)
        name = folder.resolve().name.split("__")[-1]
        if "__" not in folder.resolve().name:
            name = load_checkpoint(next(iter(checkpoints.values()))).configuration or name
        found[name] = (*found.get(name, ()), *checkpoints)
    return found


NNUNET_FOLDER = Source(
    name="an nnU-Net result folder",
    opens=is_nnunet_model,
    held=_held,
    open=read_nnunet_model,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """One trained configuration: its plan knows no other one."""

    folder: Path
    plan: Plan
    trainer: str
    weights: Mapping[str, Tensors]
    facts: Facts
    identity: tuple[str, ...]

    @property
    def configuration(self) -> Configuration:
        return self.plan.configuration(None)

    @property
    def member(self) -> MemberDescription:
        return MemberDescription(configuration=self.configuration.name, folds=tuple(self.weights))


def _read_stage(folder: Path, configuration: str | None, folds: Sequence[str] | None) -> _Stage:
    """Fold by fold, so that the optimizer's state of a single checkpoint is in memory at a time."""
    plan, name, weights, identity = None, "", {}, []
    checkpoints: list[Checkpoint] = []
    for fold, path in _checkpoint_paths(folder, folds).items():
        loaded = load_checkpoint(path)
        if plan is None:
            # as nnU-Net does it: the first checkpoint says which configuration this is, and along which axes to mirror
            name = loaded.configuration or folder.resolve().name.split("__")[-1]
            if configuration not in (None, name):
                raise InputError(f"{folder}: was trained for the configuration {name}, not {configuration}. Name another folder.")
            plan = read_plan(folder, name, mirror_axes=loaded.mirror_axes)
        weights[fold] = our_tensors(loaded.weights, plan.configuration(None).network, source=f"{path} (trainer {loaded.trainer})")
        checkpoints.append(replace(loaded, weights={}))
        identity.append(f"{name}/{fold}/{file_digest(path)}")
    if plan is None:
        raise InputError(f"{folder}: no folds were chosen.")
    return _Stage(
        folder=folder,
        plan=plan,
        trainer=checkpoints[0].trainer,
        weights=weights,
        facts=_facts(folder, plan, checkpoints),
        identity=(*identity, *(file_digest(folder / file) for file in ("plans.json", "dataset.json"))),
    )


def _facts(folder: Path, plan: Plan, checkpoints: Sequence[Checkpoint]) -> Facts:
    """``epoch`` is the smallest of the folds, ``dice`` their mean: the moving average that chose the best checkpoint."""
    epochs = [c.epoch for c in checkpoints if c.epoch is not None]
    dice = [c.dice for c in checkpoints if c.dice is not None and math.isfinite(c.dice)]
    return {
        "origin": "nnU-Net",
        "trainer": checkpoints[0].trainer,
        "plans": plan.planner,
        "folder": folder.resolve().name,
        "epoch": min(epochs, default=None),
        "training_pseudo_dice": sum(dice) / len(dice) if dice else None,
    }


def _trainer_folder(folder: Path, configuration: str | None) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Name nnU-Net's result folder, TRAINER__PLANS__CONFIGURATION.")
    if _is_trained(folder):
        return folder
    below = list(_trained_below(folder))
    if not below:
        raise InputError(
            f"{folder}: not a model of nnU-Net; expected plans.json, dataset.json and fold_0/{FINAL} (or another fold), or a folder of "
            "such folders."
        )
    fitting = [path for path in below if configuration in (None, path.name.split("__")[-1])]
    names = listed([path.name for path in below])
    if not fitting:
        raise InputError(f"{folder}: nothing is trained for the configuration {configuration}; found {names}.")
    if len(fitting) > 1:
        raise InputError(
            f"{folder}: holds several models ({names}). Choose a configuration with -c, two of them to average both, or name the folder of "
            "one of them."
        )
    return fitting[0]


def _previous_folder(stage: _Stage, configuration: str) -> Path:
    """nnU-Net expects the previous stage under the same trainer and plans."""
    folder = stage.folder.resolve().parent / f"{stage.trainer}__{stage.plan.planner}__{configuration}"
    if not _is_trained(folder):
        raise InputError(
            f"{folder}: missing or not trained, but {stage.configuration.name} in {stage.folder} is a cascade that needs the label maps of "
            f"{configuration}. Put the trained folder of that configuration there."
        )
    return folder


def _check_same_dataset(first: _Stage, other: _Stage, advice: str) -> None:
    def shared(plan: Plan) -> tuple[object, ...]:
        return plan.labels, plan.channels, plan.axis_order, plan.orientation

    if shared(first.plan) != shared(other.plan):
        raise InputError(f"{other.folder}: its labels, channels, order of axes or reader are not those of {first.folder}, {advice}")


def _is_trained(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("plans.json", "dataset.json")) and any(folder.glob("fold_*/checkpoint_*.pth"))


def _trained_below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*__*")) if _is_trained(path))


def _checkpoint_paths(folder: Path, folds: Sequence[str] | None) -> dict[str, Path]:
    """The checkpoint of each fold to use, numbered folds in their order."""
    found = [path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir()]
    found.sort(key=lambda fold: (not fold.isdigit(), int(fold) if fold.isdigit() else 0, fold))

    def path_of(fold: str) -> Path | None:
        return next((path for name in CHECKPOINTS if (path := folder / f"fold_{fold}" / name).is_file()), None)

    usable = [fold for fold in found if path_of(fold)]
    finished = [fold for fold in usable if (folder / f"fold_{fold}" / FINAL).is_file()] or usable
    wanted = [fold for fold in finished if fold != ALL] or finished if folds is None else list(folds)
    paths = {fold: path for fold in wanted if (path := path_of(fold))}
    missing = [fold for fold in wanted if fold not in paths]
    if missing or not wanted:
        raise InputError(
            f"{folder}: no {', '.join(CHECKPOINTS[:-1])} or {LATEST} for fold {', '.join(missing) or '0 or any other'}; trained: "
            f"{', '.join(usable) or 'none'}."
        )
    if folds is None and (left := [fold for fold in usable if fold not in finished and fold != ALL]):
        logger.warning("%s: fold %s is not finished (no %s) and is left out; --fold names it.", folder, ", ".join(left), FINAL)
    for path in paths.values():
        if path.name != FINAL:
            kind = "latest weights, which may not be its best," if path.name == LATEST else "best weights so far"
            logger.warning("%s: training is not finished (no %s); its %s are used.", path, FINAL, kind)
    return paths
