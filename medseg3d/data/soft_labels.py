"""Soft labels: files with the probability of each label in, probabilities and the map of the most probable label out.

One 4D file per case with a volume per label in the order of ``dataset.json``, with or without the background; or one file per label,
``CASE_0001.nii.gz`` for the value 1. ``"soft_labels": true`` in ``dataset.json`` says that label files are so.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseg3d import images
from medseg3d.errors import InputError, LabelValueError
from medseg3d.images import Image, ImageHeader, case_name

NUMBERED = re.compile(r"(.+)_(\d{4})$")
ROUNDING = 0.01
"""Probabilities below 0, above 1, or that add up to something else than 1, by no more than this are rounded ones."""


def soft_case_name(path: Path) -> str:
    """The case of a label file, without the number of a label."""
    return _without_number(path) or case_name(path)


IMAGES = {"labelsTr": "imagesTr", "labelsTs": "imagesTs", "labels": "images"}
"""Where the images lie, beside the folder of the labels."""


def _without_number(path: Path) -> str | None:
    """The case of a file of one label; None for a file of all labels, whose case may have a name that ends in four digits."""
    found = NUMBERED.match(case_name(path))
    if found is None:
        return None
    try:
        if images.read_header(path).num_volumes > 1:
            return None
    except InputError:
        pass  # whoever reads it says what is wrong
    folder, whole = path.parent.parent / IMAGES.get(path.parent.name, path.parent.name), case_name(path)
    is_channel = any(folder.glob(f"{glob.escape(found[1])}_0000.*"))
    has_image = any(folder.glob(f"{glob.escape(whole)}_0000.*")) or (not is_channel and any(folder.glob(f"{glob.escape(whole)}.*")))
    return None if folder != path.parent and has_image else found[1]


def soft_files(path: Path) -> tuple[Path, ...]:
    """The files of a case by one of them: those of all labels, or the only one."""
    case = _without_number(path)
    if case is None:
        return (path,)
    return tuple(sorted(other for other in path.parent.glob(f"{glob.escape(case)}_????.*") if _without_number(other) == case))


def by_soft_case(files: Mapping[str, Path]) -> dict[str, Path]:
    """Label files by case, the first one of each."""
    found: dict[str, Path] = {}
    for path in sorted(files.values()):
        found.setdefault(soft_case_name(path), path)
    return found


def read_soft(path: Path, values: tuple[int, ...]) -> tuple[np.ndarray, ImageHeader]:
    """Probabilities ``(x, y, z, label)`` float32 with the sum 1, the background first, and the grid of the first file.

    ``values`` are those of the labels, in their order. Raises :class:`LabelValueError` for files that hold something else.
    """
    volumes, has_background = _volumes(path, values)
    first = volumes[0]
    if any(volume.array.shape != first.array.shape for volume in volumes):
        raise LabelValueError(f"{path}: the files of its labels have different shapes.")
    stack = np.stack([np.asarray(volume.array, np.float32) for volume in volumes], -1)
    low, high = float(stack.min()), float(stack.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also for NaN
        raise LabelValueError(f"{path}: soft labels are probabilities from 0 to 1, found {low:g} to {high:g}.")
    stack = stack.clip(0, 1)
    total = stack.sum(-1, keepdims=True)
    if float(total.max()) > 1 + ROUNDING or (has_background and float(total.min()) < 1 - ROUNDING):
        expected = "1" if has_background else "1 at most, as the rest is background"
        raise LabelValueError(
            f"{path}: the probabilities of a voxel add up to {float(total.min()):.3g} to {float(total.max()):.3g}, expected {expected}."
        )
    if not has_background:
        stack = np.concatenate(((1 - total).clip(0), stack), -1)
    return stack / stack.sum(-1, keepdims=True), first.header


def most_probable(probabilities: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    """The label map ``(x, y, z)`` of the values with the highest probability; of equal ones the first."""
    return np.asarray(values)[probabilities.argmax(-1)]


def _volumes(path: Path, values: tuple[int, ...]) -> tuple[list[Image], bool]:
    """A volume per label, and whether the background is among them."""
    files, expected = soft_files(path), f"one volume for each of the {len(values)} labels, or for all but the background"
    if _without_number(path) is not None:
        numbers = [int(case_name(file)[-4:]) for file in files]
        if numbers not in (list(values), list(values[1:])):
            raise LabelValueError(f"{path}: files for the label values {numbers}, expected {list(values[1:])}, or these and 0.")
        return [images.read_image(file) for file in files], numbers == list(values)
    count = images.read_header(path).num_volumes
    if count not in (len(values), len(values) - 1):
        raise LabelValueError(f"{path}: {count} volumes, expected {expected}.")
    if count == 1:
        return [images.read_image(path)], False
    return list(images.read_volumes(path, list(range(count)))), count == len(values)
