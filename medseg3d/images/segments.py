"""Segmentations with named segments (3D Slicer's ``.seg.nrrd``): a path in, the segments and the layers that hold them out.

Segments that overlap lie in several layers; a value names a segment within its layer only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError, LabelValueError
from medseg3d.images.header import ImageHeader, ending_of

MAX_SEGMENTS = 4096
"""As many label values as a label map may have."""
_UNTOLD = re.compile(r"segment[_ -]?\d*", re.IGNORECASE)
_KEY = re.compile(r"Segment(\d{1,4})_(Name|LabelValue|Layer)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A name, and the voxels of one layer that hold its value."""

    name: str
    value: int
    layer: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """Segments in the order of the file; ``layers`` are integer arrays (x, y, z) on the grid of ``header``, which may be a part of the
    image's."""

    header: ImageHeader
    layers: tuple[np.ndarray, ...]
    segments: tuple[Segment, ...]

    def mask(self, segment: Segment) -> np.ndarray:
        """The voxels of a segment."""
        found: np.ndarray = self.layers[segment.layer] == segment.value
        return found


def read_segmentation(path: Path) -> Segmentation | None:
    """The segmentation in a file; None for files whose voxels have values without names. Raises :class:`ImageReadError` for damage."""
    from medseg3d.images.opening import reading

    if path.is_dir() or ending_of(path).endswith(".dcm"):
        return _read_dicom(path)
    if ending_of(path) not in (".seg.nrrd", ".nrrd"):
        return None
    with reading(path):
        return _read_nrrd(path)


def segments_named(path: Path) -> dict[int, str]:
    """By its number the name of each segment of a ``.seg.nrrd`` or DICOM SEG, from the header alone; empty for all other files.

    Names that 3D Slicer gives by itself (``Segment_1``) say nothing and are left out.
    """
    from medseg3d.images.opening import reading

    if path.is_dir() or ending_of(path).endswith(".dcm"):
        from medseg3d.images import dicom_seg

        if (seg := dicom_seg.seg_file(path)) is None:
            return {}
        with reading(seg):
            names, _ = dicom_seg.segment_names(seg)
    elif ending_of(path) == ".seg.nrrd":
        from medseg3d.images import nrrd

        with reading(path):
            _, pairs = nrrd.read_layers(path)
            names = {each.value: each.name for each in segments_of(path, pairs, num_layers=MAX_SEGMENTS)}
    else:
        return {}
    return {number: name for number, name in names.items() if not _UNTOLD.fullmatch(name.strip())}


def _read_dicom(path: Path) -> Segmentation | None:
    from medseg3d.images import dicom_seg
    from medseg3d.images.opening import reading

    with reading(path):
        seg = dicom_seg.seg_file(path)
        return None if seg is None else dicom_seg.read_seg(seg)


def _read_nrrd(path: Path) -> Segmentation | None:
    from medseg3d.images import nrrd, text_header

    parsed, pairs = nrrd.read_layers(path)
    header = text_header.image_header(path, "seg.nrrd", parsed)
    segments = segments_of(path, pairs, num_layers=header.num_volumes)
    if not segments:
        return None
    numbers = range(header.num_volumes)
    layers = tuple(text_header.read_image(path, "seg.nrrd", parsed, volume=number).array for number in numbers)
    if any(layer.dtype.kind not in "iu" for layer in layers):
        raise ImageReadError(
            f"{path}: its segments are stored as {layers[0].dtype}; expected whole numbers. Save it anew as binary labelmap."
        )
    return Segmentation(header=header, layers=layers, segments=segments)


def segments_of(path: Path, pairs: Mapping[str, str], *, num_layers: int) -> tuple[Segment, ...]:
    """The segments that the key/value pairs of a header name; older files have one layer, and values from 1 on in their order."""
    fields: dict[int, dict[str, str]] = {}
    for key, text in pairs.items():
        if match := _KEY.fullmatch(key):
            fields.setdefault(int(match[1]), {})[match[2]] = text.strip()
    found = []
    for place, (number, known) in enumerate(sorted(fields.items()), 1):
        value, layer = known.get("LabelValue", str(place)), known.get("Layer", "0")
        if not (re.fullmatch(r"\d{1,9}", value) and re.fullmatch(r"\d{1,4}", layer) and int(layer) < num_layers):
            raise ImageReadError(
                f"{path}: segment {number} has the value {value[:20]!r} in layer {layer[:20]!r}; the file has {num_layers}."
            )
        found.append(Segment(name=known.get("Name") or f"Segment_{number}", value=int(value), layer=int(layer)))
    if len(found) > MAX_SEGMENTS:
        raise ImageReadError(f"{path}: more than {MAX_SEGMENTS} segments.")
    return tuple(found)


def merged(segmentation: Segmentation, path: Path) -> np.ndarray:
    """One label map of the values in the file, where no two segments share a voxel or a value.

    Raises :class:`LabelValueError` otherwise: a label map has one value per voxel, and which one is for people to say.
    """
    if len(segmentation.layers) == 1:
        return segmentation.layers[0]
    values = [segment.value for segment in segmentation.segments]
    twice = [segment.name for segment in segmentation.segments if values.count(segment.value) > 1]
    if twice:
        raise LabelValueError(
            f"{path}: a segmentation with {len(segmentation.layers)} layers, in which {', '.join(twice[:5])} have the same value. By their "
            "names medseg3d correct reads them; for a dataset, collapse the layers in 3D Slicer (Segmentations, Binary labelmap layers)."
        )
    result = np.array(segmentation.layers[0])
    for layer in segmentation.layers[1:]:
        if (both := int(np.count_nonzero((result != 0) & (layer != 0)))) > 0:
            raise LabelValueError(
                f"{path}: a segmentation with {len(segmentation.layers)} layers, whose segments overlap in {both} voxels; a label map has "
                "one value per voxel. Name the segments as regions in dataset.json and use medseg3d correct, or collapse the layers."
            )
        np.maximum(result, layer, out=result, casting="same_kind")
    return result
