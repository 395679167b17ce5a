"""A zip that nnU-Net exported: its plans and checkpoints are unpacked into a temporary folder and read there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from medseg3d.errors import InputError, MedsegError
from medseg3d.models.nnunet.folder import CHECKPOINTS, FINAL, is_nnunet_model, read_nnunet_model
from medseg3d.models.parts import Configurations, ModelParts, Source
from medseg3d.unpack import names_in, unpack

MAX_UNPACKED_BYTES = 64 << 30
"""Five folds of all four configurations of nnU-Net's largest preset take less than half of it."""
RECORDS = ("plans.json", "dataset.json", "postprocessing.json", "postprocessing.pkl", "inference_information.json")
"""Of the pickle only the name is looked at."""
EXPECTED = f"DATASET/TRAINER__PLANS__CONFIGURATION with plans.json, dataset.json and fold_K/{FINAL}, as nnU-Net exports it"


def open_nnunet_zip(path: Path, configuration: Configurations = None, folds: tuple[str, ...] | None = None) -> ModelParts:
    """As the folder that was packed; nothing else of the zip is unpacked, and what was unpacked is deleted again.

    Raises :class:`InputError` for what is no such zip or leads out of it, and as :func:`read_nnunet_model`.
    """

    def is_wanted(name: PurePosixPath) -> bool:
        fold = _fold(name)
        return name.name in RECORDS or (fold is not None and (folds is None or fold in folds))

    packed = {fold for held in _held(path).values() for fold in held}
    missing = [fold for fold in folds or () if fold not in packed]
    if packed and missing:
        raise InputError(f"{path}: no {FINAL} for fold {', '.join(missing)}; packed: {', '.join(sorted(packed))}.")
    with TemporaryDirectory(prefix="medseg3d-") as temporary:
        folder = Path(temporary) / "model"
        unpack(path, folder, max_bytes=MAX_UNPACKED_BYTES, is_wanted=is_wanted)
        places = [folder] if is_nnunet_model(folder) else [place for place in sorted(folder.iterdir()) if is_nnunet_model(place)]
        if len(places) != 1:
            raise InputError(f"{path}: holds {'several models' if places else 'no model'} of nnU-Net; expected {EXPECTED}.")
        try:
            parts = read_nnunet_model(places[0], configuration=configuration, folds=folds)
        except MedsegError as error:
            raise type(error)(str(error).replace(str(folder), str(path))) from None
        return replace(parts, path=path)


def _fold(name: PurePosixPath) -> str | None:
    """Of a checkpoint that could be used; None for every other file."""
    is_checkpoint = name.name in CHECKPOINTS and name.parent.name.startswith("fold_")
    return name.parent.name.removeprefix("fold_") if is_checkpoint else None


def _held(path: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for name in names_in(path):
        if (fold := _fold(name)) is not None:
            found.setdefault(name.parent.parent.name.split("__")[-1], set()).add(fold)
    return {configuration: tuple(sorted(folds)) for configuration, folds in found.items()}


NNUNET_ZIP = Source(
    name="a zip that nnU-Net exported",
    opens=lambda path: path.is_file() and path.suffix.lower() == ".zip",
    held=_held,
    open=open_nnunet_zip,
)
