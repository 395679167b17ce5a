"""Which series of a study a rule takes: files in, lists of slices out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg3d.data.grid_wording import describe
from medseg3d.data.reading import GRID_TOLERANCE_VOXELS, grid_difference
from medseg3d.errors import ImageReadError
from medseg3d.geometry import Geometry
from medseg3d.images.dicom import dicom_files, read_header
from medseg3d.images.dicom_series import Series, find_series
from medseg3d.images.dicom_volumes import Volume, separate_volumes
from medseg3d.listening.rules import Channel, Rule, SeriesFilter
from medseg3d.wording import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The series of volumes in the folder of a study, and how many files were left out as no slice, or are damaged."""

    series: tuple[Series, ...]
    num_left_out: int
    num_damaged: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """The files of one prediction, ``counts`` of them for each channel (empty for one channel), and how many slices they hold."""

    paths: tuple[Path, ...]
    num_slices: int
    counts: tuple[int, ...] = ()


def look_at(folder: Path) -> Study:
    """Read the headers of a study; a damaged file costs the series of its folder, which may be a slice shorter without it."""
    found = find_series(dicom_files(folder))
    broken = {path.parent for path, _ in found.damaged}
    series = tuple(each for each in found.series if broken.isdisjoint(each.folders))
    return Study(series=series, num_left_out=len(found.left_out), num_damaged=len(found.damaged))


def chosen(study: Study, rule: Rule) -> tuple[list[Picked], str]:
    """The files of each volume that a rule takes, those of the longest series first; and why something that fits is not taken: a volume
    with slices missing, or a study whose series fit a rule of several channels in part."""
    if rule.channel:
        return _one_of_each_channel(study, rule)
    fitting = _fitting(study, rule)
    if rule.at_most:
        fitting = fitting[: rule.at_most]
    volumes = [volume for each in fitting for volume in separate_volumes(each.files)]
    cut = next((volume for volume in volumes if volume.num_missing), None)
    reason = "" if cut is None else f"{cut.part}: {counted(cut.num_missing, 'slice')} missing, which other volumes of the series have"
    return [Picked(paths=_paths(volume), num_slices=len(volume.files)) for volume in volumes if not volume.num_missing], reason


def _fitting(study: Study, *filters: SeriesFilter) -> list[Series]:
    """Those that fit all filters, those of most slices first."""
    return sorted((each for each in study.series if all(fits(each, one) for one in filters)), key=lambda each: -each.num_slices)


def _paths(volume: Volume) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(file.path for file in volume.files))  # a file of many frames is one


def _one_of_each_channel(study: Study, rule: Rule) -> tuple[list[Picked], str]:
    """The first series of each channel that lie on one grid; nothing is resampled."""
    candidates = {
        channel.name: [
            volume for each in _fitting(study, rule, channel) for volume in separate_volumes(each.files) if not volume.num_missing
        ]
        for channel in rule.channel
    }
    missing = [name for name, volumes in candidates.items() if not volumes]
    if len(missing) == len(candidates):
        return [], ""  # a study of something else
    if missing:
        return [], f"no series fits the channel {missing[0]}"
    first, *others = rule.channel
    reason = ""
    for anchor in candidates[first.name]:
        taken, reason = _on_grid_of(anchor, first, others, candidates)
        if taken:
            paths = [_paths(volume) for volume in taken]
            counts = tuple(map(len, paths))
            return [Picked(paths=tuple(path for each in paths for path in each), num_slices=len(anchor.files), counts=counts)], ""
    return [], reason


def _on_grid_of(anchor: Volume, first: Channel, others: Sequence[Channel], candidates: dict[str, list[Volume]]) -> tuple[list[Volume], str]:
    taken = [anchor]
    grid = _grid(anchor)
    if grid is None:
        return [], f"the series of the channel {first.name} lies on no regular grid"
    for channel in others:
        reason = f"the series of the channel {channel.name} lies on no regular grid"
        for volume in candidates[channel.name]:
            own = _grid(volume)
            if own is None or any(volume.files == other.files for other in taken):
                continue
            difference = grid_difference(grid, own)
            if difference.is_same_grid(GRID_TOLERANCE_VOXELS):
                taken.append(volume)
                break
            reason = (
                f"the series of the channel {channel.name} does not lie on the grid of {first.name} ({describe(difference)}), and "
                f"nothing is "
                "resampled: send series that were registered onto one grid"
            )
        else:
            return [], reason
    return taken, ""


def _grid(volume: Volume) -> Geometry | None:
    paths = _paths(volume)
    try:
        return read_header(paths[0].parent, paths).geometry
    except ImageReadError:
        return None


def fits(series: Series, rule: SeriesFilter) -> bool:
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
