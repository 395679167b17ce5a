"""From a layer to label values: by a model in this process, or by a server."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np


def segment(data: np.ndarray, scale: Any, metadata: dict[str, Any], model: str) -> tuple[np.ndarray, dict[int, str]]:
    """The label values on the axes of the layer ``(z, y, x)``, and their names.

    napari knows no anatomical directions. Where the layer's metadata has the ``affine`` of its file (axes x, y, z, to RAS+ mm) it is used;
    otherwise the axes of its world count as DICOM's: from the feet to the head, from the front to the back, from the right to the left.
    """
    if data.ndim != 3:
        raise ValueError(f"The layer has {data.ndim} axes; choose one volume (z, y, x).")
    affine = affine_of(scale, metadata)
    values, names = (_by_server if model.startswith(("http://", "https://")) else _by_model)(
        np.asarray(data).transpose(2, 1, 0), affine, model
    )
    return np.ascontiguousarray(values.transpose(2, 1, 0)), names


def affine_of(scale: Any, metadata: dict[str, Any]) -> np.ndarray:
    """From voxels (x, y, z) to RAS+ mm."""
    known = known_affine(metadata)
    if known is not None:
        return known
    z, y, x = (float(step) for step in scale)
    return np.diag([-x, -y, z, 1.0])


def known_affine(metadata: dict[str, Any]) -> np.ndarray | None:
    """That of the file, where a reader left it; axes (x, y, z), to RAS+ mm."""
    known = metadata.get("affine")
    return np.asarray(known, np.float64) if known is not None and np.shape(known) == (4, 4) else None


def _by_model(volume: np.ndarray, affine: np.ndarray, model: str) -> tuple[np.ndarray, dict[int, str]]:
    loaded = _loaded(model)
    labels = loaded.plan.labels
    return loaded.predict(volume, affine), {labels.values[index]: labels.names[index] for index in labels.foreground}


@lru_cache(maxsize=2)
def _loaded(model: str) -> Any:
    """A model stays warm from one layer to the next."""
    import medseg3d

    return medseg3d.load_model(model)


def _by_server(volume: np.ndarray, affine: np.ndarray, address: str) -> tuple[np.ndarray, dict[int, str]]:
    from medseg3d.images import read_image, write_image

    server = server_at(address)
    with tempfile.TemporaryDirectory(prefix="medseg3d-") as folder:
        image, labels = Path(folder) / "image.nii.gz", Path(folder) / "labels.nii.gz"
        write_image(image, volume, affine)
        server.predict(image, labels)
        return np.asarray(read_image(labels).array), server.labels()


def server_at(address: str) -> Any:
    """A client of the server at an address."""
    import os

    from medseg3d.client import Server

    return Server(address, os.environ.get("MEDSEG3D_TOKEN"))
