"""From a folder of patients, studies and series, at any depth or all in one, to the series to predict, each with a name of its own."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg3d.errors import InputError
from medseg3d.images.dicom import dicom_files
from medseg3d.images.dicom_series import FoundSeries, Series, describe_left_out, find_series
from medseg3d.images.dicom_volumes import Volume, separate_volumes
from medseg3d.images.modalities import modality_of
from medseg3d.wording import counted, listed

MAX_PART_LENGTH = 48
"""Of a part of a name, in bytes of UTF-8: three of them with an ending stay below the 255 of file systems."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSeries:
    """One case: the volume's ``files``; ``folder`` is where they lie. ``is_folder`` says that the case is called as its folder."""

    name: str
    folder: Path
    files: tuple[Path, ...]
    is_folder: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """The cases of a folder sorted by name, a line for all that was left out, and (name, reason) of what failed."""

    cases: tuple[NamedSeries, ...]
    left_out: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]


def find_dicom_cases(root: Path, *, channel: str = "", description: str | None = None) -> Intake:
    """Choose the series below a folder: those of the modality that ``channel`` names, where there are any, and whose description
    ``description`` (a regular expression, in any case) is found in.

    A series is called as its folder where that lies directly in ``root`` (or is ``root``) and holds nothing else, all others
    ``PatientID_StudyDATE_SeriesNUMBER``. A damaged file costs the series of its folder. Raises :class:`InputError` where the expression
    is none, or fits no series.
    """
    closed: list[OSError] = []
    found = find_series(dicom_files(root, closed.append))
    lines = list(describe_left_out(found.left_out, root))
    chosen = _chosen(root, found.series, channel, description, lines)
    volumes = [(series, volume) for series in chosen for volume in separate_volumes(series.files)]
    names = _names(root, found, volumes)
    failures = [(_below(root, Path(error.filename)), f"{error.filename}: cannot be looked into ({error.strerror})") for error in closed]
    failures += _failures(root, found, names, volumes)
    failed = {name for name, _ in failures}
    cases = [
        NamedSeries(
            name=name,
            folder=series.first.path.parent if len(series.folders) == 1 else root,
            files=tuple(dict.fromkeys(file.path for file in volume.files)),
            is_folder=is_folder,
        )
        for (series, volume), (name, is_folder) in zip(volumes, names, strict=True)
        if name not in failed
    ]
    return Intake(cases=tuple(sorted(cases, key=lambda case: case.name)), left_out=tuple(lines), failures=tuple(failures))


def _chosen(root: Path, series: Sequence[Series], channel: str, description: str | None, lines: list[str]) -> list[Series]:
    """The series that are wanted; a line for each other."""
    chosen = list(series)
    if description is not None:
        try:
            pattern = re.compile(description, re.IGNORECASE)
        except re.error as error:
            raise InputError(f"--series-description {description!r}: not a regular expression ({error}).") from None
        if not series:
            raise InputError(f"{root}: --series-description {description!r} chooses among DICOM series, and there are none.")
        chosen = [each for each in series if pattern.search(each.first.text("SeriesDescription"))]
        if not chosen:
            there = listed(sorted({each.first.text("SeriesDescription") or "without a description" for each in series}))
            raise InputError(f"{root}: no series has a description like {description!r}; found: {there}.")
        lines += [f"{_described(root, each)}: not like {description!r}" for each in series if each not in chosen]
    wanted = modality_of(channel)
    fitting = [each for each in chosen if each.first.text("Modality") == wanted]
    if fitting:
        others = [each for each in chosen if each not in fitting]
        lines += [f"{_described(root, each)}: modality {each.first.text('Modality')}, the model takes {wanted}" for each in others]
        return fitting
    return chosen


def _described(root: Path, series: Series) -> str:
    name = series.first.text("SeriesDescription")[:64] or "without a description"
    return f"left out the series {name} ({counted(len(series.files), 'file')}, first {series.first.path.relative_to(root)})"


