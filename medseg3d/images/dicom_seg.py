"""DICOM SEG as labels: a file in, its segments by name and the voxels that they hold out.

Frames lie where their positions say; slices without a frame are empty, so that the grid may be a part of the image's. The header is looked
at by our own reader first, which bounds what follows; pydicom then reads the nested groups that say where frames lie.
"""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg3d.errors import ImageReadError, InputError, LabelValueError
from medseg3d.geometry import geometry_of
from medseg3d.images.dicom import dicom_files
from medseg3d.images.dicom_file import DEFLATED, EXPLICIT, IMPLICIT, looks_like_dicom, read_dicom_file
from medseg3d.images.dicom_series import SEGMENTATIONS
from medseg3d.images.header import Image, ImageHeader, homogeneous
from medseg3d.images.itk import LPS_TO_RAS
from medseg3d.images.opening import check_memory, reading
from medseg3d.images.segments import Segment, Segmentation

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

RUN_LENGTHS = "1.2.840.10008.1.2.5"
READ = (IMPLICIT, EXPLICIT, DEFLATED, RUN_LENGTHS)
"""Transfer syntaxes that need no native decoder."""
MAX_FRAMES = 200_000
_LOCK = threading.Lock()
"""Warnings are caught for the whole process."""
TOLERANCE = 0.1
"""Of a slice distance, and of a pixel within the slice: how far a frame may lie from the regular grid."""
BASE = 1000
"""A voxel of several segments has the value whose digits to this base are their numbers: 1002 is in the segments 1 and 2."""
MAX_DEPTH = 6
"""So many segments over each other fit 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frames:
    """The grid of a SEG, and of each frame its slice in it and its segment (0: all, in a label map)."""

    header: ImageHeader
    slices: np.ndarray
    numbers: np.ndarray


def seg_file(path: Path) -> Path | None:
    """The SEG that a path is: a file, or a folder with that file alone; None for all else. Damaged files are none: reading says why."""
    if path.is_dir():
        first = list(itertools.islice(dicom_files(path), 2))
        return seg_file(first[0]) if len(first) == 1 else None
    try:
        is_seg = looks_like_dicom(path) and read_dicom_file(path).text("SOPClassUID") in SEGMENTATIONS
    except (ImageReadError, OSError):
        return None
    return path if is_seg else None


def read_header(path: Path) -> ImageHeader:
    """The grid of the frames, without decoding them."""
    with reading(path):
        return _frames(path, _dataset(path, with_pixels=False)).header


def read_image(path: Path) -> Image:
    """A label map of the numbers of segments; where segments overlap, their numbers are digits to the base 1000."""
    found = read_seg(path)
    return Image(array=combined(found, path), header=found.header)


def read_seg(path: Path) -> Segmentation:
    """The segments in the order of their numbers; those that overlap lie in several layers. Of probabilities more than half counts."""
    with reading(path):
        return _read(path)


def _read(path: Path) -> Segmentation:
    dataset = _dataset(path, with_pixels=True)
    frames = _frames(path, dataset)
    shape = frames.header.geometry.shape
    check_memory(path, 2 * frames.header.num_voxels + len(frames.slices) * shape[0] * shape[1], shape)
    pixels = _pixels(path, dataset, len(frames.slices))
    largest = max([int(item.SegmentNumber) for item in dataset.SegmentSequence], default=0)
    kind = np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16
    if frames.numbers.any():
        half = float(dataset.get("MaximumFractionalValue", 1)) / 2 if dataset.SegmentationType == "FRACTIONAL" else 0
        layers, places = _layers(frames, pixels > half, kind)
    else:
        layer = np.zeros(shape[::-1], kind)
        layer[frames.slices] = pixels
        layers, places = [layer], {}
    segments = tuple(
        Segment(name=_name_of(item), value=int(item.SegmentNumber), layer=places.get(int(item.SegmentNumber), 0))
        for item in dataset.SegmentSequence
        if int(item.SegmentNumber) > 0  # a label map may describe its background
    )
    return Segmentation(header=frames.header, layers=tuple(layer.transpose(2, 1, 0) for layer in layers), segments=segments)


def segment_names(path: Path) -> tuple[dict[int, str], bool]:
    """Names by number, and whether segments may overlap, by the header alone."""
    with reading(path):
        dataset = _dataset(path, with_pixels=False)
        names = {int(item.SegmentNumber): _name_of(item) for item in dataset.SegmentSequence if int(item.SegmentNumber) > 0}
    may_overlap = dataset.get("SegmentationType") != "LABELMAP" and dataset.get("SegmentsOverlap", "UNDEFINED") != "NO"
    return names, may_overlap and len(names) > 1


def combined(segmentation: Segmentation, path: Path) -> np.ndarray:
    """One value per voxel, also where segments overlap; raises :class:`LabelValueError` where that is too deep."""
    if len(segmentation.layers) == 1:
        return segmentation.layers[0]
    if len(segmentation.layers) > MAX_DEPTH or any(segment.value >= BASE for segment in segmentation.segments):
        raise LabelValueError(
            f"{path}: {len(segmentation.layers)} segments lie over each other, or have numbers from {BASE} on; expected {MAX_DEPTH} at "
            "most and smaller numbers. Save the structures that are to be learned into a SEG of their own."
        )
    result = np.zeros(segmentation.layers[0].shape, np.int64)
    for segment in sorted(segmentation.segments, key=lambda each: each.value):
        mask = segmentation.mask(segment)
        result[mask] = result[mask] * BASE + segment.value
    return result


def members_of(value: int) -> tuple[int, ...]:
    """The segments that a voxel of a combined label map is in.

    >>> members_of(1002), members_of(7), members_of(0)
    ((1, 2), (7,), ())
    """
    found: tuple[int, ...] = ()
    while value:
        value, number = divmod(value, BASE)
        found = (number, *found)
    return found


def _dataset(path: Path, *, with_pixels: bool) -> Dataset:
    file = read_dicom_file(path)
    if file.damage:
        raise ImageReadError(file.damage)
    if file.syntax not in READ:
        raise ImageReadError(
            f"{path}: a DICOM SEG whose frames are compressed ({file.syntax}). Save it uncompressed, for instance with gdcmconv --raw."
        )
    try:
        import pydicom
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError as error:
        raise InputError(f"{path}: to read a DICOM SEG needs pydicom ({error}): pip install 'medseg3d[dicom]'") from error
    with _LOCK, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=not with_pixels, force=True)
            for _ in dataset.iterall():  # decodes all elements: a sequence that is cut off is a warning when it is asked for
                pass
        except (BytesLengthException, InvalidDicomError) as error:  # no kinds of ValueError
            raise ImageReadError(f"{path}: cannot be decoded ({error!s:.300}). Copy or download it again.") from error
    cut = [str(each.message) for each in said if "End of file" in str(each.message)]
    if cut:
        raise ImageReadError(f"{path}: cannot be decoded ({cut[0]}). Copy or download it again.")
    return dataset


def _name_of(item: Dataset) -> str:
    return str(item.get("SegmentLabel", "")).strip() or f"Segment_{item.SegmentNumber}"


def _frames(path: Path, dataset: Dataset) -> _Frames:
    """Where frames lie; raises :class:`ImageReadError` where that is no regular grid."""
    shared = dataset.get("SharedFunctionalGroupsSequence", [None])[0]
    groups = dataset.get("PerFrameFunctionalGroupsSequence", [])
    if not groups or len(groups) != int(dataset.get("NumberOfFrames", 0)) or len(groups) > MAX_FRAMES:
        raise ImageReadError(f"{path}: a DICOM SEG with {dataset.get('NumberOfFrames', 0)} frames and places for {len(groups)}.")

    def of(group: Dataset, name: str) -> Dataset:
        found = group.get(name) or (shared.get(name) if shared is not None else None)
        if not found:
            raise ImageReadError(f"{path}: a DICOM SEG without {name.removesuffix('Sequence')}: where its voxels lie is unknown.")
        return found[0]

    orientation = np.array([of(group, "PlaneOrientationSequence").ImageOrientationPatient for group in groups], float)
    if np.abs(orientation - orientation[0]).max() > 1e-3:
        raise ImageReadError(f"{path}: the frames of the DICOM SEG lie in several planes; not a regular grid.")
    positions = np.array([of(group, "PlanePositionSequence").ImagePositionPatient for group in groups], float)
    measures = of(groups[0], "PixelMeasuresSequence")
    rows, columns = orientation[0, :3], orientation[0, 3:]
    down, across = (float(value) for value in measures.PixelSpacing)
    in_plane = np.stack([rows * across, columns * down], axis=1)
    step, slices = _places(path, positions, in_plane, measures)
    first = positions[int(np.argmin(slices))]
    shape = (int(dataset.Columns), int(dataset.Rows), int(slices.max()) + 1)
    geometry = geometry_of(shape, homogeneous(LPS_TO_RAS @ np.column_stack([in_plane, step]), LPS_TO_RAS @ first))
    numbers = np.array([_number(group, shared) for group in groups])
    header = ImageHeader(
        geometry=geometry,
        stored_shape=shape,
        format="dicom-seg",
        num_volumes=1,
        dtype=f"{dataset.BitsAllocated}-bit {str(dataset.SegmentationType).lower()}",
        modality="SEG",
    )
    return _Frames(header=header, slices=slices, numbers=numbers)


def _places(path: Path, positions: np.ndarray, in_plane: np.ndarray, measures: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The vector from a slice to the next, and the slice of each frame, the lowest one 0."""
    normal = np.cross(in_plane[:, 0], in_plane[:, 1])
    normal /= np.linalg.norm(normal)
    along = positions @ normal
    distances = np.unique(np.round(along - along.min(), 4))
    told = float(measures.get("SpacingBetweenSlices", 0) or 0)
    gaps = np.diff(distances)
    gaps = gaps[gaps > 1e-3]
    distance = abs(told) or (float(gaps.min()) if len(gaps) else float(measures.get("SliceThickness", 0) or 1))
    places = (along - along.min()) / distance
    slices = np.rint(places).astype(int)
    last = int(np.argmax(slices))
    step = (positions[last] - positions[int(np.argmin(slices))]) / slices[last] if slices[last] else normal * distance
    beside = (positions - positions[int(np.argmin(slices))] - slices[:, None] * step) @ (in_plane / (in_plane**2).sum(0))
    if np.abs(places - slices).max() > TOLERANCE or np.abs(beside).max() > TOLERANCE:
        raise ImageReadError(f"{path}: the frames of the DICOM SEG are unevenly spaced or shifted against each other; not a regular grid.")
    return step, slices


