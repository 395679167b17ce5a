"""A series that holds several volumes, over time or of several contrasts: from its slices to one list per volume."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.images.dicom_file import DicomFile
from medseg3d.images.dicom_kinds import kinds_of, weak_kinds_of

TELLING = {
    "EchoTime": "Echo",
    "InversionTime": "Inversion",
    "FlipAngle": "Flip",
    "DiffusionBValue": "B",
    "TemporalPositionIdentifier": "Time",
    "TriggerTime": "Trigger",
    "AcquisitionNumber": "Acquisition",
    "ImageType": "Type",
    "AcquisitionTime": "At",
    "ComplexImageComponent": "Component",
    "SeriesNumber": "Series",
    "KVP": "KVP",
    "ConvolutionKernel": "Kernel",
    "StackID": "Stack",
}
"""The tags that tell volumes of a series apart, in the order in which they are tried, and what they are called in names of cases."""


MIN_STACK = 3
"""Slices of one kind: two always lie at equal distances."""
EVEN = 0.1
"""Of a slice distance, as for a grid."""
MAX_PLACE_MM = 1e9
"""As for grids of other formats: farther away nothing can be placed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """The slices of one volume; ``part`` names it within its series (``Echo10``), empty where it is the only one.

    ``num_missing`` slices lie where other volumes of the series have some, and this one has none.
    """

    files: tuple[DicomFile, ...]
    part: str = ""
    num_missing: int = 0


def separate_volumes(files: Sequence[DicomFile]) -> tuple[Volume, ...]:
    """One volume per value of the first tag, or pair of tags, that tells them apart: each place once in each, all of one size.

    Where no tag does, the first counts that leaves half of the volumes whole and some with slices missing, as the last one of a scan that
    was stopped. Slices at different places are taken apart where they are of several kinds, and those of each kind are an even stack;
    else they are one volume. So is a series that no tag takes apart; its grid is refused then.
    """
    places = [_place(file) for file in files]
    if None in places:
        return (Volume(files=tuple(files)),)
    if len(set(places)) == len(places):
        return _kinds_apart(files)
    for are_volumes, count in itertools.product((_are_volumes, _are_mostly_volumes), (1, 2)):
        for tags in itertools.combinations(TELLING, count):
            groups: dict[tuple[str, ...], list[int]] = {}
            for index, file in enumerate(files):
                groups.setdefault(tuple(file.text(tag) for tag in tags), []).append(index)
            if len(groups) > 1 and are_volumes([Counter(places[index] for index in group) for group in groups.values()]):
                found = _named(files, tags, groups)
                return tuple(replace(volume, num_missing=len(set(places)) - len(volume.files)) for volume in found)
    return (Volume(files=tuple(files)),)


def _kinds_apart(files: Sequence[DicomFile]) -> tuple[Volume, ...]:
    """A volume per kind of slices, as where magnitude and phase take turns along the stack."""
    kinds, weak = kinds_of(files), weak_kinds_of(files)
    if weak and _take_turns(files, list(zip(*weak.values(), strict=True))):
        kinds = weak | kinds
    stacks = [file.text("StackID") for file in files]
    ways = [kinds] if len(set(stacks)) < 2 or _is_even_stack(files) else [kinds, kinds | {"StackID": stacks}]
    for way in ways:
        groups: dict[tuple[str, ...], list[int]] = {}
        for index, values in enumerate(zip(*way.values(), strict=True)):
            groups.setdefault(values, []).append(index)
        if len(groups) > 1 and all(_is_even_stack([files[index] for index in group]) for group in groups.values()):
            return _named(files, tuple(way), groups)
    return (Volume(files=tuple(files)),)


def _take_turns(files: Sequence[DicomFile], kinds: Sequence[tuple[str, ...]]) -> bool:
    """Whether slices of one kind lie between those of another; one part behind the other is one volume."""
    heights = _heights(files)
    ordered = [kinds[index] for index in np.argsort(heights, kind="stable")]
    return 1 + sum(a != b for a, b in itertools.pairwise(ordered)) > len(set(kinds))


def _heights(files: Sequence[DicomFile]) -> np.ndarray:
    """Along the stack, in mm."""
    positions = np.array([file.numbers("ImagePositionPatient", 3) for file in files])
    direction = positions[np.linalg.norm(positions - positions[0], axis=1).argmax()] - positions[0]
    along: np.ndarray = positions @ direction / max(float(np.linalg.norm(direction)), 1e-9)
    return along


def _is_even_stack(files: Sequence[DicomFile]) -> bool:
    """Slices at equal distances, enough of them to see it."""
    if len(files) < MIN_STACK:
        return False
    gaps = np.diff(np.sort(_heights(files)))
    return bool(np.ptp(gaps) <= EVEN * gaps.mean())


def _named(files: Sequence[DicomFile], tags: tuple[str, ...], groups: dict[tuple[str, ...], list[int]]) -> tuple[Volume, ...]:
    names = _part_names(tags, list(groups))
    found = [Volume(files=tuple(files[i] for i in groups[values]), part=names[values]) for values in groups]
    return tuple(sorted(found, key=lambda volume: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", volume.part)]))


def _place(file: DicomFile) -> tuple[int, ...] | None:
    """The position in micrometers, None where there is none."""
    try:
        x, y, z = file.numbers("ImagePositionPatient", 3)
    except ImageReadError:
        return None
    if max(abs(x), abs(y), abs(z)) > MAX_PLACE_MM:
        return None  # no place; whoever reads the grid says what is wrong
    return round(1000 * x), round(1000 * y), round(1000 * z)


def _are_volumes(groups: Sequence[Counter[tuple[int, ...] | None]]) -> bool:
    """Each holds the same places, each of them once."""
    return max(groups[0].values()) == 1 and len(groups[0]) > 1 and all(group == groups[0] for group in groups)


def _are_mostly_volumes(groups: Sequence[Counter[tuple[int, ...] | None]]) -> bool:
    """Each holds places once, half of them the same, and the others some of these."""
    whole = max(groups, key=len)
    are_parts = all(max(group.values()) == 1 and group <= whole for group in groups)
    return are_parts and len(whole) > 1 and 2 * sum(group == whole for group in groups) >= len(groups)


def _part_names(tags: Sequence[str], values: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """A name per volume; of an image type the components that differ."""
    columns = []
    for index, tag in enumerate(tags):
        texts = [value[index] for value in values]
        columns.append([f"{TELLING[tag]}{text}" for text in (_differing(texts) if tag == "ImageType" else texts)])
    return {value: "".join(column[row] for column in columns) for row, value in enumerate(values)}


def _differing(texts: Sequence[str]) -> list[str]:
    split = [text.split("\\") for text in texts]
    width = max(map(len, split))
    padded = [[*parts, *[""] * (width - len(parts))] for parts in split]
    telling = [column for column in range(width) if len({parts[column] for parts in padded}) > 1]
    return ["-".join(parts[column] for column in telling if parts[column]) for parts in padded]
