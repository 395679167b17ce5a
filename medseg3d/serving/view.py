"""What the viewer of the server's page shows of a job: the whole image and its label map, slice by slice, from files that are mapped.

In: the image that was read and the label map that was made of it. Out: a scene (JSON) and the packed layers of any slice. They lie in the
job's folder and go with it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from medseg3d.data.reading import RawCase
from medseg3d.files import storage_errors, write_text
from medseg3d.geometry import Geometry, Orientation, canonical_spacing, from_canonical, orientation_of, to_canonical
from medseg3d.labels import Labels
from medseg3d.plan import Plan
from medseg3d.prediction.predict_case import PreparedCase
from medseg3d.records import read_json
from medseg3d.reporting.case_pictures import are_channels_ct
from medseg3d.reporting.chosen_slices import telling_position
from medseg3d.reporting.scene import Levels, Plane, Volumes, describe_scene, label_indices, pack_slices, quantize
from medseg3d.reporting.unsure import probabilities_in, slices_of_uncertainty

SCENE, PREDICTION, UNCERTAINTY = "scene.json", "prediction.npy", "uncertainty.npy"
NUM_LEVELS = 4096
"""Of a channel: all that a 12-bit scanner tells apart."""
FAST = 1
"""zlib's level for a slice on its way: a slice takes milliseconds, and half the bytes."""


def keep_image(folder: Path, raw: RawCase, plan: Plan) -> tuple[Levels, ...]:
    """Write the channels of an image as whole numbers; they must be read from ``raw`` before it is preprocessed in place."""
    folder.mkdir()
    levels = []
    for place, (name, is_ct) in enumerate(zip(plan.channels, are_channels_ct(plan), strict=True)):
        numbers, own = quantize(
            _seen(raw.image[place], raw.orientation, raw.header.geometry), name=name, is_ct=is_ct, num_levels=NUM_LEVELS
        )
        _save(folder / f"channel_{place}.npy", numbers)
        levels.append(own)
    return tuple(levels)


@contextmanager
def unsure(folder: Path | None, prepared: PreparedCase, labels: Labels) -> Iterator[np.ndarray | None]:
    """An array for the probabilities of a case, of which the uncertainty is kept; None where nothing is asked for, or too much."""
    if folder is None:
        yield None
        return
    with probabilities_in(folder, prepared, labels) as chances:
        yield chances
        if chances is not None:
            found = slices_of_uncertainty(chances, labels)
            _save(folder / UNCERTAINTY, _seen(found, prepared.orientation, prepared.header.geometry))


def keep_prediction(folder: Path, label_map: np.ndarray, prepared: PreparedCase, plan: Plan, levels: tuple[Levels, ...], name: str) -> None:
    """Write the label map (file values, on the file's axes) and the scene, after which the view is complete."""
    orientation = orientation_of(prepared.header.geometry.matrix)
    indices = label_indices(to_canonical(label_map, orientation), plan.labels)
    _save(folder / PREDICTION, indices)
    shape = indices.shape
    layers = ("prediction", "uncertainty") if (folder / UNCERTAINTY).exists() else ("prediction",)
    scene = describe_scene(
        name,
        levels=levels,
        labels=plan.labels.names[1:],
        layers=layers,
        planes=whole_planes(shape),
        shape=shape,
        spacing=canonical_spacing(prepared.header.geometry, orientation),
        position=telling_position(shape, [indices]),
    )
    write_text(folder / SCENE, json.dumps(scene))


def whole_planes(shape: tuple[int, ...]) -> tuple[Plane, ...]:
    """All slices along every axis."""
    box = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    return tuple(Plane(axis=axis, indices=tuple(range(shape[axis])), box=box) for axis in range(3))


def read_scene(folder: Path) -> dict[str, Any] | None:
    """The scene of a job; None where no view was asked for."""
    path = folder / SCENE
    return dict(read_json(path)) if path.exists() else None


def packed_slice(folder: Path, scene: dict[str, Any], axis: int, index: int) -> bytes:
    """One slice as the viewer reads it, compressed by zlib; raises :class:`IndexError` for one that the image does not have."""
    shape = tuple(scene["shape"])
    if not 0 <= axis < 3 or not 0 <= index < shape[axis]:
        raise IndexError(f"axis {axis}, slice {index}")
    channels = [_mapped(folder / f"channel_{place}.npy") for place in range(len(scene["channels"]))]
    has_uncertainty = "uncertainty" in scene["layers"]
    volumes = Volumes(
        channels=tuple(channels),
        prediction=_mapped(folder / PREDICTION),
        uncertainty=_mapped(folder / UNCERTAINTY) if has_uncertainty else None,
    )
    plane = Plane(axis=axis, indices=(index,), box=whole_planes(shape)[axis].box)
    return zlib.compress(pack_slices(volumes, plane), FAST)


def _seen(array: np.ndarray, own: Orientation, geometry: Geometry) -> np.ndarray:
    """An array in the axes of a plan, which may be any, as a person sees it: canonical."""
    return to_canonical(from_canonical(array, own), orientation_of(geometry.matrix))


def _save(path: Path, array: np.ndarray) -> None:
    with storage_errors(path):
        np.save(path, array, allow_pickle=False)


def _mapped(path: Path) -> np.ndarray:
    found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return found