def _number(group: Dataset, shared: Dataset | None) -> int:
    """The segment of a frame; 0 in a label map, whose frames hold all."""
    found = group.get("SegmentIdentificationSequence") or (shared.get("SegmentIdentificationSequence") if shared is not None else None)
    return int(found[0].ReferencedSegmentNumber) if found else 0


def _pixels(path: Path, dataset: Dataset, count: int) -> np.ndarray:
    """Frames (frame, row, column)."""
    pixels = np.asarray(dataset.pixel_array)
    if pixels.size != count * int(dataset.Rows) * int(dataset.Columns):
        raise ImageReadError(f"{path}: a DICOM SEG with {pixels.size} pixels for {count} frames. Copy or download it again.")
    return pixels.reshape(count, int(dataset.Rows), int(dataset.Columns))


def _layers(frames: _Frames, pixels: np.ndarray, kind: type[np.unsignedinteger]) -> tuple[list[np.ndarray], dict[int, int]]:
    """Segments in as few arrays (z, y, x) as they fit into without overlap, and the layer of each."""
    layers: list[np.ndarray] = []
    places: dict[int, int] = {}
    for number in np.unique(frames.numbers).tolist():
        mask = np.zeros(frames.header.geometry.shape[::-1], bool)
        for index in np.flatnonzero(frames.numbers == number).tolist():
            mask[frames.slices[index]] |= pixels[index]
        place = next((place for place, layer in enumerate(layers) if not layer[mask].any()), len(layers))
        if place == len(layers):
            layers.append(np.zeros(mask.shape, kind))
        layers[place][mask] = number
        places[number] = place
    return layers, places


def segs_among(paths: Sequence[Path]) -> list[Path]:
    """The files of label files that are DICOM SEG; none where any has another format. Damaged ones are left out: reading says why."""
    if not all(path.is_dir() or path.suffix.lower() == ".dcm" for path in paths):
        return []
    return [file for path in paths if (file := seg_file(path)) is not None]
