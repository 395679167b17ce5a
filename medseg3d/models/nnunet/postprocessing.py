"""nnU-Net's ``postprocessing.json``, which names its functions in plain text → our steps, where they are the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg3d.errors import InputError
from medseg3d.labels import Labels
from medseg3d.records import from_plain, read_json
from medseg3d.validation.postprocessing import NO_POSTPROCESSING, Postprocessing, Step

logger = logging.getLogger(__name__)

KEEP_LARGEST = "remove_all_but_largest_component_from_segmentation"


def read_postprocessing(places: Sequence[Path], labels: Labels) -> Postprocessing:
    """The steps that cross-validation chose, from the first of these folders that has some; none where there was none, or a step has no
    equal here (with a warning).

    Of several objects of the same largest size nnU-Net keeps all, we the first. ``postprocessing.pkl`` says the same by a pickle
    of functions, and is never opened.
    """
    for path in (place / "postprocessing.json" for place in places):
        if path.is_file():
            return _read(path, labels)
    for path in (place / "postprocessing.pkl" for place in places):
        if path.is_file():
            logger.warning(
                "%s: is a pickle of code, which is never opened, and no postprocessing.json lies beside it: predictions are not "
                "postprocessed. nnUNetv2_find_best_configuration writes both.",
                path,
            )
    return NO_POSTPROCESSING


def postprocessing_places(folder: Path, folds: Sequence[str]) -> tuple[Path, Path]:
    """Where nnU-Net leaves what the cross-validation of these folds chose for one configuration."""
    return folder / f"crossval_results_folds_{'_'.join(folds)}", folder


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """The parts of the file that matter: functions and the keywords of each."""

    postprocessing_fns: tuple[str, ...]
    postprocessing_kwargs: tuple[dict[str, Any], ...]


def _read(path: Path, labels: Labels) -> Postprocessing:
    try:
        choice = from_plain(read_json(path), _Choice, str(path))
    except InputError as error:
        logger.warning("%s Its postprocessing is ignored.", error)
        return NO_POSTPROCESSING
    steps = []
    for function, keywords in zip(choice.postprocessing_fns, choice.postprocessing_kwargs, strict=False):
        step = _step(function, keywords, labels)
        if step is None or len(choice.postprocessing_fns) != len(choice.postprocessing_kwargs):
            logger.warning("%s: %s with %s has no equal here, so its postprocessing is ignored.", path, function, keywords)
            return NO_POSTPROCESSING
        steps.append(step)
    return Postprocessing(steps=tuple(steps))


def _step(function: str, keywords: dict[str, Any], labels: Labels) -> Step | None:
    """nnU-Net takes all given values and regions together as one mask, so that lists in lists mean the same as a flat one."""
    if function != KEEP_LARGEST or set(keywords) - {"labels_or_regions", "background_label"} or keywords.get("background_label", 0) != 0:
        return None
    predicted = _values(keywords.get("labels_or_regions")) & set(labels.values)
    indices = [index for index in labels.foreground if labels.values[index] in predicted]
    if 0 in predicted or not indices:
        return None
    if len(indices) == len(labels.foreground):
        return Step(operation="keep_largest_foreground")
    if len(indices) == 1:
        return Step(operation="keep_largest", index=indices[0])
    return Step(operation="keep_largest", index=_region_of(indices, labels), parts=tuple(indices))


def _region_of(indices: Sequence[int], labels: Labels) -> int:
    """The region that is made up of these indices, or else the first of them, for the name of a step."""
    values = {labels.values[index] for index in indices}
    return next((index for index in labels.foreground if set(labels.members(index)) & set(labels.values) == values), indices[0])


def _values(entry: Any) -> set[int]:
    if isinstance(entry, list):
        return set().union(*(_values(part) for part in entry))
    return {entry} if isinstance(entry, int) else set()
