"""Distill: a model (the teacher, such as an ensemble) and a labelled dataset → the same dataset with soft labels, for a small student.

The probabilities of the teacher say what a label map cannot: where a border is unsure, and which label would be the next. The student
(any planner) is planned and trained on the new dataset as on any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from medseg3d.boundary import CaseBoundary
from medseg3d.data.dataset import Case, Dataset
from medseg3d.data.digests import digest_of
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.reading import read_case
from medseg3d.data.segmentations import plain_name
from medseg3d.errors import CaseFailure, InputError, UnsupportedError
from medseg3d.events import Event, Listener, silent
from medseg3d.files import check_writable, remove_leftovers, write_text
from medseg3d.geometry import from_canonical, to_canonical
from medseg3d.images import write_image
from medseg3d.labels import Labels
from medseg3d.models.loading import load_model
from medseg3d.models.model import Model
from medseg3d.options import DistillOptions
from medseg3d.records import Checked, read_record, write_record
from medseg3d.training.folds import read_folds
from medseg3d.wording import listed
from medseg3d.work_folder import DEFAULT_NAME, WorkFolder

RECORD = "distillation.json"
STEPS = 255
"""Probabilities are kept in so many steps, rounded down: a byte's worth of digits, which packs well, and no sum above 1."""
NO_OPTIONS = DistillOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation(Checked):
    """``distillation.json``: what the soft labels were made from; ``digests`` are those of the files of each case."""

    teacher: str
    dataset: str
    share: float
    digests: dict[str, str] = field(default_factory=dict)
    came_later: ClassVar[tuple[str, ...]] = ("digests",)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillResult:
    """The new dataset, and the cases that are not in it."""

    dataset: Path
    num_cases: int
    failures: tuple[CaseFailure, ...]


def distill(
    dataset: Path | str, teacher: Path | str, output: Path | str, options: DistillOptions = NO_OPTIONS, *, on: Listener = silent
) -> DistillResult:
    """Write ``output``: the cases of a dataset with ``share`` times the teacher's probabilities plus the rest of the label map.

    Images stay where they are, ``dataset.json`` names their paths. Folds are those of the teacher's work folder, or of the dataset's, where
    there is one. What the same teacher made of the same files in ``output`` is kept. Raises :class:`InputError` for an output that holds
    anything else or for a dataset that gives the labels other names than the teacher, :class:`UnsupportedError` for a model or a dataset of
    regions, ignored voxels, partial or soft labels.
    """
    root, target = Path(dataset).absolute(), Path(output).absolute()
    model = load_model(Path(teacher), device=options.device)
    labels = _checked_labels(model.plan.labels)
    found = open_dataset(root, channels=model.plan.channels)
    _check_same_labels(found, labels)
    made = _begin(target, Distillation(teacher=model.identity, dataset=str(root), share=options.share))
    boundary, failures, done = CaseBoundary("distill"), list(found.failures), []
    for number, case in enumerate(found.training):
        on(Event(stage="distill", done=number, total=len(found.training)))
        with boundary.around(case.name) as attempt:
            _check_files(case)
            digest = digest_of(case)
            if made.digests.get(case.name) != digest or not _label_file(target, case).exists():
                _write_soft(_label_file(target, case), model, case, labels, options.share)
                made = replace(made, digests={**made.digests, case.name: digest})
                write_record(target / RECORD, made, "distillation")
            done.append(case)
        if attempt.failure is not None:
            failures.append(attempt.failure)
    on(Event(stage="distill", done=len(found.training), total=len(found.training)))
    boundary.finish()
    if not done:
        raise InputError(f"{root}: no case could be distilled. {failures[0].reason if failures else 'It has none.'}")
    _write_splits(target, [Path(teacher), root / DEFAULT_NAME], {case.name for case in done})
    _describe(target, found, labels, done)  # last: without it the folder is no dataset
    return DistillResult(dataset=target, num_cases=len(done), failures=tuple(failures))


def _checked_labels(labels: Labels) -> Labels:
    if labels.regions or labels.ignore is not None or labels.unannotated or labels.soft:
        raise UnsupportedError(
            "distill: the teacher has regions, ignored voxels, or partial or soft labels; one of plain labels is needed."
        )
    return labels


