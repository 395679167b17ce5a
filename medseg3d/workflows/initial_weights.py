"""What ``train --init`` names, a model of any kind → the tensors to begin with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg3d.domain import UNIVERSAL, is_universal
from medseg3d.errors import InputError
from medseg3d.models.checkpoints import load_tensors, read_card
from medseg3d.models.model_file import ENDING, ModelParts, read_model_file
from medseg3d.models.nnunet import is_nnunet_model, read_nnunet_model
from medseg3d.plan import Plan
from medseg3d.training.initial import InitialWeights
from medseg3d.work_folder import WorkFolder

logger = logging.getLogger(__name__)
KINDS = f"a work folder, a fold's folder, a weights.safetensors, a {ENDING} file or an nnU-Net result folder"


def initial_weights(place: Path, *, configuration: str, fold: str, plan: Plan | None = None) -> InitialWeights:
    """The tensors of the model at ``place``: of the same configuration and fold where it has them, otherwise of its own first ones.

    With ``plan``, that of the training, there is a warning where the weights may have seen the validation cases. Raises
    :class:`InputError` where there is no model.
    """
    if not place.exists():
        raise InputError(f"--init {place}: no such model. Name {KINDS}.")
    if place.is_file() and place.name.endswith(ENDING):
        return _of_parts(read_model_file(place), place, configuration, fold, plan)
    if is_nnunet_model(place):
        return _of_parts(read_nnunet_model(place), place, configuration, fold, plan)
    file = _weights_file(place, configuration, fold)
    card = read_card(file)
    if not card.is_universal:
        _warn_about_cases(card.plan, card.fold, fold, plan, file)
    return InitialWeights(source=str(file), tensors=load_tensors(file)[0])


def _weights_file(place: Path, configuration: str, fold: str) -> Path:
    if place.is_file():
        if place.suffix != ".safetensors":
            raise InputError(f"--init {place}: not a model. Name {KINDS}.")
        return place
    if (place / "weights.safetensors").is_file():
        return place / "weights.safetensors"
    work = WorkFolder(place if (place / "models").is_dir() else place / "medseg3d-work")
    names = [UNIVERSAL] if is_universal(work) else [path.name for path in sorted((work.root / "models").glob("*")) if path.is_dir()]
    trained = {name: folds for name in names if (folds := work.trained_folds(name))}
    if not trained:
        raise InputError(f"--init {place}: nothing is trained there. Name {KINDS}.")
    usual = work.read_plan().recommended if work.plan.exists() else ""
    name, chosen = _chosen(trained, configuration, fold, usual, place)
    return work.weights(name, chosen)


def _of_parts(parts: ModelParts, place: Path, configuration: str, fold: str, plan: Plan | None) -> InitialWeights:
    held = {member.configuration: member.folds for member in (*parts.description.members, *parts.description.previous)}
    name, chosen = _chosen(held, configuration, fold, "", place)
    _warn_about_cases(parts.description.plan, chosen, fold, plan, place)
    return InitialWeights(source=f"{place} ({name}, fold {chosen})", tensors=parts.weights[name][chosen])


def _chosen(held: Mapping[str, Sequence[str]], configuration: str, fold: str, usual: str, place: Path) -> tuple[str, str]:
    name = next((wanted for wanted in (configuration, usual) if wanted in held), next(iter(held)))
    chosen = fold if fold in held[name] else held[name][0]
    if (name, chosen) != (configuration, fold):
        logger.warning("%s has no %s, fold %s; beginning with %s, fold %s.", place, configuration, fold, name, chosen)
    return name, chosen


def _warn_about_cases(theirs: Plan, their_fold: str, fold: str, plan: Plan | None, source: Path) -> None:
    """Another fold of the same data has trained on the cases that this one validates on."""
    is_same_data = plan is not None and plan.fingerprint_digest and plan.fingerprint_digest == theirs.fingerprint_digest
    if is_same_data and their_fold != fold and fold != "all":
        logger.warning(
            "%s was trained on fold %s of the same dataset, so it has seen validation cases of fold %s: what is measured on them will be "
            "too good. Begin with fold %s of it, or with a model of another dataset.",
            source,
            their_fold,
            fold,
            fold,
        )