def _names(root: Path, found: FoundSeries, volumes: Sequence[tuple[Series, Volume]]) -> list[tuple[str, bool]]:
    """A name for each volume, and whether it is that of its folder; equal names get a checksum of what they are."""
    in_folder = Counter(folder for series in found.series for folder in series.folders)
    names = []
    for series, volume in volumes:
        folder = series.first.path.parent
        is_alone = series.folders == (folder,) and in_folder[folder] == 1 and not volume.part
        is_folder = is_alone and root in (folder, folder.parent) and _is_unicode(folder.name)
        names.append((_folder_name(folder) if is_folder else _identifier(series, volume), is_folder))
    checksums = [_checksum(series, volume) for series, volume in volumes]
    places = [_short(_below(root, series.first.path)) for series, _ in volumes]  # of copies with changed values, all else is the same
    for telling in (checksums, places):
        counts = Counter(name.casefold() for name, _ in names)
        names = [
            (name if counts[name.casefold()] == 1 else f"{name}-{told}", own) for (name, own), told in zip(names, telling, strict=True)
        ]
    return names


def _folder_name(folder: Path) -> str:
    return unicodedata.normalize("NFC", folder.name or folder.resolve().name)


def _is_unicode(name: str) -> bool:
    """Bytes that are no UTF-8 come as surrogates, which no file that we write could be called by."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _below(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path != root and path.is_relative_to(root) else path.name


def _identifier(series: Series, volume: Volume) -> str:
    first = series.first
    study = _safe(first.text("StudyDate")) or _safe(first.text("StudyID")) or _short(first.text("StudyInstanceUID"))
    number = _safe(first.text("SeriesNumber")) or _short(first.text("SeriesInstanceUID"))
    part = f"_{_safe(volume.part)}" if volume.part else ""
    return f"{_safe(first.text('PatientID')) or 'unknown'}_Study{study}_Series{number}{part}"


def _safe(text: str) -> str:
    """Letters and digits of any script, with - and . between them; anything else becomes -.

    >>> _safe("Müller^Anna / 7")
    'Müller-Anna-7'
    """
    kept = "".join(c if c.isalnum() or c in "._-" or unicodedata.category(c)[0] == "M" else "-" for c in text)
    kept = re.sub(r"-{2,}", "-", kept).strip("-._")
    return kept.encode()[:MAX_PART_LENGTH].decode(errors="ignore")


def _short(text: str) -> str:
    return hashlib.blake2b(os.fsencode(text), digest_size=3).hexdigest()  # bytes of a path may be no UTF-8


def _checksum(series: Series, volume: Volume) -> str:
    first = series.first
    where = "" if first.text("SOPInstanceUID") else str(first.path)
    return _short(
        "\n".join((first.text("StudyInstanceUID"), first.text("SeriesInstanceUID"), first.text("SOPInstanceUID"), volume.part, where))
    )


def _failures(
    root: Path, found: FoundSeries, names: Sequence[tuple[str, bool]], volumes: Sequence[tuple[Series, Volume]]
) -> list[tuple[str, str]]:
    """A damaged file is a slice of the one series in its folder; where there are several or none, it stands for itself. A volume with
    slices missing is no case."""
    failures = {
        name: f"{series.first.path.parent}: {volume.num_missing} of {volume.num_missing + len(volume.files)} slices are missing, which "
        "other volumes of the series have. Copy or export them again."
        for (name, _), (series, volume) in zip(names, volumes, strict=True)
        if volume.num_missing
    }
    for path, reason in found.damaged:
        beside = {name for (name, _), (series, _) in zip(names, volumes, strict=True) if path.parent in series.folders}
        is_left_out = not beside and any(path.parent in series.folders for series in found.series)
        if is_left_out:
            continue
        failures.setdefault(beside.pop() if len(beside) == 1 else _below(root, path), reason)
    return list(failures.items())
