"""One case from its files into memory: read, checked, and turned to canonical axes.

Channels and label must lie on one grid; a file that holds the same grid with other axes (flipped, permuted) is turned.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medseg3d import images
from medseg3d.data.dataset import Case
from medseg3d.data.grid_wording import describe, turn_in_words
from medseg3d.data.segmentations import by_names, grid_of_both, label_map_of, onto_grid
from medseg3d.data.soft_labels import most_probable, read_soft
from medseg3d.errors import GeometryMismatchError, InputError, LabelValueError, NotFiniteError
from medseg3d.frame import CANONICAL_FRAME, Frame, grid_of, orientation_in
from medseg3d.geometry import (
    AS_STORED,
    Geometry,
    GeometryDifference,
    Orientation,
    axes_onto,
    canonical_geometry,
    canonical_spacing,
    compare,
    orientation_of,
    through,
    to_canonical,
)
from medseg3d.images import Image, ImageHeader
from medseg3d.images.dicom_seg import seg_file
from medseg3d.labels import Labels, as_integers, float_label_dtype
from medseg3d.plan import Plan

GRID_TOLERANCE_VOXELS = 0.1
"""Two files share a grid when no corner lies further apart: above rounding in headers, below what a voxel could notice."""
LABEL_ROUNDING = 1e-4
"""Float labels this close to a whole number are that number: files whose labels were stored with a slope come back so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawCase:
    """One case in memory, axes (S, A, R) as the frame gives them.

    ``image`` is float32 (channel, S, A, R), contiguous; ``labels`` (S, A, R) holds the integers of the file, or is None;
    ``spacing`` is (S, A, R) in mm. ``orientation`` and ``header`` are those of the first channel's file: results go on its grid.
    ``annotated`` are the structures that the labels were annotated for, None for all. ``soft`` (label, S, A, R) are the probabilities of
    soft labels, the background first; ``labels`` are the most probable ones then.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray | None
    spacing: tuple[float, float, float]
    orientation: Orientation
    header: ImageHeader
    annotated: tuple[str, ...] | None = None
    soft: np.ndarray | None = None


def read_case(case: Case, *, with_label: bool = True, frame: Frame | None = CANONICAL_FRAME, labels: Labels | None = None) -> RawCase:
    """Read a case and check it: 3D, finite, all channels and the label on one grid (within 0.1 voxel).

    ``frame`` says which axis of the file becomes S, A and R. None leaves the axes of the first channel's file as they are, (z, y, x) in
    the place of (S, A, R). ``labels`` as in :func:`label_file`.
    A channel or label that holds the same grid with other axes (flipped, permuted) is turned. Raises the :class:`InputError` of
    what is wrong, naming the case.
    """
    first, *others = _read_channels(case)
    geometry = first.header.geometry
    orientation = AS_STORED if frame is None else orientation_in(frame, grid_of(geometry))
    if not others:  # without a copy, where the file holds float32 in canonical order
        stack = np.ascontiguousarray(_float32(to_canonical(first.array, orientation)))[None]
        _check_finite(case, 0, stack[0], first.array)
    else:
        stack = np.empty((len(case.channels), *to_canonical(first.array, orientation).shape), np.float32)
        for index, image in enumerate((first, *others)):
            view = _on_grid(image.array, image.header.geometry, geometry, orientation)
            if isinstance(view, GeometryDifference):
                raise GeometryMismatchError(
                    f"{case.name}: channel {index} ({case.channels[index].path.name}) lies on another grid than channel 0: "
                    f"{describe(view)}. Resample all channels of a case onto one grid."
                )
            stack[index] = _float32(view)
            _check_finite(case, index, stack[index], image.array)
    values, soft = None, None
    if with_label and case.label is not None:
        values, soft = _read_label(case, case.label, geometry, orientation, labels)
    return RawCase(
        name=case.name,
        image=stack,
        labels=values,
        spacing=canonical_spacing(geometry, orientation),
        orientation=orientation,
        header=first.header,
        annotated=case.annotated,
        soft=soft,
    )


def read_to_predict(case: Case, plan: Plan) -> RawCase:
    """Read a case without its label, with the axes that a model's plan was made for."""
    return read_case(case, with_label=False, frame=plan.reading_frame)


