"""The labels of a dataset whose label files are DICOM SEG and that has no ``dataset.json``: names by the segments' numbers.

Where segments overlap in any case, all of them become regions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg3d.data.label_rules import name_findings
from medseg3d.data.segmentations import plain_name
from medseg3d.data.side_names import left_right_pairs
from medseg3d.errors import DatasetError, ImageReadError, InputError
from medseg3d.images import ending_of
from medseg3d.images.dicom_seg import combined, members_of, read_seg, seg_file, segment_names, segs_among
from medseg3d.images.segments import segments_named
from medseg3d.labels import Labels


def labels_of_segs(paths: Sequence[Path]) -> Labels | None:
    """None where the files are no SEG. Raises :class:`DatasetError` where two files mean another structure by a number."""
    names: dict[int, str] = {}
    sets: Counter[int] = Counter()
    for file in segs_among(paths):
        try:
            found, values = _found_in(file)
        except ImageReadError:
            continue  # its case fails when it is read, and the others do not
        for number, name in found.items():
            if (known := names.setdefault(number, name)) != name:
                raise DatasetError(
                    f"{file}: segment {number} is called {name!r}, and {known!r} in another file. Give structures the same numbers in all "
                    "files."
                )
        sets.update(values)
    if not names:
        return None
    if findings := name_findings(names):
        raise DatasetError("The segments do not fit together:", findings)
    numbers = sorted(names)
    if all(len(members_of(value)) < 2 for value in sets):
        ordered = ("background", *(names[number] for number in numbers))
        return Labels(names=ordered, values=(0, *numbers), pairs=left_right_pairs(ordered))
    return _regions(names, sets)


def misnamed(path: Path, labels: Labels) -> str:
    """Where a DICOM SEG calls a number otherwise than ``dataset.json`` its value, or cannot be read; empty where neither, and for other
    files.

    A ``.seg.nrrd`` of 3D Slicer, whose names nobody had to choose, is believed unless it calls a number as ``dataset.json`` another value.
    """
    if ending_of(path) == ".seg.nrrd":
        return _exchanged(path, labels)
    if not (path.is_dir() or path.suffix.lower() == ".dcm") or (file := seg_file(path)) is None:
        return ""
    try:
        names, _ = segment_names(file)
    except ImageReadError as error:
        return str(error).removesuffix(".")
    known = dict(zip(labels.values, labels.names, strict=True))
    wrong = [number for number, name in names.items() if plain_name(known.get(number, "")) != plain_name(name)]
    if not wrong:
        return ""
    return (
        f"{file}: segment {wrong[0]} is called {names[wrong[0]]!r}, and dataset.json calls the value {wrong[0]} "
        f"{known.get(wrong[0], 'nothing')!r}. The numbers of segments are the values of labels: correct one of them"
    )


def _found_in(file: Path) -> tuple[dict[int, str], dict[int, int]]:
    """The names of a file's segments, and how many voxels have each value of the combined label map, 1 where none overlap."""
    names, may_overlap = segment_names(file)
    return names, _sets(file) if may_overlap else dict.fromkeys(names, 1)


def _exchanged(path: Path, labels: Labels) -> str:
    value_of = {plain_name(labels.names[index]): labels.values[index] for index in labels.foreground}
    try:
        names = segments_named(path)
    except InputError:  # reading it says what is wrong with it
        return ""
    wrong = next((number for number, name in names.items() if value_of.get(plain_name(name), number) != number), None)
    if wrong is None:
        return ""
    return (
        f"{path}: segment {wrong} is called {names[wrong]!r}, which is the value {value_of[plain_name(names[wrong])]} in dataset.json. "
        f"{NUMBER_ALIKE}"
    )


NUMBER_ALIKE = (
    "3D Slicer numbers segments in the order in which they were made: export them as a label map with a color table, or give them the same "
    "order in every file"
)


def exchanged_segments(paths: Sequence[Path]) -> list[str]:
    """What to say of ``.seg.nrrd`` files that give a name another number than the first file has, where nothing declares the labels."""
    first: dict[str, tuple[int, Path]] = {}
    found: list[str] = []
    for path in paths:
        if ending_of(path) != ".seg.nrrd":
            continue
        try:
            names = segments_named(path)
        except InputError:
            continue
        for number, name in names.items():
            known, source = first.setdefault(plain_name(name), (number, path))
            if known != number:
                found.append(f"{path}: segment {number} is called {name!r}, which is number {known} in {source}. {NUMBER_ALIKE}")
                break
    return found


def _sets(file: Path) -> dict[int, int]:
    """How many voxels have each value of the combined label map."""
    values, counts = np.unique(combined(read_seg(file), file), return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True) if value}


def _regions(names: dict[int, str], sets: Counter[int]) -> Labels:
    """A region for each segment, the larger ones first: later ones lie over earlier ones.

    Where a region is predicted, its value is the one that most of its voxels have, which no smaller region has taken.
    """
    values = {number: tuple(value for value in sorted(sets) if number in members_of(value)) or (number,) for number in names}
    order = sorted(names, key=lambda number: -sum(sets[value] for value in values[number]))
    taken: dict[int, int] = {}
    for number in reversed(order):
        free = [value for value in values[number] if value not in taken.values()]
        taken[number] = max(free or [number], key=lambda value: (sets[value], -value))
    ordered = ("background", *(names[number] for number in order))
    return Labels(
        names=ordered,
        values=(0, *(taken[number] for number in order)),
        pairs=left_right_pairs(ordered),
        regions=tuple(values[number] for number in order),
    )
