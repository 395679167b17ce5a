"""From DICOM files to series: what is no volume is left out with a reason, copies are dropped, the rest is put together by its series."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.images.dicom_file import DicomFile, pixel_bytes, read_dicom_file
from medseg3d.images.dicom_frames import frames_of
from medseg3d.images.opening import reading
from medseg3d.wording import counted

NOT_AN_IMAGE = {
    "1.2.840.10008.1.3.10": "DICOMDIR",
    "1.2.840.10008.5.1.4.1.1.4.2": "MR spectroscopy",
    "1.2.840.10008.5.1.4.1.1.9": "waveform",
    "1.2.840.10008.5.1.4.1.1.11": "presentation state",
    "1.2.840.10008.5.1.4.1.1.66.1": "spatial registration",
    "1.2.840.10008.5.1.4.1.1.66.2": "fiducials",
    "1.2.840.10008.5.1.4.1.1.66.3": "deformable registration",
    "1.2.840.10008.5.1.4.1.1.66.4": "DICOM SEG",
    "1.2.840.10008.5.1.4.1.1.66.5": "surface segmentation",
    "1.2.840.10008.5.1.4.1.1.66.6": "tractography",
    "1.2.840.10008.5.1.4.1.1.66.7": "DICOM label map SEG",
    "1.2.840.10008.5.1.4.1.1.66": "raw data",
    "1.2.840.10008.5.1.4.1.1.67": "real world value mapping",
    "1.2.840.10008.5.1.4.1.1.88": "structured report",
    "1.2.840.10008.5.1.4.1.1.104": "encapsulated document",
    "1.2.840.10008.5.1.4.1.1.481.3": "RT structure set",
    "1.2.840.10008.5.1.4.1.1.481": "radiotherapy object",
}
"""SOP classes (each with those below it) that hold no image; the longest that fits names it."""
_STORAGE = "1.2.840.10008.5.1.4.1.1."
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
FEW_SLICES = 5
"""A series with fewer is a scout where there is one with more of the same patient."""
SCOUT_DEGREES = 30.0
"""Slices that lie this far from the plane of the others are scouts, no damaged slices."""
NEXT_SLICE_TOLERANCE = 0.1
"""Of a slice distance: a slice that lies so exactly behind the end of a stack belongs to it."""
_ASTRAY = (
    "{path}: names another series, study or patient than the slices beside it, and continues their stack; its header is damaged. Copy or "
    "download it again, or take it away."
)
MAX_SCOUT_SHARE = 0.2
"""Of a series: more slices in another plane are no scouts that got into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The slices of one series, in no order; ``notes`` say what was dropped."""

    files: tuple[DicomFile, ...]
    notes: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where its files lie."""
        return tuple(dict.fromkeys(file.path.parent for file in self.files))

    @property
    def first(self) -> DicomFile:
        """For what all files share."""
        return self.files[0]

    @property
    def num_slices(self) -> int:
        """Slices, those of files with several frames counted."""
        frames = (file.text("NumberOfFrames") for file in self.files)
        return sum(int(text) if text.isdecimal() and len(text) < 6 else 1 for text in frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSeries:
    """What DICOM files are: series, files that were left out with the reason, and damaged files with what is wrong."""

    series: tuple[Series, ...]
    left_out: tuple[tuple[Path, str], ...]
    damaged: tuple[tuple[Path, str], ...]


def find_series(paths: Iterable[Path]) -> FoundSeries:
    """Read the headers of DICOM files and put them together by patient, study and series; sorted by path."""
    groups: dict[tuple[str, ...], list[DicomFile]] = {}
    left_out: list[tuple[Path, str]] = []
    damaged: list[tuple[Path, str]] = []
    for path in sorted(paths):
        try:
            with reading(path):
                file = read_dicom_file(path)
        except ImageReadError as error:
            damaged.append((path, str(error)))
            continue
        if file.pixels is None and not file.damage and _is_image_class(file.text("SOPClassUID")):
            file = replace(file, damage=f"{path}: the DICOM file is cut off: it holds no pixel data. Copy or download it again.")
        reason = why_no_slice(file)
        if reason:
            left_out.append((path, reason))
            continue
        try:
            slices = frames_of(file)
        except ImageReadError as error:
            damaged.append((path, str(error)))
            continue
        uid = file.text("SeriesInstanceUID")
        key = (file.text("PatientID"), file.text("StudyInstanceUID"), uid) if uid else (str(path.parent),)
        groups.setdefault(key, []).extend(slices)
    series: list[Series] = []
    for files in groups.values():
        kept, notes = _without_copies(files)
        kept, scouts = _without_scouts(kept)
        left_out.extend((scout.path, "scout: lies in another plane than its series") for scout in scouts)
        series.extend(Series(files=tuple(part), notes=notes) for part in _by_folder(kept))
    series, few = _without_short(series)
    for each in few:
        if any(_continues(each, longer) for longer in series):
            damaged.append((each.first.path, _ASTRAY.format(path=each.first.path)))
        else:
            left_out.extend((file.path, f"scout: {counted(each.num_slices, 'slice')} beside longer series") for file in each.files)
    return FoundSeries(series=tuple(series), left_out=tuple(sorted(set(left_out))), damaged=tuple(damaged))


def why_no_slice(file: DicomFile) -> str:
    """Why a file is no slice of a volume; empty for those that are one, damaged slices among them."""
    kind = file.text("SOPClassUID")
    name = _name_of_class(kind)
    if name:
        return name
    if file.damage:
        return ""
    if file.pixels is None:
        return f"no pixel data ({file.text('Modality')[:16] or 'unknown'})"
    types = file.text("ImageType").upper().split("\\")
    if "LOCALIZER" in types:
        return "localizer"
    if "MOSAIC" in types:
        return "mosaic, many slices in one picture; convert it to NIfTI, for instance with dcm2niix"
    has_place = file.text("ImagePositionPatient") and file.text("ImageOrientationPatient")
    is_capture = kind == _SECONDARY_CAPTURE or kind.startswith(f"{_SECONDARY_CAPTURE}.")
    if is_capture and (not has_place or file.text("SamplesPerPixel") not in ("", "1")):
        return "secondary capture"  # a screenshot; those that ITK and others write of volumes are placed in space
    return ""


def _name_of_class(uid: str) -> str:
    """What a class without images holds; empty for all others."""
    parts = uid.split(".")
    names = (NOT_AN_IMAGE.get(".".join(parts[:length])) for length in range(len(parts), 0, -1))
    return next((name for name in names if name), "")


def _is_image_class(uid: str) -> bool:
    return uid.startswith(_STORAGE) and not _name_of_class(uid)


def describe_left_out(left_out: Sequence[tuple[Path, str]], root: Path) -> tuple[str, ...]:
    """One line for the files of a folder that were left out for the same reason."""
    by_reason: dict[tuple[Path, str], list[Path]] = {}
    for path, reason in left_out:
        by_reason.setdefault((path.parent, reason), []).append(path)
    lines = []
    for (_, reason), paths in by_reason.items():
        name = paths[0].relative_to(root) if paths[0].is_relative_to(root) else paths[0]
        lines.append(f"left out {name}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: {reason}")
    return tuple(lines)


def _without_copies(files: Sequence[DicomFile]) -> tuple[list[DicomFile], tuple[str, ...]]:
    """The first of files that name one slice (SOPInstanceUID) at one place with the same pixel data."""
    names = [(f"{file.text('SOPInstanceUID')} {file.frame}".removesuffix(" 0"), file.text("ImagePositionPatient")) for file in files]
    counts = Counter(names)
    seen: set[tuple[str, str, bytes]] = set()
    kept: list[DicomFile] = []
    copies: list[DicomFile] = []
    for file, (uid, place) in zip(files, names, strict=True):
        if not uid or counts[uid, place] == 1 or file.pixels is None or file.damage:
            kept.append(file)
            continue
        content = (uid, place, hashlib.blake2b(pixel_bytes(file)).digest())
        (copies if content in seen else kept).append(file)
        seen.add(content)
    if not copies:
        return kept, ()
    return kept, (f"{len(copies)} copies of slices were dropped ({copies[0].path.name}{', …' if len(copies) > 1 else ''})",)


def _without_scouts(files: Sequence[DicomFile]) -> tuple[list[DicomFile], list[DicomFile]]:
    """Leave out the few slices of a series that lie in quite another plane than all others."""
    planes = _planes(files)
    largest = max(map(len, planes), default=0)
    scouts = {id(file) for plane in planes if len(plane) < largest for file in plane}
    if not scouts or len(scouts) > MAX_SCOUT_SHARE * len(files):
        return list(files), []
    return [file for file in files if id(file) not in scouts], [file for file in files if id(file) in scouts]


def _planes(files: Sequence[DicomFile]) -> list[list[DicomFile]]:
    """Files that lie in about one plane; those that do not tell are in none."""
    planes: list[tuple[np.ndarray, list[DicomFile]]] = []
    for file in files:
        try:
            orientation = file.numbers("ImageOrientationPatient", 6)
        except ImageReadError:
            continue
        normal = np.cross(orientation[:3], orientation[3:])
        for found, members in planes:
            if abs(float(found @ normal)) > np.cos(np.radians(SCOUT_DEGREES)):
                members.append(file)
                break
        else:
            planes.append((normal, [file]))
    return [members for _, members in planes]


def _by_folder(files: Sequence[DicomFile]) -> list[list[DicomFile]]:
    """One series, whose files may fill several folders; apart where each folder holds a whole, under one and the same UID.

    Slices are numbered once in a series: where two folders hold the same numbers, they are not one.
    """
    folders: dict[Path, list[DicomFile]] = {}
    for file in files:
        folders.setdefault(file.path.parent, []).append(file)
    numbers = [{file.text("InstanceNumber") for file in members} - {""} for members in folders.values()]
    if len(folders) > 1 and sum(map(len, numbers)) > len(set().union(*numbers)):
        return list(folders.values())
    return [list(files)]


def _without_short(series: Sequence[Series]) -> tuple[list[Series], list[Series]]:
    """Leave out what has few slices, or several planes, where the same patient has more."""
    num_planes = [len(_planes(each.files)) for each in series]
    longest: dict[str, int] = {}
    for each, planes in zip(series, num_planes, strict=True):
        patient = _patient_of(each)
        longest[patient] = max(longest.get(patient, 0), 0 if planes > 1 else each.num_slices)
    kept: list[Series] = []
    few: list[Series] = []
    for each, planes in zip(series, num_planes, strict=True):
        is_scout = each.num_slices < FEW_SLICES or planes > 1
        is_damaged = any(file.damage for file in each.files)
        (few if is_scout and longest[_patient_of(each)] >= FEW_SLICES and not is_damaged else kept).append(each)
    return kept, few


def _continues(short: Series, longer: Series) -> bool:
    """Whether a single slice is the next of a stack in its folder: then its header names the wrong series."""
    shared = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")
    if len(short.files) > 1 or short.folders != longer.folders or any(short.first.text(tag) != longer.first.text(tag) for tag in shared):
        return False
    try:
        places = np.array([file.numbers("ImagePositionPatient", 3) for file in (*short.files, *longer.files)])
        orientation = short.first.numbers("ImageOrientationPatient", 6)
    except ImageReadError:
        return False
    along = places @ np.cross(orientation[:3], orientation[3:])
    gaps = np.diff(np.sort(along[1:]))
    distances = np.linalg.norm(places[1:] - places[0], axis=1)
    return bool(np.abs(distances.min() - np.median(gaps)) < NEXT_SLICE_TOLERANCE * np.median(gaps))


def _patient_of(series: Series) -> str:
    return series.first.text("PatientID") or series.first.text("StudyInstanceUID")