def grid_difference(image: Geometry, other: Geometry) -> GeometryDifference:
    """How far two grids lie apart, whatever the order and direction of their axes; of both readings the closer one."""
    as_stored = compare(image, other)
    if as_stored.is_same_grid(GRID_TOLERANCE_VOXELS):
        return as_stored
    canonical = canonical_geometry(other, axes_onto(other, image))
    turned = compare(image, canonical)
    if turned.is_same_shape and (not as_stored.is_same_shape or turned.corner_offset_mm < as_stored.corner_offset_mm):
        return replace(turned, turn=turn_in_words(image, other, canonical=canonical))
    return replace(as_stored, turn=turn_in_words(image, other))


def read_label_maps(
    prediction: Path, reference: Path, case: str, *, soft: tuple[int, ...] = (), labels: Labels | None = None
) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Two label maps as integers (S, A, R) on the reference's canonical grid, and its spacing in mm.

    Of a reference of ``soft`` labels (their values) the most probable label counts; named segments that are numbered otherwise than
    ``labels`` count by their names. A prediction may store the same voxels with other axes than its reference. Raises
    :class:`GeometryMismatchError` with the offset in mm where the two files do not lie on one grid.
    """
    predicted_values, predicted = label_file(prediction, labels=labels)
    reference_values, header = label_file(reference, soft, labels)
    own_grid, grid = predicted.geometry, header.geometry
    if is_segmentation(reference) and is_segmentation(prediction):
        both = grid_of_both(own_grid, grid)
        predicted_values, own_grid = onto_grid(predicted_values, own_grid, both, f"{case}: {prediction.name}"), both
        reference_values, grid = onto_grid(reference_values, grid, both, f"{case}: {reference.name}"), both
    elif is_segmentation(reference):  # such files leave out what is empty
        reference_values, grid = onto_grid(reference_values, grid, own_grid, f"{case}: {reference.name}"), own_grid
    elif is_segmentation(prediction):
        predicted_values, own_grid = onto_grid(predicted_values, own_grid, grid, f"{case}: {prediction.name}"), grid
    orientation = orientation_of(grid.matrix)
    turned = orientation_on_grid(own_grid, grid, orientation)
    if isinstance(turned, GeometryDifference):
        raise GeometryMismatchError(
            f"{case}: the prediction is not on the reference's grid: {describe(turned)}, allowed is {GRID_TOLERANCE_VOXELS} voxel. "
            "Predict from the image of the reference, or resample the prediction."
        )
    return (
        to_canonical(predicted_values, turned),
        to_canonical(reference_values, orientation),
        canonical_spacing(grid, orientation),
    )


def label_file(path: Path, soft: tuple[int, ...] = (), labels: Labels | None = None) -> tuple[np.ndarray, ImageHeader]:
    """The integers of a label file; of one of ``soft`` labels (their values) the most probable label.

    Segments whose numbers are not the values of ``labels`` get these by their names.
    """
    if soft:
        probabilities, header = read_soft(path, soft)
        return most_probable(probabilities, soft), header
    if labels is not None and is_segmentation(path) and (named := by_names(path, labels)) is not None:
        return label_map_of(named, labels, path, may_lack=True), named.header
    image = images.read_image(path)
    return label_values(path, image.array), image.header


def is_segmentation(path: Path) -> bool:
    """Whether a label file is one of named segments, whose grid may be a part of the image's."""
    return images.ending_of(path) == ".seg.nrrd" or (
        (path.is_dir() or images.ending_of(path).endswith(".dcm")) and seg_file(path) is not None
    )


def label_values(path: Path, array: np.ndarray) -> np.ndarray:
    """The integers of a label file; floats within 1e-4 of a whole number are rounded, all others refused.

    Raises :class:`LabelValueError`. Goes slice by slice, so that a float file takes no second float copy.
    """
    if array.dtype.kind != "f":
        return as_integers(array, str(path))
    result = np.empty(array.shape, float_label_dtype(array), order="F")
    for k in range(array.shape[-1]):
        slab = array[..., k]
        rounded = np.rint(slab)
        with np.errstate(invalid="ignore"):  # infinity minus infinity
            far = ~(np.abs(slab - rounded) <= LABEL_ROUNDING)  # True for NaN
        result[..., k] = as_integers(slab[far] if far.any() else rounded, str(path))
    return result