def _check_same_labels(dataset: Dataset, labels: Labels) -> None:
    """Raise where a value of the dataset's label maps means something else than it does to the teacher."""
    own = dataset.labels
    if any(case.annotated is not None for case in dataset.training) or (
        own is not None and (own.regions or own.soft or own.ignore is not None)
    ):
        raise UnsupportedError(
            f"{dataset.root}: the dataset has regions, ignored voxels, or partial or soft labels; one of plain labels is needed."
        )
    named = dict(zip(own.values, own.names, strict=True)) if own is not None else {0: labels.names[0], **dataset.label_names}
    known = dict(zip(labels.values, labels.names, strict=True))
    is_same = own is None or set(named) == set(known)
    if not is_same or any(value and plain_name(known.get(value, "")) != plain_name(name) for value, name in named.items()):
        raise InputError(
            f"{dataset.root}: the labels are {_in_words(named)}, and to the teacher they are {_in_words(known)}. It would teach other "
            "structures than the label maps hold. Correct the names, or take a teacher of these labels."
        )


def _in_words(named: Mapping[int, str]) -> str:
    return listed([f"{value} {name}" for value, name in sorted(named.items()) if value])


def _begin(target: Path, made_from: Distillation) -> Distillation:
    """Note what the output is made from, and what of it is there; raises :class:`InputError` where it holds something else."""
    record = target / RECORD
    if record.exists():
        before = read_record(record, Distillation, "distillation")
        if replace(before, digests={}) != made_from:
            raise InputError(f"{target}: holds soft labels of another teacher, dataset or --share ({before.teacher}). Name a new folder.")
        made_from = before
    elif target.exists() and any(target.iterdir()):
        raise InputError(f"{target}: the folder is not empty and holds no distillation. Name a new folder.")
    check_writable(target)
    remove_leftovers(target, is_recursive=True)
    write_record(record, made_from, "distillation")
    return made_from


def _check_files(case: Case) -> None:
    if any(channel.volume is not None or channel.files for channel in case.channels):
        raise InputError(f"{case.name}: a channel is a volume of a 4D file or a series; distill takes a file for each channel.")


def _label_file(target: Path, case: Case) -> Path:
    return target / "labelsTr" / f"{case.name}.nii.gz"


def _write_soft(file: Path, model: Model, case: Case, labels: Labels, share: float) -> None:
    raw = read_case(case, frame=model.plan.reading_frame)
    if raw.labels is None:
        raise InputError(f"{case.name}: has no label map.")
    truth = labels.encode(raw.labels, str(case.label))
    orientation, header = raw.orientation, raw.header
    probabilities = np.zeros((labels.num_classes, *header.geometry.shape), np.float32)
    model.segment(model.prepare(raw, in_place=True), probabilities=to_canonical(probabilities, orientation))
    volumes = [share * of_class for of_class in probabilities[1:]]
    on_file = from_canonical(truth, orientation)
    for index, volume in enumerate(volumes, start=1):
        volume += (1 - share) * (on_file == index)
    soft = np.floor(np.stack(volumes, -1) * STEPS) / STEPS
    write_image(file, soft.astype(np.float32), header.geometry.matrix)


def _write_splits(target: Path, works: list[Path], names: set[str]) -> None:
    """The folds of the first of the work folders that has some; one fold where all are the same."""
    for work in works:
        splits = next((file for file in (WorkFolder(work).splits, WorkFolder(work / DEFAULT_NAME).splits) if file.exists()), None)
        if splits is None:
            continue
        folds = read_folds(splits)
        shared = folds.folds[:1] if folds.members else folds.folds
        kept = [{"train": [n for n in fold.train if n in names], "val": [n for n in fold.validation if n in names]} for fold in shared]
        if all(fold["train"] and fold["val"] for fold in kept):
            write_text(target / "splits_final.json", json.dumps(kept, indent=2) + "\n")
        return


def _describe(target: Path, dataset: Dataset, labels: Labels, cases: list[Case]) -> None:
    document = {
        "name": f"{dataset.name}, distilled",
        "channel_names": {str(number): name for number, name in enumerate(dataset.channel_names)},
        "labels": dict(zip(labels.names, labels.values, strict=True)),
        "soft_labels": True,
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        "dataset": {case.name: dict(_entry(target, case)) for case in cases},
    }
    write_text(target / "dataset.json", json.dumps(document, indent=2) + "\n")


def _entry(target: Path, case: Case) -> Iterator[tuple[str, object]]:
    yield "images", [str(channel.path.absolute()) for channel in case.channels]
    yield "label", str(_label_file(target, case).relative_to(target))
