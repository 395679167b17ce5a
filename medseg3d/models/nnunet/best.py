"""nnU-Net's ``inference_information.json``: which configuration or ensemble of two its cross-validation found best."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg3d.errors import InputError
from medseg3d.records import read_json

logger = logging.getLogger(__name__)

FILE = "inference_information.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The configurations that predict together."""

    configurations: tuple[str, ...]


def read_best(folder: Path) -> Best | None:
    """What the file in a dataset's folder chose; None without one, and with a warning where not all of it is in the folder."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        chosen = _selected(read_json(path), path)
    except InputError as error:
        logger.warning("%s It is left out.", error)
        return None
    missing = [name for name in chosen if not (folder / name).is_dir()]
    if missing:
        logger.warning("%s: chose %s, of which %s is not here, so its choice is left out.", path, " and ".join(chosen), missing[0])
        return None
    configurations = tuple(name.split("__")[-1] for name in chosen)
    if len(set(configurations)) < len(configurations):
        logger.warning("%s: chose two trainers of one configuration, which do not predict together here, so its choice is left out.", path)
        return None
    logger.warning("%s: %s is used, as the cross-validation of nnU-Net chose.", path, " and ".join(configurations))
    return Best(configurations=configurations)


def _selected(document: Any, path: Path) -> tuple[str, ...]:
    """The names of the folders TRAINER__PLANS__CONFIGURATION."""
    try:
        models = document["best_model_or_ensemble"]["selected_model_or_models"]
        names = tuple(f"{model['trainer']}__{model['plans_identifier']}__{model['configuration']}" for model in models)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not as nnUNetv2_find_best_configuration writes it ({error!r}).") from error
    if not names or any(set(name) & set("/\\:") for name in names):
        raise InputError(f"{path}: not as nnUNetv2_find_best_configuration writes it (its names are {names!r:.100}).")
    return names
