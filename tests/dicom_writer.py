"""Tiny DICOM series for tests, written by pydicom: what a scanner would write, and one fault at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

CT, MR, PET = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"
SHAPE = (5, 4, 6)
"""Columns, rows, slices."""


def numbers(values: Any) -> list[str]:
    return [f"{value:.7g}" for value in values]


def volume(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    """Values (x, y, z) that differ from voxel to voxel."""
    return np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape).astype(np.int16) - 20


def slice_of(
    pixels: np.ndarray,
    index: int = 0,
    *,
    kind: str = CT,
    patient: str = "p1",
    study: str = "1.2.3",
    series: str = "1.2.3.1",
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    step: Sequence[float] | None = None,
    **tags: Any,
) -> FileDataset:
    """The slice ``index`` of a series of stored values (x, y); ``tags`` by keyword, None takes one away."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, f"{series}.{index + 1}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    normal = np.cross(orientation[:3], orientation[3:])
    found: dict[str, Any] = {
        "SOPClassUID": kind,
        "SOPInstanceUID": f"{series}.{index + 1}",
        "Modality": {CT: "CT", MR: "MR", PET: "PT"}.get(kind, "OT"),
        "PatientID": patient,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "SeriesNumber": series.split(".")[-1],
        "StudyDate": "20240131",
        "FrameOfReferenceUID": "1.2.9",
        "InstanceNumber": index + 1,
        "ImageOrientationPatient": numbers(orientation),
        "ImagePositionPatient": numbers(np.array([10, 20, 5]) + index * np.asarray(2.5 * normal if step is None else step)),
        "PixelSpacing": ["0.7", "0.5"],
        "SliceThickness": "3",
        "Rows": pixels.shape[1],
        "Columns": pixels.shape[0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "HighBit": 8 * pixels.dtype.itemsize - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": np.ascontiguousarray(pixels.T).tobytes(),
    }
    for name, value in {**found, **tags}.items():
        if value is not None:
            setattr(file, name, value)
    file["PixelData"].VR = "OW"
    return file


def write_series(
    folder: Path,
    array: np.ndarray | None = None,
    *,
    names: Callable[[int], str] = "{:03d}.dcm".format,
    change: Callable[[FileDataset, int], None] = lambda *_: None,
    **tags: Any,
) -> Path:
    """A file per slice of stored values (x, y, z); ``change`` sees each before it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = volume() if array is None else array
    for index in range(stored.shape[2]):
        file = slice_of(stored[:, :, index], index, **tags)
        change(file, index)
        file.save_as(folder / names(index), enforce_file_format=True)
    return folder


ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


def write_enhanced(
    path: Path,
    array: np.ndarray | None = None,
    *,
    order: Sequence[int] | None = None,
    syntax: str = ExplicitVRLittleEndian,
    is_delimited: bool = False,
    change: Callable[[Dataset], None] = lambda _: None,
    **tags: Any,
) -> Path:
    """The series of :func:`write_series` as one enhanced multi-frame file; ``order`` says which slice each frame is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = volume() if array is None else array
    numbers_of_slices = list(range(stored.shape[2]) if order is None else order)
    first = slice_of(stored[:, :, 0], 0, **{"kind": ENHANCED_MR, "Modality": "MR", **tags})
    shared, measures, orientation, scale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    orientation.ImageOrientationPatient = first.ImageOrientationPatient
    scale.RescaleIntercept, scale.RescaleSlope, scale.RescaleType = "-5", "1", "US"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [scale]
    groups = []
    for number in numbers_of_slices:
        group, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = slice_of(stored[:, :, number], number, **tags).ImagePositionPatient
        content.DimensionIndexValues, content.StackID = [1, number + 1], "1"
        group.FrameContentSequence, group.PlanePositionSequence = [content], [position]
        groups.append(group)
    first.SharedFunctionalGroupsSequence, first.PerFrameFunctionalGroupsSequence = [shared], groups
    first.NumberOfFrames = len(groups)
    first.PixelData = b"".join(np.ascontiguousarray(stored[:, :, number].T).tobytes() for number in numbers_of_slices)
    first["PixelData"].VR = "OW"
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(first, tag)
    for sequence in (first["SharedFunctionalGroupsSequence"], first["PerFrameFunctionalGroupsSequence"]):
        sequence.is_undefined_length = is_delimited
        for item in sequence.value:
            item.is_undefined_length_sequence_item = is_delimited
    change(first)
    first.file_meta.TransferSyntaxUID = syntax
    first.save_as(path, enforce_file_format=True, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    return path


def write_other(path: Path, kind: str, *, study: str = "1.2.3", patient: str = "p1", **tags: Any) -> Path:
    """A DICOM object without a picture: a report, a plan, a presentation state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = kind, "1.2.7", ExplicitVRLittleEndian
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    found = {
        "SOPClassUID": kind,
        "SOPInstanceUID": "1.2.7",
        "Modality": "OT",
        "PatientID": patient,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": "1.2.3.99",
    }
    for name, value in {**found, **tags}.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


def nested(depth: int) -> Dataset:
    """A sequence in a sequence in a sequence."""
    inner = Dataset()
    inner.SeriesDescription = "deep"
    for _ in range(depth):
        outer = Dataset()
        outer.ReferencedImageSequence = [inner]
        inner = outer
    return inner


def rewrite(path: Path, **tags: Any) -> None:
    """Change tags of a file."""
    file = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(path)
