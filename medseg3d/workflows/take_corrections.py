"""Corrected label maps as people save them (NIfTI, NRRD, named segments) → label maps of the dataset, on the grids of its images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg3d.data.annotated import annotated_for, read_annotated
from medseg3d.data.case_files import Findings, image_files
from medseg3d.data.corrections import FOLDER, Taken, TakenCase, image_of, read_taken, taken_label, write_taken
from medseg3d.data.dataset import Case, ChannelFile, Dataset
from medseg3d.data.digests import digest_of
from medseg3d.data.prediction_cases import find_prediction_cases
from medseg3d.data.reading import label_values
from medseg3d.data.segmentations import label_map_of, onto_grid
from medseg3d.errors import DatasetError, InputError
from medseg3d.files import file_digest, remove_leftovers
from medseg3d.images import data_files, read_header, read_image, write_label_map
from medseg3d.images.segments import read_segmentation
from medseg3d.labels import Labels, places_of, unique_values
from medseg3d.plan import Plan
from medseg3d.wording import counted, listed

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """A dropped file that is new, or has changed since it was taken; ``is_new`` where the dataset has no such training case by itself."""

    case: str
    file: Path
    digest: str
    channels: tuple[ChannelFile, ...]
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrections:
    """What is new, read and checked; ``maps`` are label maps (x, y, z) in file values by case."""

    found: tuple[Correction, ...]
    maps: Mapping[str, np.ndarray]


def read_corrections(dataset: Dataset, plan: Plan, folder: Path | None, image_folder: Path | None) -> Corrections:
    """Read what is new in the folder of corrections (``corrections`` of the dataset); nothing is written.

    Raises :class:`DatasetError` with all findings where a file cannot be used.
    """
    place = dataset.root / FOLDER if folder is None else folder
    if plan.labels.soft:
        raise InputError(f"{dataset.root}: the labels are probabilities (soft labels), which a corrected label map does not replace.")
    dropped = _dropped(place)
    before = read_taken(dataset.root)
    fresh = {name: file for name, file in dropped.items() if _is_fresh(dataset.root, before, name, file)}
    found, findings = _with_images(dataset, plan, fresh, before, image_folder)
    maps: dict[str, np.ndarray] = {}
    rows = read_annotated(dataset.root)
    for each in found:
        try:
            maps[each.case] = read_correction(each.file, each.channels[0], plan.labels)
        except InputError as error:
            findings.append(str(error))
        else:
            findings += _unlooked(each, maps[each.case], plan.labels, annotated_for(each.case, rows))
    if findings:
        raise DatasetError(f"{place}: nothing was taken, as {counted(len(findings), 'correction')} cannot be used:", findings)
    return Corrections(found=tuple(found), maps=maps)


def _unlooked(each: Correction, values: np.ndarray, labels: Labels, annotated: Sequence[str] | None) -> list[str]:
    """A finding where a correction holds what the case was not annotated for: nothing would be learned from it."""
    if annotated is None:
        return []
    known = {value for index in labels.foreground if labels.names[index] in annotated for value in labels.members(index)}
    hidden = sorted(set(unique_values(values)) - known - {0, labels.ignore})
    names = [
        labels.names[index]
        for index in labels.foreground
        if set(hidden) & set(labels.members(index)) and labels.names[index] not in annotated
    ]
    if not names:
        return []
    return [
        f"{each.case}: holds {listed(names)}, and by annotated.csv it was annotated for {listed(list(annotated)) or 'nothing'} alone. "
        f"If the correction is complete, add the row {each.case},* at the end of annotated.csv; otherwise make these voxels 0"
    ]


def take_corrections(root: Path, corrections: Corrections) -> None:
    """Let corrections join a dataset: their label maps first, the record that makes them count last."""
    remove_leftovers(root / FOLDER, is_recursive=True)
    before = read_taken(root)
    for each in corrections.found:
        channel = each.channels[0]
        write_label_map(taken_label(root, each.case), corrections.maps[each.case], read_header(channel.path, files=channel.files))
    if corrections.found:
        write_taken(root, Taken(cases={**before.cases, **{each.case: _record(root, each, before) for each in corrections.found}}))


def read_correction(file: Path, image: ChannelFile, labels: Labels) -> np.ndarray:
    """A corrected label map (x, y, z) in file values, on the grid of an image.

    Named segments go by their names; all others hold the dataset's values. Raises as :func:`label_map_of` and :func:`onto_grid` do.
    """
    grid = read_header(image.path, files=image.files).geometry
    segmentation = read_segmentation(file)
    if segmentation is not None:
        return onto_grid(label_map_of(segmentation, labels, file), segmentation.header.geometry, grid, file)
    stored = read_image(file)
    values = label_values(file, stored.array)
    places_of(values, tuple(dict.fromkeys((*labels.file_values, *labels.values))), str(file), dtype=np.dtype(np.int32))
    return onto_grid(values, stored.header.geometry, grid, file)


def _dropped(place: Path) -> dict[str, Path]:
    if not place.is_dir():
        raise InputError(f"{place}: no such folder. Put corrected label maps there, each called as its case: CASE.nii.gz or CASE.seg.nrrd.")
    findings = Findings()
    files = image_files(place, findings)
    findings.settle(files)
    if problems := [*findings, *(f"{failure.case}: {failure.reason}" for failure in findings.failures)]:
        raise DatasetError(f"{place}: the corrections cannot be used as they are:", problems)
    return files


def _is_fresh(root: Path, before: Taken, name: str, file: Path) -> bool:
    known = before.cases.get(name)
    return known is None or known.digest != _digest(file) or not taken_label(root, name).is_file()


def _digest(file: Path) -> str:
    """Of all files that a label map consists of."""
    found = hashlib.blake2b(digest_size=16)
    for each in data_files(file):
        found.update(file_digest(each).encode())
    return found.hexdigest()


def _with_images(
    dataset: Dataset, plan: Plan, files: Mapping[str, Path], before: Taken, image_folder: Path | None
) -> tuple[list[Correction], list[str]]:
    """Each file with the image that it belongs to; findings for those that have none, or whose image is in the test set."""
    training = {case.name: case for case in dataset.training}
    references = {case.name for case in dataset.test if case.label is not None}
    others: dict[str, Case] = {case.name: case for case in dataset.test if case.label is None}
    same_name: set[str] = set()
    if image_folder is not None and files:
        cases, _ = find_prediction_cases(image_folder, num_channels=len(plan.channels))
        others |= {case.name: case for case in cases}
        same_name = {case.name for case in cases if case.name in files and case.name in training and _differ(case, training[case.name])}
    found, findings = [], []
    for name, file in files.items():
        known = training.get(name) or others.get(name)
        if name in same_name:
            findings.append(f"{name}: is a training case, and another image in {image_folder} has the same name. Rename that image")
        elif name in references:
            findings.append(
                f"{name}: is in the test set, which must not be trained on. Take its correction out, or correct labelsTs itself"
            )
        elif known is None:
            where = "the training cases" if image_folder is None else f"the training cases and {image_folder}"
            findings.append(f"{name}: no image of this name in {where}. Name the folder of its image: -i IMAGES")
        else:
            is_new = name not in training or bool(before.cases.get(name, TakenCase(source="", digest="")).images)
            found.append(Correction(case=name, file=file, digest=_digest(file), channels=known.channels, is_new=is_new))
    if found:
        logger.info("Corrections of %s.", listed([each.case for each in found]))
    return found, findings


def _differ(one: Case, other: Case) -> bool:
    return digest_of(one) != digest_of(other)


def _record(root: Path, each: Correction, before: Taken) -> TakenCase:
    known = before.cases.get(each.case)
    images = image_of(root, each.channels) if each.is_new else ()
    return TakenCase(source=str(each.file), digest=each.digest, images=(known.images if known is not None and known.images else images))
