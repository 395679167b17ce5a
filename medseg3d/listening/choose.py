"""Which series of a study a rule takes: files in, lists of slices out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.images.dicom import dicom_files
from medseg3d.images.dicom_series import Series, find_series
from medseg3d.images.dicom_volumes import separate_volumes
from medseg3d.listening.rules import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The series of volumes in the folder of a study, and how many files were left out as no slice, or are damaged."""

    series: tuple[Series, ...]
    num_left_out: int
    num_damaged: int


def look_at(folder: Path) -> Study:
    """Read the headers of a study."""
    found = find_series(dicom_files(folder))
    return Study(series=found.series, num_left_out=len(found.left_out), num_damaged=len(found.damaged))


def chosen(study: Study, rule: Rule) -> list[tuple[Path, ...]]:
    """The slices of each volume that a rule takes, those of the longest series first."""
    fitting = sorted((each for each in study.series if fits(each, rule)), key=lambda each: -each.num_slices)
    if rule.at_most:
        fitting = fitting[: rule.at_most]
    return [tuple(file.path for file in volume.files) for each in fitting for volume in separate_volumes(each.files)]


def fits(series: Series, rule: Rule) -> bool:
    """Whether a rule takes a series, by its header."""
    first = series.first

    def finds(pattern: str, tag: str) -> bool:
        return re.search(pattern, first.text(tag), re.IGNORECASE) is not None

    return (
        (not rule.modality or first.text("Modality").upper() == rule.modality.upper())
        and finds(rule.description, "SeriesDescription")
        and not (rule.exclude and finds(rule.exclude, "SeriesDescription"))
        and finds(rule.protocol, "ProtocolName")
        and finds(rule.body_part, "BodyPartExamined")
        and series.num_slices >= rule.min_slices
        and (rule.max_slice_mm is None or slice_distance(series.files) <= rule.max_slice_mm)
    )


def slice_distance(files: Sequence[object]) -> float:
    """The median distance of neighbors in mm; infinite where positions do not tell."""
    try:
        places = np.array([file.numbers("ImagePositionPatient", 3) for file in files])  # type: ignore[attr-defined]
        orientation = files[0].numbers("ImageOrientationPatient", 6)  # type: ignore[attr-defined]
    except ImageReadError:
        return np.inf
    gaps = np.diff(np.unique(np.round(places @ np.cross(orientation[:3], orientation[3:]), 3)))
    return float(np.median(gaps)) if len(gaps) else np.inf
