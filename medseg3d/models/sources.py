"""What a path is that names a model: each kind of source opens to the same :class:`ModelParts`."""

from __future__ import annotations

from pathlib import Path

from medseg3d.errors import InputError
from medseg3d.models.model_file import MODEL_FILE
from medseg3d.models.nnunet import NNUNET_FOLDER, NNUNET_ZIP
from medseg3d.models.parts import Configurations, ModelParts, Source
from medseg3d.models.trained import FOLD, WORK_FOLDER
from medseg3d.options import FoldChoice
from medseg3d.work_folder import fold_names

SOURCES: dict[str, Source] = {
    "work folder": WORK_FOLDER,
    "model file": MODEL_FILE,
    "weights": FOLD,
    "nnU-Net result folder": NNUNET_FOLDER,
    "nnU-Net zip": NNUNET_ZIP,
}
"""By kind, in the order in which a path is looked at."""


def open_model(path: Path, *, configuration: Configurations = None, folds: FoldChoice = None) -> ModelParts:
    """The parts of the model at a path; of those that hold several the one that predicts, or the named configurations and folds.

    Raises :class:`InputError` where no model is there, or not the named part of it.
    """
    return source_of(path).open(path, configuration, fold_names(folds))


def kind_of(path: Path) -> str | None:
    """The kind of source in :data:`SOURCES`; None where there is no model."""
    return next((kind for kind, source in SOURCES.items() if source.opens(path)), None)


def source_of(path: Path) -> Source:
    """The source that opens a path; raises :class:`InputError` that says what can be named."""
    kind = kind_of(path)
    if kind is None:
        raise InputError(f"{path}: {_what_it_is(path)}")
    return SOURCES[kind]


def what_to_name() -> str:
    """The kinds of sources, as a list in a sentence."""
    *names, last = (source.name for source in SOURCES.values())
    return f"{', '.join(names)} or {last}"


def _what_it_is(path: Path) -> str:
    """What stands in the place of a model, and what to name instead."""
    if not path.exists():
        return f"no such model. Name {what_to_name()}."
    if path.is_file():
        advice = " An nnU-Net checkpoint needs its plans: name the folder that holds plans.json." if path.suffix == ".pth" else ""
        return f"not a model; expected {what_to_name()}.{advice}"
    if (path / "plans.json").exists() or any(path.glob("fold_*/checkpoint_*.pth")):
        lacking = [name for name in ("plans.json", "dataset.json") if not (path / name).exists()]
        what = f"lacks {' and '.join(lacking)}" if lacking else "holds no fold_K/checkpoint_*.pth"
        return f"looks like an nnU-Net result folder, but {what}."
    if any(path.glob("checkpoint_*.pth")):
        return "a fold of an nnU-Net result folder. Name the folder above it, which holds plans.json."
    if (path / "configs" / "metadata.json").exists():
        return "a MONAI bundle, which MONAI runs. Name the model that it was exported from."
    if (path / "imagesTr").is_dir() or (path / "images").is_dir():
        return f"a dataset without a trained model. Train one first: medseg3d run {path}. Or name {what_to_name()}."
    return f"no model here. Name {what_to_name()}."
