"""The records of a dataset: its cases, their files, and what its ``dataset.json`` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medseg3d.errors import (
    CaseFailure,
)
from medseg3d.labels import Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFile:
    """Where one channel of a case is: a file, one volume of a 4D file, or a folder of which ``files`` are the slices (all, if empty)."""

    path: Path
    volume: int | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The files of one case; ``label`` is None where there is none.

    ``annotated`` are the names of the structures that it was annotated for, None for all of the dataset's. ``soft`` are the values of the
    labels whose probabilities the label file holds, the background first; empty for a map of values.
    """

    name: str
    channels: tuple[ChannelFile, ...]
    label: Path | None = None
    annotated: tuple[str, ...] | None = None
    soft: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The names of the cases that one fold trains on, and of those that it is validated on."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The cases of a folder, sorted by name, and what its ``dataset.json`` says.

    ``labels`` is None without a JSON: names and values then come from the label files. ``has_named_channels`` is False where the
    channel names are only placeholders (``channel_0``). ``declared_splits`` are the user's own folds. ``failures`` are training cases
    whose files cannot be used, as far as that is seen without reading voxels; ``test_failures`` those of the test set.
    ``label_names`` stand in ``labels.csv`` or ``labels.json`` beside the images, by label value; ``labels`` has them already.
    """

    root: Path
    name: str
    layout: Literal["nnunet", "decathlon", "folders"]
    channel_names: tuple[str, ...]
    has_named_channels: bool
    labels: Labels | None
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    declared_splits: tuple[Split, ...] | None = None
    failures: tuple[CaseFailure, ...] = ()
    test_failures: tuple[CaseFailure, ...] = ()
    label_names: Mapping[int, str] = field(default_factory=dict)
