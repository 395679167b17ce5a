"""The series that a result belongs to: a folder or its files go in, what its slices share, and each slice as pydicom knows it, come out.

Headers are read by our own reader, so that no foreign header reaches another library; what is copied is checked value by value.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg3d.errors import InputError
from medseg3d.geometry import Geometry
from medseg3d.images.dicom import holds_series, series_slices
from medseg3d.images.dicom_file import DicomFile, looks_like_dicom
from medseg3d.images.dicom_tags import NUMBERS
from medseg3d.images.itk import LPS_TO_RAS
from medseg3d.images.opening import reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight")
STUDY = ("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription")
MUST_BE_THERE = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", *STUDY[1:6])
"""Empty where the series does not tell (type 2)."""
REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
"""Without these nothing can refer to a slice."""


UID = r"[0-9]+(?:\.[0-9]+){1,63}"
_DATE, _TIME = r"\d{8}", r"(?:[01]\d|2[0-3])(?:[0-5]\d(?:[0-5]\d(?:\.\d{1,6})?)?)?"
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
PATTERNS = {
    "PatientBirthDate": _DATE,
    "StudyDate": _DATE,
    "StudyTime": _TIME,
    "PatientSex": "[MFO]",
    "PatientAge": r"\d{3}[DWMY]",
    "PatientSize": _NUMBER,
    "PatientWeight": _NUMBER,
    "SeriesNumber": r"[+-]?\d{1,9}",
    "InstanceNumber": r"[+-]?\d{1,9}",
    **dict.fromkeys((*REQUIRED, "FrameOfReferenceUID"), UID),
}
"""Of values that are no free text (PS3.5, 6.2); foreign headers hold whatever somebody typed. Old scanners' UIDs have leading zeros."""
MAX_CHARACTERS = {"StudyID": 16, "AccessionNumber": 16, "PatientSize": 16, "PatientWeight": 16}
"""Of short values; of all others 64."""
CUT = ("StudyDescription", "ReferringPhysicianName", "PositionReferenceIndicator")
"""What is too long is cut; of what others are found by it would be another value."""
NAME_GROUPS = 3
"""A person's name in letters, ideographs and as it sounds, with = between and 64 characters each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSeries:
    """The slices of a series in the order of the image's third axis, and the image's grid."""

    slices: tuple[DicomFile, ...]
    geometry: Geometry

    @property
    def first(self) -> DicomFile:
        """For what all slices share."""
        return self.slices[0]

    @property
    def modality(self) -> str:
        """CT, MR, PT …; OT where the series does not tell."""
        modality = self.first.text("Modality")
        return modality if re.fullmatch(r"[A-Z]{2,16}", modality) else "OT"

    @property
    def frame_of_reference(self) -> str:
        """That of the slices; one of the series' own where they have none, or each has another."""
        uids = {file.text("FrameOfReferenceUID") for file in self.slices}
        return (
            uids.pop()
            if len(uids) == 1 and allowed("FrameOfReferenceUID", next(iter(uids)))
            else uid_of("frame", self.first.text("SeriesInstanceUID"))
        )

    @property
    def is_multi_frame(self) -> bool:
        """The slices are frames of one file."""
        return self.first.frame > 0

    @property
    def frame_order(self) -> tuple[int, ...]:
        """The slices in the order in which a multi-frame file has them."""
        return tuple(sorted(range(len(self.slices)), key=lambda index: self.slices[index].frame))

    def datasets(self) -> list[Dataset]:
        """Each slice as pydicom knows it: patient, study, series, and its place in space; one for all frames of a multi-frame file."""
        if self.is_multi_frame:
            return [self._multi_frame()]
        return [self._dataset(index) for index in range(len(self.slices))]

    def _multi_frame(self) -> Dataset:
        """The file that the slices are frames of, with their places as functional groups."""
        from pydicom.dataset import Dataset

        dataset, shared, measures, orientation = self._dataset(0), Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
        orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
        dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], []
        for index in self.frame_order:
            group, position = Dataset(), Dataset()
            position.ImagePositionPatient = self._dataset(index).ImagePositionPatient
            group.PlanePositionSequence = [position]
            dataset.PerFrameFunctionalGroupsSequence.append(group)
        dataset.NumberOfFrames = len(self.slices)
        for tag in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness"):
            delattr(dataset, tag)
        return dataset

    def _dataset(self, index: int) -> Dataset:
        from pydicom.dataset import Dataset

        file, dataset = self.slices[index], Dataset()
        dataset.SpecificCharacterSet = "ISO_IR 192"  # texts are Unicode by now
        copy_tags(file, dataset, (*PATIENT, *STUDY, "SeriesNumber", "InstanceNumber", "PositionReferenceIndicator", *REQUIRED))
        dataset.Modality = self.modality
        dataset.FrameOfReferenceUID = self.frame_of_reference
        dataset.Columns, dataset.Rows = self.geometry.shape[:2]
        for tag, count in (("ImageOrientationPatient", 6), ("ImagePositionPatient", 3), ("PixelSpacing", 2)):
            setattr(dataset, tag, [decimal(value) for value in file.numbers(tag, count)])
        dataset.SliceThickness = decimal(self.geometry.spacing[2])
        return dataset

    def position(self, index: int) -> np.ndarray:
        """Of the first pixel of a slice in mm (LPS), as the slice itself says."""
        return self.slices[index].numbers("ImagePositionPatient", 3)

    def points(self, index: int, pixels: np.ndarray) -> np.ndarray:
        """Places (column, row) in a slice → mm (LPS)."""
        linear = LPS_TO_RAS @ self.geometry.matrix[:3, :2]
        return np.asarray(self.position(index) + pixels @ linear.T)


