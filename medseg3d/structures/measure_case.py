"""A label map, and the image that it belongs to → the numbers of each structure.

Each structure is cropped to its own box first, so that its cost follows the structure and not the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from medseg3d.data.cropping import Box
from medseg3d.geometry import Geometry
from medseg3d.labels import Labels, places_of
from medseg3d.structures.distances import distance_between
from medseg3d.structures.radiomics import Extractor
from medseg3d.structures.records import CaseStructures, Distance, Intensities, Structure
from medseg3d.structures.shapes import shape_of


def measure_case(
    label_map: np.ndarray,
    geometry: Geometry,
    *,
    labels: Labels,
    name: str = "case",
    images: Mapping[str, np.ndarray] | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    radiomics: Extractor | None = None,
    annotated: Sequence[str] | None = None,
) -> CaseStructures:
    """Measure a label map of *file values* ``(x, y, z)`` on the grid of its file.

    ``images`` by channel lie on the same grid. Regions are measured as the unions that they are; the ignore label is no structure.
    ``pairs`` are names of structures whose distance is wanted. Structures that the label map was not ``annotated`` for (names, None for
    all) are left out: nobody knows their volume. Raises :class:`~medseg3d.errors.LabelValueError` for values that are not in
    ``labels``.
    """
    found = _Found(label_map, geometry, labels, name)
    known = [index for index in labels.foreground if annotated is None or labels.names[index] in annotated]
    names = {labels.names[index] for index in known}
    structures = [_structure(found, index, images or {}, radiomics) for index in known]
    asked = [pair for pair in pairs if names.issuperset(pair)]
    return CaseStructures(
        case=name,
        shape=geometry.shape,
        spacing_mm=geometry.spacing,
        structures=tuple(structures),
        distances=tuple(each for first, second in asked if (each := _distance(found, first, second)) is not None),
        unannotated_voxels=found.num_unannotated,
    )


class _Found:
    """Where each structure is in a label map."""

    def __init__(self, label_map: np.ndarray, geometry: Geometry, labels: Labels, name: str) -> None:
        from scipy import ndimage

        values = tuple(dict.fromkeys((*labels.annotated_values, *labels.values, *labels.file_values)))
        self.labels, self.geometry, self._values = labels, geometry, values
        self.places = places_of(label_map, values, name, dtype=np.min_scalar_type(max(1, len(values) - 1)))
        self.members = [[values.index(value) for value in labels.members(index)] for index in range(labels.num_classes)]
        self._boxes: list[Box | None] = [None, *ndimage.find_objects(self.places, max_label=max(1, len(values) - 1))]

    @property
    def num_unannotated(self) -> int:
        """Voxels that hold the ignore label."""
        ignore = self.labels.ignore
        return 0 if ignore is None else int(np.count_nonzero(self.places == self._values.index(ignore)))

    def box(self, *indices: int) -> Box | None:
        """The smallest box that holds some structures; None where none of them has a voxel."""
        boxes = [box for index in indices for place in self.members[index] if place and (box := self._boxes[place]) is not None]
        if not boxes:
            return None
        sides = [slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(3)]
        return (sides[0], sides[1], sides[2])

    def mask(self, index: int, box: Box) -> np.ndarray:
        """The voxels of a structure in a box."""
        inside, members = self.places[box], self.members[index]
        return inside == members[0] if len(members) == 1 else np.isin(inside, members)

    def affine(self, box: Box) -> np.ndarray:
        """From the indices of a box to RAS+ mm."""
        affine = self.geometry.matrix.copy()
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
        return affine


def _structure(found: _Found, index: int, images: Mapping[str, np.ndarray], radiomics: Extractor | None) -> Structure:
    value, name, box = found.labels.values[index], found.labels.names[index], found.box(index)
    if box is None:
        return Structure(value=value, name=name, voxels=0, volume_ml=0.0)
    mask = found.mask(index, box)
    shape, voxel_ml = shape_of(mask, found.affine(box)), abs(float(np.linalg.det(found.geometry.matrix[:3, :3]))) / 1000
    low, high = shape.box_low_mm, shape.box_high_mm
    inside = {channel: np.asarray(image[box][mask], np.float64) for channel, image in images.items()}
    return Structure(
        value=value,
        name=name,
        voxels=shape.voxels,
        volume_ml=shape.voxels * voxel_ml,
        num_objects=shape.num_objects,
        largest_object_ml=shape.largest_object * voxel_ml,
        centroid_mm=shape.centroid_mm,
        box_low_mm=low,
        box_high_mm=high,
        extent_mm=(high[0] - low[0], high[1] - low[1], high[2] - low[2]),
        diameter_mm=shape.diameter_mm,
        is_at_edge=_is_at_edge(box, found.places.shape),
        intensities={channel: intensities_of(values) for channel, values in inside.items()},
        radiomics={} if radiomics is None else _radiomics(radiomics, images, mask, box, found.geometry),
    )


def intensities_of(values: np.ndarray) -> Intensities:
    """Of at least one value; percentiles interpolate between ranks."""
    p05, median, p95 = (float(value) for value in np.percentile(values, (5, 50, 95)))
    return Intensities(
        mean=float(values.mean()),
        std=float(values.std()),
        minimum=float(values.min()),
        p05=p05,
        median=median,
        p95=p95,
        maximum=float(values.max()),
    )


def _is_at_edge(box: Box, shape: Sequence[int]) -> bool:
    """Axes of a single slice have no edge that anything could be missing beyond."""
    return any(length > 1 and (side.start == 0 or side.stop == length) for side, length in zip(box, shape, strict=True))


def _radiomics(extractor: Extractor, images: Mapping[str, np.ndarray], mask: np.ndarray, box: Box, geometry: Geometry) -> dict[str, float]:
    features: dict[str, float] = {}
    for channel, image in images.items():
        prefix = f"{channel}_" if len(images) > 1 else ""
        measured = extractor(np.asarray(image[box], np.float64), mask, geometry.spacing)
        features |= {f"{prefix}{name}": value for name, value in measured.items() if math.isfinite(value)}
    return features


def _distance(found: _Found, first: str, second: str) -> Distance | None:
    indices = [found.labels.names.index(first), found.labels.names.index(second)]
    box = found.box(*indices)
    if box is None or any(found.box(index) is None for index in indices):
        return None
    return distance_between(first, second, (found.mask(indices[0], box), found.mask(indices[1], box)), found.geometry.spacing)
