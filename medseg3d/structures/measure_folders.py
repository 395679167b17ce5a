"""A folder of label maps, and the images that belong to them → the numbers of all structures, case by case."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medseg3d import images
from medseg3d.data.annotated import annotated_for
from medseg3d.data.case_files import Findings, image_files
from medseg3d.data.channels import channels_of_file, grouped_by_case
from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.label_names import with_names
from medseg3d.data.label_rules import marker_values
from medseg3d.data.reading import label_file, read_case
from medseg3d.data.seg_labels import labels_of_segs
from medseg3d.data.soft_labels import by_soft_case, soft_case_name
from medseg3d.errors import CaseFailure, InputError
from medseg3d.evaluation.evaluate_folders import (
    annotated_beside,
    check_annotated,
    label_names_beside,
    labels_beside,
    labels_found,
    predicted_names,
)
from medseg3d.events import Event, Listener, silent
from medseg3d.execution import run_cases
from medseg3d.files import file_digest
from medseg3d.geometry import Geometry, from_canonical
from medseg3d.images import case_name
from medseg3d.images.segments import segments_named
from medseg3d.labels import Labels
from medseg3d.structures.distances import wanted_pairs
from medseg3d.structures.measure_case import measure_case
from medseg3d.structures.radiomics import radiomics_extractor
from medseg3d.structures.records import CaseStructures, Structures
from medseg3d.wording import counted, listed

logger = logging.getLogger(__name__)

BYTES_PER_VOXEL = 24
"""The label map as read and as places, masks and surfaces of a structure as large as the image; the image's float32 comes on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is measured beside the shapes: distances of these pairs (``first:second``, or ``all``), and radiomic features."""

    distances: tuple[str, ...] = ()
    radiomics: bool = False


def measure_folders(
    label_maps: Path,
    image_folder: Path | None = None,
    *,
    labels: Labels | None = None,
    wanted: Wanted | None = None,
    num_workers: int | None = None,
    max_bytes: int | None = None,
    on: Listener = silent,
) -> Structures:
    """Measure every label map of a folder, or one file; intensities are those of the image of the same case name.

    ``labels``: given, or those of the ``dataset.json`` in or above the folder, or those that ``predict`` noted there, or all values that
    occur (0 is background). References are measured as what they are: soft labels by the most probable label, cases of ``annotated.csv``
    without what nobody looked for. Cases that cannot be measured are in ``failures``. Raises :class:`InputError` where there is no label
    map at all.
    """
    names = label_names_beside(label_maps)
    declared = labels or labels_beside(label_maps)
    if labels is None and declared is not None:
        declared = with_names(declared, names)
    elif declared is None and not names:
        names = {value: name for value, name in predicted_names(label_maps).items() if value}
    is_predicted = _are_predictions(label_maps)
    soft = declared.values if declared is not None and declared.soft and not is_predicted else ()
    rows = () if is_predicted else annotated_beside(label_maps)
    if declared is not None:
        check_annotated(rows, declared.names, label_maps)
    maps, failures = _label_maps(label_maps, is_soft=bool(soft))
    channels, without = _with_images(maps, image_folder)
    cases = [
        Case(name=name, channels=channels.get(name, ()), label=file, annotated=annotated_for(name, rows), soft=soft)
        for name, file in maps.items()
    ]
    channel_names = _channel_names(label_maps, max((len(case.channels) for case in cases), default=0))
    found = measure_cases(
        cases,
        labels=declared,
        label_names=names,
        channel_names=channel_names,
        wanted=wanted,
        num_workers=num_workers,
        max_bytes=max_bytes,
        on=on,
    )
    if declared is None:
        check_annotated(rows, [*names.values(), *(each.name for case in found.cases for each in case.structures)], label_maps)
    return Structures(
        labels=str(label_maps),
        images="" if image_folder is None else str(image_folder),
        cases=found.cases,
        failures=(*failures, *found.failures),
        without_image=without,
    )


def measure_cases(
    cases: Sequence[Case],
    *,
    labels: Labels | None,
    label_names: Mapping[int, str] | None = None,
    channel_names: Sequence[str] = (),
    wanted: Wanted | None = None,
    num_workers: int | None = None,
    max_bytes: int | None = None,
    on: Listener = silent,
) -> Structures:
    """Measure cases whose ``label`` is a label map; arguments as in :func:`measure_folders`."""
    asked = wanted or Wanted()
    extractor = radiomics_extractor() if asked.radiomics else None

    def measure(case: Case) -> CaseStructures:
        label_map, geometry, volumes = _read(case, labels)
        known = labels or _of_segments(case, label_map) or with_names(labels_found(label_map), label_names or {})
        pairs = wanted_pairs(asked.distances, [known.names[index] for index in known.foreground])
        named = {_channel_name(channel_names, number): volume for number, volume in enumerate(volumes)}
        measured = measure_case(
            label_map,
            geometry,
            labels=known,
            name=case.name,
            images=named,
            pairs=pairs,
            radiomics=extractor,
            annotated=case.annotated,
        )
        return replace(measured, digest=file_digest(case.label) if case.label is not None and case.label.is_file() else "")

    if labels is not None:
        wanted_pairs(asked.distances, [labels.names[index] for index in labels.foreground])  # a slip is told once, not by every case
    done: list[CaseStructures] = []
    failures: list[CaseFailure] = []
    on(Event(stage="measure", total=len(cases)))
    for each in run_cases(
        measure, cases, name_of=lambda case: case.name, stage="measure", bytes_of=_bytes_of, num_workers=num_workers, max_bytes=max_bytes
    ):
        if each.result is not None:
            done.append(each.result)
        elif each.failure is not None:
            failures.append(each.failure)
        on(Event(stage="measure", done=len(done) + len(failures), total=len(cases)))
    _warn(done, label_names or {} if labels is None else None)
    return Structures(
        labels="",
        images="",
        cases=tuple(sorted(done, key=lambda case: case.case)),
        failures=tuple(sorted(failures, key=lambda failure: failure.case)),
    )