def source_series(path: Path, files: Sequence[Path] = ()) -> SourceSeries:
    """The series in a folder, whose slices may be named; raises :class:`InputError` where it is none, or nothing can refer to it."""
    is_series = bool(files) or (holds_series(path) if path.is_dir() else looks_like_dicom(path))
    if not is_series:
        raise InputError(
            f"{path.name}: a DICOM result refers to the series that it was made of, and this image is no DICOM series. Predict the series "
            "itself, or choose --output-type nifti."
        )
    with reading(path):
        slices, header = series_slices(path, files)
    for file in slices:
        if missing := [tag for tag in REQUIRED if not allowed(tag, file.text(tag))]:
            raise InputError(f"{file.path}: has no valid {missing[0]} {NUMBERS[missing[0]]}, so that no DICOM result can refer to it.")
    uids = {file.text("SOPInstanceUID") for file in slices}
    if any(file.frame for file in slices) and len(uids) > 1:
        raise InputError(
            f"{path.name}: a series of {len(uids)} multi-frame files, and a DICOM result can refer to one. Choose --output-type nifti."
        )
    if allowed("PatientID", slices[0].text("PatientID")) != slices[0].text("PatientID"):
        raise InputError(
            f"{slices[0].path}: its PatientID is none (over 64 characters, or a backslash): the result could be taken for another's."
        )
    return SourceSeries(slices=slices, geometry=header.geometry)


def copy_tags(file: DicomFile, dataset: Dataset, names: Sequence[str]) -> None:
    """Copy what a header says; values that the standard does not allow are left out, or empty where a value must be there."""
    for name in names:
        value = allowed(name, file.text(name))
        if value or name in MUST_BE_THERE:
            setattr(dataset, name, value)


def allowed(name: str, text: str) -> str:
    """The value of a tag as the standard allows it, else empty.

    >>> allowed("PatientBirthDate", "19700101"), allowed("PatientBirthDate", "1.1.70"), allowed("PatientName", "A\\\\B")
    ('19700101', '', 'A B')
    """
    text = one_line(text)
    pattern, most = PATTERNS.get(name), MAX_CHARACTERS.get(name, 64)
    if name == "PatientName":
        return "=".join(group[:64] for group in text.split("=")[:NAME_GROUPS])
    if name in CUT:
        return text[:most].strip()
    if len(text) > most or (pattern is not None and not re.fullmatch(pattern, text)):
        return ""
    if name.endswith("Date") and text:
        try:
            date.fromisoformat(f"{text[:4]}-{text[4:6]}-{text[6:]}")
        except ValueError:
            return ""
    return text


def one_line(text: str) -> str:
    """Without what no string of DICOM may hold: backslashes, which stand between values, and control characters."""
    return "".join(" " if sign == "\\" or not sign.isprintable() else sign for sign in text).strip()


def decimal(value: float) -> str:
    """A number as DICOM's decimal strings take it: at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value) or 0.0)  # no minus zero


def uid_of(*parts: str | bytes) -> str:
    """A UID that is the same for the same parts: 2.25 and a number of 128 bits (PS3.5 B.2), so that nothing is stored twice.

    >>> uid_of("a", "b") == uid_of("a", "b"), uid_of("ab") == uid_of("a", "b"), len(uid_of("a")) <= 64
    (True, False, True)
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return f"2.25.{int.from_bytes(digest.digest(), 'big')}"
