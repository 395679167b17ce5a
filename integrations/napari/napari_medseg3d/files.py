"""Images that medseg3d reads as layers of napari, and labels layers as label maps in NIfTI, both on the grid of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg3d.images import Image, case_name, is_image, read_image, write_image
from napari_medseg3d.segment import affine_of

Paths = str | Sequence[str]
Layer = tuple[np.ndarray, dict[str, Any], str]


def get_reader(path: Paths) -> Callable[[Paths], list[Layer]] | None:
    """The function that reads these files, None where one of them is no image of medseg3d's."""
    return read_layers if all(is_image(Path(each)) for each in _listed(path)) else None


def read_layers(path: Paths) -> list[Layer]:
    """An image layer for each file, or folder of a DICOM series, with the file's affine in its metadata."""
    return [layer_of(read_image(Path(each)), case_name(Path(each))) for each in _listed(path)]


def layer_of(image: Image, name: str) -> Layer:
    """The voxels as stored, axes (z, y, x); a negative scale turns the view so that the head is up, the patient's right on the left.

    The view alone is turned: whatever is drawn lies on the grid of the file.
    """
    affine, spacing = image.header.geometry.matrix, np.asarray(image.header.geometry.spacing)
    nearest = np.argmax(np.abs(affine[:3, :3]), axis=0)  # direction of the body (R, A or S), for each axis
    scale = (-spacing * np.sign(affine[nearest, range(3)]))[::-1]
    return image.array.transpose(2, 1, 0), {"name": name, "scale": scale, "metadata": {"affine": affine}}, "image"


def write_labels(path: str, data: np.ndarray, meta: dict[str, Any]) -> list[str]:
    """A labels layer as NIfTI, on the grid of its metadata's affine; ``medseg3d correct`` takes it."""
    values = np.asarray(data)
    if values.ndim != 3:
        raise ValueError(f"The layer has {values.ndim} axes; a label map has three (z, y, x).")
    smallest = np.min_scalar_type(int(values.max(initial=0)))
    target = Path(path)
    write_image(target, values.astype(smallest).transpose(2, 1, 0), affine_of(meta.get("scale", (1, 1, 1)), meta.get("metadata", {})))
    return [str(target)]


def _listed(path: Paths) -> list[str]:
    return [path] if isinstance(path, (str, Path)) else list(path)