def _warn(cases: Sequence[CaseStructures], names: Mapping[int, str] | None) -> None:
    """Say where numbers are less, or something else, than they look; ``names`` are those known of labels that nobody has listed."""
    partly = sorted(case.case for case in cases if case.unannotated_voxels)
    if partly:
        logger.warning(
            "%s voxels that nobody has annotated (ignore), which count for no structure: volumes are lower bounds. %s.",
            f"{counted(len(partly), 'label map')} {'holds' if len(partly) == 1 else 'hold'}",
            listed(partly),
        )
    values = {structure.value for case in cases for structure in case.structures}
    if names is not None and (markers := sorted(set(marker_values(values)) - set(names))):
        logger.warning(
            "The value %d is measured as a structure; beside small values it usually marks voxels that nobody has annotated. Name it in "
            "labels.csv beside the label maps (value,name): ignore leaves it out.",
            markers[0],
        )


def _are_predictions(place: Path) -> bool:
    """Whether ``predict`` wrote what is measured: whole label maps, whatever the references of the dataset are."""
    folder = place if place.is_dir() else place.parent
    return any(folder.glob("predictions*.json"))


def _of_segments(case: Case, label_map: np.ndarray) -> Labels | None:
    """The labels that a file of named segments brings with it, each file its own; None for other files."""
    if case.label is None:
        return None
    if (labels := labels_of_segs([case.label])) is not None:
        return labels
    return with_names(labels_found(label_map), names) if (names := segments_named(case.label)) else None


def _read(case: Case, labels: Labels | None) -> tuple[np.ndarray, Geometry, list[np.ndarray]]:
    """A label map and its image on the axes of one file; raises as reading a training case does."""
    if case.label is None:
        raise InputError(f"{case.name}: has no label map to measure.")
    if not case.channels:
        label_map, header = label_file(case.label, case.soft, labels)
        return label_map, header.geometry, []
    raw = read_case(case, labels=labels)
    if raw.labels is None:
        raise InputError(f"{case.name}: has no label map to measure.")
    volumes = [from_canonical(channel, raw.orientation) for channel in raw.image]
    return from_canonical(raw.labels, raw.orientation), raw.header.geometry, volumes


def _label_maps(place: Path, *, is_soft: bool) -> tuple[dict[str, Path], tuple[CaseFailure, ...]]:
    if not place.exists():
        raise InputError(f"{place}: no such file or folder of label maps.")
    if not place.is_dir():
        return {(soft_case_name if is_soft else case_name)(place): place}, ()
    findings = Findings()
    files = image_files(place, findings)
    findings.settle(files)
    failed = {failure.case for failure in findings.failures}
    found = {name: file for name, file in files.items() if name not in failed}
    if is_soft:
        found = by_soft_case(found)
    if not found:
        reasons = "; ".join([*findings, *(f"{failure.case}: {failure.reason}" for failure in findings.failures)])
        raise InputError(f"{place}: no label maps in this folder. {reasons or 'Name the folder that holds the files themselves.'}")
    return found, findings.failures


def _with_images(maps: Mapping[str, Path], place: Path | None) -> tuple[dict[str, tuple[ChannelFile, ...]], tuple[str, ...]]:
    """The channels of each case, and the cases without any where images were named."""
    if place is None:
        return {}, ()
    if not place.exists():
        raise InputError(f"{place}: no such file or folder of images.")
    findings = Findings()
    is_series = place.is_dir() and len(maps) == 1 and not image_files(place, Findings(), with_dicom=False)
    if place.is_file() or is_series:
        if len(maps) > 1:
            raise InputError(f"{place}: one image for {len(maps)} label maps. Name the folder of their images.")
        header = images.read_header(place)
        return {next(iter(maps)): channels_of_file(place, header.num_volumes, findings)}, ()
    grouped, _ = grouped_by_case(place, maps, None, findings, is_required=False)
    without = tuple(sorted(set(maps) - set(grouped)))
    if len(without) == len(maps):
        raise InputError(f"{place}: no image has the name of a label map, such as {next(iter(maps))}.*, or {next(iter(maps))}_0000.*.")
    return {name: channels for name, channels in grouped.items() if name in maps}, without


def _channel_names(label_maps: Path, count: int) -> tuple[str, ...]:
    """Those of the ``dataset.json`` in or above the folder, where it has as many; else placeholders."""
    from medseg3d.data.dataset_json import channel_names
    from medseg3d.records import read_json

    folder = label_maps.parent if label_maps.is_file() else label_maps
    for place in (folder, folder.resolve().parent):
        file = place / "dataset.json"
        if file.is_file() and isinstance(declared := read_json(file), dict):
            names = channel_names(declared, Findings())
            return names if len(names) == count else ()
    return ()


def _channel_name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else f"channel_{number}"


def _bytes_of(case: Case) -> int:
    if case.label is None:
        return 0
    try:
        return (BYTES_PER_VOXEL + 8 * len(case.channels)) * images.read_header(case.label).num_voxels
    except InputError:
        return 0