def _read_channels(case: Case) -> list[Image]:
    """The volumes of all channels; neighbors in one 4D file are decompressed once."""
    found: list[Image] = []
    for (path, files), channels in itertools.groupby(case.channels, key=lambda channel: (channel.path, channel.files)):
        found.extend(images.read_volumes(path, [channel.volume for channel in channels], files=files))
        if found[-1].header.modality == "SEG":
            raise InputError(f"{case.name}: {path.name} is a segmentation (DICOM SEG), not an image; give the series that it was drawn on.")
    return found


def orientation_on_grid(geometry: Geometry, reference: Geometry, orientation: Orientation) -> Orientation | GeometryDifference:
    """The orientation that brings a file onto the reference's grid, whose own one is ``orientation``, or how far it lies from it."""
    if compare(reference, geometry).is_same_grid(GRID_TOLERANCE_VOXELS):
        return orientation
    difference = grid_difference(reference, geometry)
    return through(axes_onto(geometry, reference), orientation) if difference.is_same_grid(GRID_TOLERANCE_VOXELS) else difference


def _on_grid(array: np.ndarray, geometry: Geometry, reference: Geometry, orientation: Orientation) -> np.ndarray | GeometryDifference:
    """A file's array as a view with the axes that ``orientation`` gives the reference, or how far the two grids lie apart."""
    turned = orientation_on_grid(geometry, reference, orientation)
    return turned if isinstance(turned, GeometryDifference) else to_canonical(array, turned)


def _read_label(
    case: Case, path: Path, geometry: Geometry, orientation: Orientation, labels: Labels | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The label map, and the probabilities of soft labels."""
    probabilities: np.ndarray | None = None
    if case.soft:
        probabilities, header = read_soft(path, case.soft)
        values = most_probable(probabilities, case.soft)
    else:
        values, header = label_file(path, labels=labels)
    turned = _on_grid(values, header.geometry, geometry, orientation)
    if isinstance(turned, GeometryDifference) and is_segmentation(path):  # such files leave out what is empty
        turned = to_canonical(onto_grid(values, header.geometry, geometry, f"{case.name}: {path.name}"), orientation)
    if isinstance(turned, GeometryDifference):
        advice = (
            "If the voxels fit and only the header is wrong, copy the image's header onto the label; else resample the label."
            if turned.is_same_shape
            else "Resample the label onto the image's grid, or run medseg3d doctor --fix."
        )
        raise GeometryMismatchError(
            f"{case.name}: the label ({path.name}) lies on another grid than the image: {describe(turned)}. {advice}"
        )
    if probabilities is None:
        return np.ascontiguousarray(turned), None
    channels = [_on_grid(channel, header.geometry, geometry, orientation) for channel in np.moveaxis(probabilities, -1, 0)]
    return np.ascontiguousarray(turned), np.stack([channel for channel in channels if not isinstance(channel, GeometryDifference)])


LEAST_SAMPLE = 32
"""Planes that are compared before all of an image is."""


def refuse_copy(case: Case, raw: RawCase) -> None:
    """Raise :class:`LabelValueError` where an image holds the voxels of its label map, which is not empty."""
    if raw.labels is None or case.label is None:
        return
    step = max(1, len(raw.labels) // LEAST_SAMPLE)
    for channel, image in zip(case.channels, raw.image, strict=True):
        if np.array_equal(image[::step], raw.labels[::step]) and np.array_equal(image, raw.labels) and raw.labels.any():
            raise LabelValueError(f"{case.name}: {copied(channel.path.name, case.label.name)}")


def copied(image: str, label: str) -> str:
    """What to say of such a pair of files."""
    return f"the image ({image}) holds the same voxels as the label map ({label}): one was copied over the other. Put the right file there."


def _float32(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused by the next check
        return array.astype(np.float32, copy=False)


def _check_finite(case: Case, channel: int, canonical: np.ndarray, stored: np.ndarray) -> None:
    """Summing is enough to find a NaN or an infinity, and takes no memory."""
    if stored.dtype.kind != "f" or np.isfinite(canonical.sum(dtype=np.float64)):
        return
    with np.errstate(over="ignore"):
        wrong = ~np.isfinite(stored.astype(np.float32))
    place = tuple(int(i) for i in np.argwhere(wrong)[0])
    raise NotFiniteError(
        f"{case.name}: channel {channel} ({case.channels[channel].path.name}) has {int(wrong.sum())} NaN or infinite voxels of "
        f"{wrong.size}, the first at (x, y, z) = {place}. Replace them, for instance by the background's value."
    )
