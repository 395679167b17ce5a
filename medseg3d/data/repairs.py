"""What ``doctor --fix`` repairs: a label beside its image is written anew on the image's grid, and nothing is lost or left dangling."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medseg3d import images
from medseg3d.data.case_files import listed_file
from medseg3d.data.checks import AMBIGUOUS, MIN_FOREGROUND_INSIDE, foreground_inside
from medseg3d.data.dataset import Case
from medseg3d.data.reading import label_values, orientation_on_grid
from medseg3d.errors import InputError
from medseg3d.files import copy_file, file_digest, remove_file, write_text
from medseg3d.geometry import Geometry, GeometryDifference, from_canonical, orientation_of, to_canonical
from medseg3d.records import read_json

ORIGINALS = "medseg3d-originals"
"""The folder of the dataset that keeps what was there before."""


def repair_label(case: Case, *, root: Path) -> str:
    """Write the label of a case anew on exactly the grid of its image; the old file is kept in ``medseg3d-originals``.

    Where the grids have the same shape and lie within 0.1 voxel, only the header changes; labels of another shape are resampled
    (nearest neighbor) by the positions in both headers. Returns what was done. Raises :class:`InputError` where the label cannot
    be repaired without guessing.
    """
    if case.label is None:
        raise InputError(f"{case.name}: has no label to repair.")
    if case.soft:
        raise InputError(f"{case.name}: soft labels are not repaired; resample them onto the image's grid.")
    header = images.read_header(case.channels[0].path, files=case.channels[0].files)
    label = images.read_image(case.label)
    values = label_values(case.label, label.array)
    orientation = orientation_of(header.geometry.matrix)
    turned = orientation_on_grid(label.header.geometry, header.geometry, orientation)
    if not isinstance(turned, GeometryDifference):
        values, what = from_canonical(to_canonical(values, turned), orientation), "given the image's header"
    elif turned.is_same_shape:
        raise InputError(f"{case.name}: {AMBIGUOUS}.")
    else:
        inside = foreground_inside(values, label.header.geometry, header.geometry)
        if inside < MIN_FOREGROUND_INSIDE:
            raise InputError(f"{case.name}: only {inside:.1%} of the label's foreground lies inside the image; check the pair.")
        values, what = _nearest(values, label.header.geometry, header.geometry), "resampled onto the image's grid"
    kept = _keep_original(case.label, root)
    target = case.label
    if images.ending_of(target) not in (".nii.gz", ".nii"):
        target = target.with_name(f"{images.case_name(target)}.nii.gz")
    images.write_label_map(target, values, header)
    if target != case.label:
        _rename_in_json(root, case.label, target)
        remove_file(case.label)
    return f"{case.name}: the label was {what}; the original is kept as {kept}"


def _nearest(values: np.ndarray, label: Geometry, image: Geometry) -> np.ndarray:
    """Label values at the voxels of the image, the nearest voxel of the label each; 0 outside."""
    to_label = np.linalg.inv(label.matrix) @ image.matrix
    result = np.zeros(image.shape, values.dtype, order="F")
    x, y = np.meshgrid(np.arange(image.shape[0]), np.arange(image.shape[1]), indexing="ij")
    for z in range(image.shape[2]):
        there = np.stack([x, y, np.full_like(x, z)], -1) @ to_label[:3, :3].T + to_label[:3, 3]
        places = np.rint(there).astype(np.int64)
        inside = ((places >= 0) & (places < values.shape)).all(-1)
        result[:, :, z][inside] = values[tuple(places[inside].T)]
    return result


def _keep_original(path: Path, root: Path) -> Path:
    """Copy a file, or a header with the files of its voxels, below ``medseg3d-originals`` of the dataset.

    An older original of the same name stays, and this one is kept beside it.
    """
    target = Path()
    for file in images.data_files(path):
        kept = _place_of(file, root)
        number = 1
        while kept.exists() and file_digest(kept) != file_digest(file):
            kept = _place_of(file, root).with_name(f"{number}-{file.name}")
            number += 1
        if not kept.exists():
            copy_file(file, kept)
        target = kept if file == path or target == Path() else target
    return target


def _place_of(file: Path, root: Path) -> Path:
    """The same path below the folder of originals; of a file elsewhere its whole path, so that no two files share a place."""
    resolved, base = file.resolve(), root.resolve()
    inside = resolved.relative_to(base) if resolved.is_relative_to(base) else Path(*resolved.parts[1:])
    return root / ORIGINALS / inside


def _rename_in_json(root: Path, old: Path, new: Path) -> None:
    """Let ``dataset.json`` list the new file where it lists the old one; the JSON as it was is kept with the originals."""
    file = root / "dataset.json"
    if not file.is_file():
        return
    declared = read_json(file)

    def renamed(text: str) -> str:
        if Path(text.replace("\\", "/")).name != old.name or not _is_same(listed_file(root, text), old):
            return text
        return text[: -len(old.name)] + new.name

    changed = _with_paths(declared, renamed)
    if changed != declared:
        _keep_original(file, root)
        write_text(file, json.dumps(changed, indent=2, ensure_ascii=False) + "\n")


def _is_same(first: Path, second: Path) -> bool:
    return first.exists() and first.samefile(second)


def _with_paths(declared: Any, change: Callable[[str], str]) -> Any:
    """The document with every listed label changed: those of ``training`` and of ``dataset``."""
    if not isinstance(declared, dict):
        return declared
    result = dict(declared)
    if isinstance(result.get("training"), list):
        result["training"] = [_with_label(entry, change) for entry in result["training"]]
    if isinstance(result.get("dataset"), dict):
        result["dataset"] = {name: _with_label(entry, change) for name, entry in result["dataset"].items()}
    return result


def _with_label(entry: Any, change: Callable[[str], str]) -> Any:
    if isinstance(entry, dict) and isinstance(entry.get("label"), str):
        return {**entry, "label": change(entry["label"])}
    return entry
