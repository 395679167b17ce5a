"""Corrected label maps that joined a dataset: ``corrections/taken.json`` in, a dataset with them out. No file of the user's is changed.

``corrections/taken/CASE.nii.gz`` takes the place of a case's own label, or makes a case of an image that had none. Whoever deletes it has
the dataset as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medseg3d.data.annotated import annotated_for, read_annotated
from medseg3d.data.dataset import Case, ChannelFile, Dataset
from medseg3d.errors import CaseFailure
from medseg3d.records import read_record, write_record

FOLDER = "corrections"
TAKEN = "taken"
STAGE = "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenImage:
    """Where a channel of a new case is: a path below the dataset's folder, or absolute; see :class:`ChannelFile`."""

    path: str
    volume: int | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenCase:
    """A correction: the file that was dropped and its digest; ``images`` are those of a case that the dataset does not have by itself."""

    source: str
    digest: str
    images: tuple[TakenImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """``corrections/taken.json``: the corrections by case."""

    cases: dict[str, TakenCase] = field(default_factory=dict)


def taken_record(root: Path) -> Path:
    """Where a dataset keeps what it has taken."""
    return root / FOLDER / f"{TAKEN}.json"


def taken_label(root: Path, case: str) -> Path:
    """The label map of a correction, on the grid of the image, in the values of the dataset."""
    return root / FOLDER / TAKEN / f"{case}.nii.gz"


def read_taken(root: Path) -> Taken:
    """The corrections of a dataset; none where there is no record."""
    file = taken_record(root)
    return read_record(file, Taken, "corrections") if file.is_file() else Taken()


def write_taken(root: Path, taken: Taken) -> Path:
    """The other way."""
    return write_record(taken_record(root), taken, "corrections")


def with_corrections(dataset: Dataset) -> Dataset:
    """The dataset with its corrections: replaced labels, further training cases, which are no test cases any more."""
    root = dataset.root
    taken = {name: case for name, case in read_taken(root).cases.items() if taken_label(root, name).is_file()}
    if not taken:
        return dataset
    own = [replace(case, label=taken_label(root, case.name)) if case.name in taken else case for case in dataset.training]
    known, rows = {case.name for case in own}, read_annotated(root)
    added, failures = [], []
    for name, case in taken.items():
        if name in known or not case.images:
            continue
        channels = tuple(_channel(root, image) for image in case.images)
        missing = [channel.path for channel in channels if not channel.path.exists()]
        if missing:
            reason = f"{missing[0]}: the image of a correction is not there any more. Bring it back, or delete {taken_label(root, name)}"
            failures.append(CaseFailure(case=name, stage=STAGE, reason=reason))
        else:
            added.append(Case(name=name, channels=channels, label=taken_label(root, name), annotated=annotated_for(name, rows)))
    names = {case.name for case in added}
    return replace(
        dataset,
        training=tuple(sorted((*own, *added), key=lambda case: case.name)),
        test=tuple(case for case in dataset.test if case.name not in names),
        failures=(*(failure for failure in dataset.failures if failure.case not in names), *failures),
    )


def image_of(root: Path, channels: Sequence[ChannelFile]) -> tuple[TakenImage, ...]:
    """What is noted of the channels of a new case."""
    return tuple(
        TakenImage(path=_text(root, each.path), volume=each.volume, files=tuple(_text(root, file) for file in each.files))
        for each in channels
    )


def _text(root: Path, path: Path) -> str:
    path, root = path.absolute(), root.absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _channel(root: Path, image: TakenImage) -> ChannelFile:
    return ChannelFile(path=root / image.path, volume=image.volume, files=tuple(root / file for file in image.files))
