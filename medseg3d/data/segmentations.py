"""Named segments → the label map of a dataset: by their names, on the grid of the image.

Segments may overlap, and may be stored on a part of the image's grid (3D Slicer and DICOM SEG leave out what is empty).
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path

import numpy as np

from medseg3d.errors import GeometryMismatchError, LabelValueError
from medseg3d.geometry import Geometry, axes_onto, geometry_of
from medseg3d.images.segments import Segment, Segmentation, read_segmentation, segments_named
from medseg3d.labels import Labels
from medseg3d.wording import listed

logger = logging.getLogger(__name__)

TOLERANCE_VOXELS = 0.1
"""As for two files that share a grid: above rounding in headers, below what a voxel could notice."""
MAX_SETS = 62
"""Segments whose overlaps are told apart by the bits of an integer."""


def by_names(path: Path, labels: Labels) -> Segmentation | None:
    """The segments of a file whose numbers mean something else than the values of ``labels``; None where values count as they are.

    The names of its segments tell: where all are those of labels, they count. Names that no label has leave the numbers as they are. Raises
    :class:`LabelValueError` where some names contradict the numbers and others are unknown.
    """
    names = segments_named(path)
    index_of = {plain_name(labels.names[index]): index for index in labels.foreground}
    known = {number: index_of[plain_name(name)] for number, name in names.items() if plain_name(name) in index_of}
    if labels.regions:
        return read_segmentation(path) if names and len(known) == len(names) else None
    wrong = next((number for number, index in known.items() if labels.values[index] != number), None)
    if wrong is None:
        return None
    if len(known) < len(names):
        unknown = listed(sorted(name for number, name in names.items() if number not in known), most=5)
        raise LabelValueError(
            f"{path}: segment {wrong} is called {names[wrong]!r}, which is the label value {labels.values[known[wrong]]}, and no label is "
            f"called {unknown}. Name the segments as the labels: {listed([labels.names[index] for index in labels.foreground], most=20)}."
        )
    return read_segmentation(path)


def label_map_of(segmentation: Segmentation, labels: Labels, source: Path, *, may_lack: bool = False) -> np.ndarray:
    """The file values (x, y, z) of a segmentation, on its own grid.

    Of labels that exclude each other a later segment lies over an earlier one, as where 3D Slicer exports a label map. Of regions a voxel
    gets the value that belongs to exactly the regions whose segments hold it. Raises :class:`LabelValueError` for a segment with voxels
    that no label is called, for labels without a segment (nobody can tell whether they are absent or were not annotated) unless it
    ``may_lack`` some, and for overlaps that no value stands for.
    """
    found = _by_label(segmentation, labels, source, may_lack=may_lack)
    shape = segmentation.layers[0].shape
    if not labels.regions:
        result, covered = np.zeros(shape, labels.value_dtype), 0
        for index, segment in found.items():
            mask = segmentation.mask(segment)
            covered += int(np.count_nonzero(result[mask]))
            result[mask] = labels.values[index]
        if covered:
            logger.warning("%s: segments overlap in %d voxels; the later one of the file counts there.", source, covered)
        return result
    return _by_regions(segmentation, found, labels, source)


def _by_label(segmentation: Segmentation, labels: Labels, source: Path, *, may_lack: bool) -> dict[int, Segment]:
    """The segments by the index of their label, in the order of the file."""
    known = {plain_name(labels.names[index]): index for index in labels.foreground}
    found: dict[int, Segment] = {}
    unknown = []
    for segment in segmentation.segments:
        index = known.get(plain_name(segment.name))
        if index is not None and index not in found:
            found[index] = segment
        elif segmentation.mask(segment).any():
            unknown.append(segment.name)
    missing = [labels.names[index] for index in labels.foreground if index not in found]
    names = listed([labels.names[index] for index in labels.foreground], most=20)
    if unknown:
        raise LabelValueError(f"{source}: no label is called {listed(unknown, most=5)}; the labels are {names}. Rename the segments.")
    if missing and not may_lack:
        raise LabelValueError(
            f"{source}: has no segment for {listed(missing, most=5)}. If the image does not show it, add an empty segment of that name: "
            "otherwise nobody can tell whether it was looked for."
        )
    return found


def plain_name(name: str) -> str:
    """A name without what programs change in it.

    >>> plain_name("Left-Kidney "), plain_name("left_kidney")
    ('left kidney', 'left kidney')
    """
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()


def _by_regions(segmentation: Segmentation, found: dict[int, Segment], labels: Labels, source: Path) -> np.ndarray:
    """Each set of regions that a voxel may belong to has a file value; others are refused."""
    if len(labels.foreground) > MAX_SETS:
        raise LabelValueError(f"{source}: {len(labels.foreground)} regions, and segments are told apart for {MAX_SETS} at most.")
    sets = np.zeros(segmentation.layers[0].shape, np.int64)
    for index, segment in found.items():
        sets[segmentation.mask(segment)] |= 1 << index
    value_of: dict[int, int] = {}
    for value in labels.annotated_values:
        value_of.setdefault(sum(1 << index for index in labels.foreground if value in labels.members(index)), value)
    there, places = np.unique(sets, return_inverse=True)
    for each in there.tolist():
        if each not in value_of:
            names = [labels.names[index] for index in labels.foreground if each >> index & 1]
            raise LabelValueError(
                f"{source}: {int(np.count_nonzero(sets == each))} voxels belong to {' and '.join(names) or 'nothing'} alone, and no label "
                "value stands for that; see the regions in dataset.json. Correct the segments."
            )
    table = np.array([value_of[each] for each in there.tolist()], np.result_type(*map(np.min_scalar_type, labels.annotated_values)))
    return table[places].reshape(sets.shape)


def onto_grid(values: np.ndarray, geometry: Geometry, reference: Geometry, source: Path | str) -> np.ndarray:
    """A label map (x, y, z) whose grid is a part of another, turned to its axes and filled up with 0.

    Raises :class:`GeometryMismatchError` where the voxels do not lie on those of ``reference``, or labelled ones beside them.
    """
    order = axes_onto(geometry, reference)
    columns, shape, origin = np.empty((3, 3)), [0, 0, 0], geometry.matrix[:3, 3].copy()
    array = values
    for axis, (target, sign) in enumerate(order):
        shape[target], columns[:, target] = geometry.shape[axis], geometry.matrix[:3, axis] * sign
        if sign < 0:
            origin += geometry.matrix[:3, axis] * (geometry.shape[axis] - 1)
            array = np.flip(array, axis)
    array = array.transpose([axis for target in range(3) for axis, (other, _) in enumerate(order) if other == target])
    start = np.linalg.solve(reference.matrix[:3, :3], origin - reference.matrix[:3, 3])
    first = np.rint(start).astype(int)
    steps = np.linalg.solve(reference.matrix[:3, :3], columns) - np.eye(3)
    drift = np.abs(start - first).max() + float((np.abs(steps) @ np.maximum(0, np.array(shape) - 1)).max())
    if drift > TOLERANCE_VOXELS:
        own = geometry_of(shape, np.vstack((np.column_stack((columns, origin)), [0, 0, 0, 1])))
        raise GeometryMismatchError(
            f"{source}: its voxels lie up to {drift:.2g} voxels beside those of the image (spacing {_mm(own.spacing)} mm, the image's "
            f"{_mm(reference.spacing)} mm). Segment on the image itself, or resample the segmentation onto its grid."
        )
    result = np.zeros(reference.shape, values.dtype)
    inside, outside = [], []
    for low, length, limit in zip(first.tolist(), shape, reference.shape, strict=True):
        inside.append(slice(max(0, low), max(0, min(limit, low + length))))
        outside.append(slice(max(0, -low), max(0, -low) + inside[-1].stop - inside[-1].start))
    result[tuple(inside)] = array[tuple(outside)]
    if np.count_nonzero(result) != np.count_nonzero(array):
        lost = np.count_nonzero(array) - np.count_nonzero(result)
        raise GeometryMismatchError(f"{source}: {lost} labelled voxels lie outside of the image. Is it the segmentation of another image?")
    return result


MAX_STRETCH = 4
"""Times the edges of two parts together: segmentations of one image do not lie farther apart."""
MOST_VOXELS = 2**30
"""Of an image, as far as clinics make them: parts of different images may span more, which would be filled with nothing."""


def grid_of_both(one: Geometry, other: Geometry) -> Geometry:
    """The smallest grid along the axes of ``other`` that holds it and ``one``, of two parts of one image's grid."""
    corners = np.array([[x, y, z, 1.0] for x in (0, one.shape[0] - 1) for y in (0, one.shape[1] - 1) for z in (0, one.shape[2] - 1)])
    places = np.rint((corners @ (np.linalg.inv(other.matrix) @ one.matrix).T)[:, :3]).astype(int)
    low = np.minimum(0, places.min(0))
    shape = np.maximum(other.shape, places.max(0) + 1) - low
    if (shape > MAX_STRETCH * (np.array(other.shape) + max(one.shape))).any() or math.prod(shape.tolist()) > MOST_VOXELS:
        return other  # of different images, as filling up will say
    affine = other.matrix.copy()
    affine[:3, 3] = (other.matrix @ [*low, 1])[:3]
    return geometry_of(shape.tolist(), affine)


def _mm(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{each:.4g}" for each in spacing)
