"""A folder of predictions and a folder of references → an evaluation: matched by case name, on one grid or refused."""

from __future__ import annotations

import logging
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medseg3d.data.annotated import annotated_for, read_annotated, unknown_names
from medseg3d.data.label_names import names_beside, with_names
from medseg3d.data.label_rules import marker_values
from medseg3d.data.seg_labels import exchanged_segments, labels_of_segs
from medseg3d.data.soft_labels import by_soft_case
from medseg3d.errors import CaseFailure, DatasetError, InputError
from medseg3d.evaluation.evaluate_case import default_tolerance_mm, evaluate_case
from medseg3d.evaluation.metrics import CaseMetrics, Evaluation, summarize_cases
from medseg3d.events import Event, Listener, silent
from medseg3d.execution import run_cases, workers_for
from medseg3d.labels import Labels, unique_values
from medseg3d.records import read_json

logger = logging.getLogger(__name__)

BYTES_PER_VOXEL = 40
"""Both maps as read and as integers, masks, surfaces and float32 distances of a label as large as the image; most take a quarter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two files of one case; ``annotated`` are the labels that the reference was annotated for, None for all."""

    case: str
    prediction: Path
    reference: Path
    annotated: tuple[str, ...] | None = None


def evaluate_folders(
    predictions: Path,
    references: Path,
    *,
    labels: Labels | None = None,
    tolerance_mm: float | None = None,
    num_workers: int | None = None,
    max_bytes: int | None = None,
    seed: int = 0,
    on: Listener = silent,
) -> Evaluation:
    """Evaluate every reference that has a prediction of the same case name; both may also be single files.

    ``labels``: given, or those of the ``dataset.json`` in or above the references' folder, or the segments of references that are DICOM
    SEG, or all values that occur (0 is background). ``tolerance_mm`` of the normalized surface Dice is one number for all cases: given, or
    :func:`~medseg3d.evaluation.evaluate_case.default_tolerance_mm` of the median of the references' finest spacings. Cases
    that cannot be evaluated are in ``failures``, also those whose two grids lie more than 0.1 voxel apart. Raises
    :class:`InputError` where no case has both files.
    """
    matched = match_files(predictions, references)
    rows, names = annotated_beside(references), label_names_beside(references)
    declared = labels or labels_beside(references) or labels_of_segs([pair.reference for pair in matched.pairs])
    if declared is not None and labels is None:
        declared = with_names(declared, names)
    if declared is not None:
        check_annotated(rows, declared.names, references)
    elif wrong := exchanged_segments([*(pair.reference for pair in matched.pairs), *(pair.prediction for pair in matched.pairs)]):
        raise DatasetError(
            "The segments do not fit together; with a dataset.json beside the references they are told by their names:", wrong
        )
    evaluation = evaluate_pairs(
        [replace(pair, annotated=annotated_for(pair.case, rows)) for pair in matched.pairs],
        labels=declared,
        label_names=names or predicted_names(predictions),
        tolerance_mm=tolerance_mm,
        num_workers=num_workers,
        max_bytes=max_bytes,
        seed=seed,
        on=on,
    )
    if declared is None:
        check_annotated(rows, [label.name for label in evaluation.labels], references)
    return replace(
        evaluation,
        predictions=str(predictions),
        references=str(references),
        missing_predictions=matched.missing,
        extra_predictions=matched.extra,
        failures=(*matched.failures, *evaluation.failures),
    )


def check_annotated(rows: Sequence[tuple[str, tuple[str, ...] | None]], names: Sequence[str], references: Path) -> None:
    """Raise :class:`InputError` for names in ``annotated.csv`` that no label has: their cases would leave all means without a word."""
    if unknown := unknown_names(rows, names):
        raise InputError(
            f"annotated.csv beside {references}: {', '.join(unknown)}: no label is called so; the labels are {', '.join(names)}. Name the "
            "label values in dataset.json, or in labels.csv beside the references."
        )


def evaluate_pairs(
    pairs: Sequence[Pair],
    *,
    labels: Labels | None,
    label_names: Mapping[int, str] | None = None,
    tolerance_mm: float | None = None,
    num_workers: int | None = None,
    max_bytes: int | None = None,
    seed: int = 0,
    patients: Mapping[str, str] | None = None,
    on: Listener = silent,
) -> Evaluation:
    """Measure pairs of files, side by side within ``max_bytes`` of memory; arguments as in :func:`evaluate_folders`.

    ``labels`` None: all values that occur, under ``label_names`` where these have one; a value of the references that marks voxels nobody
    has annotated is left out then, and a warning says so. Cases are sorted by name, whatever finished first. The interval of the mean
    resamples ``patients`` (by case; None: those that the names tell).
    """
    found = _evaluated(pairs, labels, label_names, tolerance_mm, num_workers, max_bytes, seed, patients, on)
    if labels is not None or not (ignored := _undeclared_ignore(found, pairs, label_names or {})):
        return found
    logger.warning(
        "The value %d of the references is taken for voxels that nobody has annotated, and is left out. If it is a structure, name it in "
        "labels.csv beside the references (value,name).",
        ignored,
    )
    names = dict(label_names or {}) | {ignored: IGNORE}
    return _evaluated(pairs, labels, names, tolerance_mm, num_workers, max_bytes, seed, patients, on)


IGNORE = "ignore"


def _undeclared_ignore(found: Evaluation, pairs: Sequence[Pair], label_names: Mapping[int, str]) -> int | None:
    """The one value of the references that marks voxels nobody has annotated, without a name and never predicted."""
    values = {label.value for label in found.labels}
    markers = set(marker_values(values)) - set(label_names) - {label.value for label in found.labels if _is_predicted(found, label.value)}
    return markers.pop() if len(markers) == 1 and len(pairs) > 0 else None


def _is_predicted(found: Evaluation, value: int) -> bool:
    return any(label.value == value and label.voxels_prediction for case in found.cases for label in case.labels)


def _evaluated(
    pairs: Sequence[Pair],
    labels: Labels | None,
    label_names: Mapping[int, str] | None,
    tolerance_mm: float | None,
    num_workers: int | None,
    max_bytes: int | None,
    seed: int,
    patients: Mapping[str, str] | None,
    on: Listener,
) -> Evaluation:
    tolerance = tolerance_mm if tolerance_mm is not None else _common_tolerance(pairs)
    workers = workers_for(num_workers)
    threads = max(1, workers // max(1, len(pairs)))  # few cases: the labels of one case fill the cores

    def measure(pair: Pair) -> CaseMetrics:
        return evaluate_files(pair, labels=labels, label_names=label_names or {}, tolerance_mm=tolerance, num_threads=threads)

    cases: list[CaseMetrics] = []
    failures: list[CaseFailure] = []
    on(Event(stage="evaluate", total=len(pairs)))
    for done in run_cases(
        measure,
        pairs,
        name_of=lambda pair: pair.case,
        stage="evaluate",
        bytes_of=_bytes_of,
        num_workers=workers,
        max_bytes=max_bytes,
    ):
        if done.result is not None:
            cases.append(done.result)
        elif done.failure is not None:
            failures.append(done.failure)
        on(Event(stage="evaluate", done=len(cases) + len(failures), total=len(pairs)))
    return summarize_cases(cases, tolerance_mm=tolerance, failures=failures, seed=seed, patients=patients)


def evaluate_files(
    pair: Pair, *, labels: Labels | None, tolerance_mm: float | None, num_threads: int = 1, label_names: Mapping[int, str] | None = None
) -> CaseMetrics:
    """Read and compare one case; without ``labels`` all values that occur in it.

    Raises :class:`GeometryMismatchError` with the offset in mm where the two files do not lie on one grid.
    """
    from medseg3d.data.reading import read_label_maps

    soft = labels.values if labels is not None and labels.soft else ()
    predicted, referenced, spacing = read_label_maps(pair.prediction, pair.reference, pair.case, soft=soft, labels=labels)
    return evaluate_case(
        predicted,
        referenced,
        spacing=spacing,
        labels=labels or with_names(labels_found(predicted, referenced), label_names or {}),
        tolerance_mm=tolerance_mm,
        name=pair.case,
        num_threads=num_threads,
        annotated=pair.annotated,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Two folders by case: the pairs, the cases without a prediction, predictions without a reference, and what cannot be used."""

    pairs: tuple[Pair, ...]
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    failures: tuple[CaseFailure, ...] = ()


def match_files(predictions: Path, references: Path) -> Matched:
    """The files of two folders by the names of their cases.

    Two single files are a pair whatever they are called. Raises :class:`InputError` for missing folders and where nothing
    matches.
    """
    found_p, failures_p = _files_by_case(predictions, "predictions")
    found_r, failures_r = _files_by_case(references, "references")
    if predictions.is_file() and references.is_file():
        (case, reference), (prediction,) = *found_r.items(), found_p.values()
        return Matched(pairs=(Pair(case=case, prediction=prediction, reference=reference),))
    common = sorted(found_p.keys() & found_r.keys())
    if not common:
        raise InputError(
            f"No prediction has the name of a reference: {predictions} holds {_some(found_p)}, and {references} {_some(found_r)}. "
            "A prediction must be called like its reference, whatever its file format."
        )
    failures = (*failures_p, *failures_r)
    failed = {failure.case for failure in failures}
    return Matched(
        pairs=tuple(Pair(case=case, prediction=found_p[case], reference=found_r[case]) for case in common),
        missing=tuple(sorted(found_r.keys() - found_p.keys() - failed)),
        extra=tuple(sorted(found_p.keys() - found_r.keys() - failed)),
        failures=failures,
    )


def labels_beside(references: Path) -> Labels | None:
    """The labels of the ``dataset.json`` in the references' folder, or else in the folder above; None where
    there is none.

    Raises :class:`InputError` for a file that lists no labels.
    """
    from medseg3d.data.dataset_json import declared_labels

    folder = references.parent if references.is_file() else references
    for place in (folder, folder.resolve().parent):
        file = place / "dataset.json"
        if file.is_file():
            declared, findings = read_json(file), list[str]()
            if not isinstance(declared, dict):
                raise InputError(f"{file}: expected a JSON object with the dataset's labels.")
            labels = declared_labels(declared, findings)
            if findings:
                raise InputError(f"{file}: {'; '.join(findings)}.")
            return labels
    return None


def annotated_beside(references: Path) -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    """The rows of ``annotated.csv`` beside the references, or else in the folder above."""
    folder = references.parent if references.is_file() else references
    return read_annotated(folder) or read_annotated(folder.resolve().parent)


def label_names_beside(references: Path) -> dict[int, str]:
    """The names in ``labels.csv`` or ``labels.json`` beside the references, or else in the folder above."""
    folder = references.parent if references.is_file() else references
    return names_beside(folder) or names_beside(folder.resolve().parent)


def predicted_names(predictions: Path) -> dict[int, str]:
    """The names of label values that ``predict`` noted of the label maps that are there, background first.

    Empty where it noted none of one of them, or two for one value.
    """
    folder = predictions.parent if predictions.is_file() else predictions
    latest: dict[str, tuple[float, dict[int, str]]] = {}
    for file in sorted(folder.glob("predictions*.json")):
        for name, finished, of_model in _noted_names(file):
            if (folder / name).exists() and finished >= latest.get(name, (finished, {}))[0]:
                latest[name] = finished, of_model
    names: dict[int, str] = {}
    for _, of_model in latest.values():
        if not of_model or any(names.setdefault(value, name) != name for value, name in of_model.items()):
            return {}
    return dict(sorted(names.items(), key=lambda item: (item[0] != 0, item[0])))


def _noted_names(file: Path) -> Iterator[tuple[str, float, dict[int, str]]]:
    """Of each output: when it was made, and the names of its values; nothing of a record that is damaged, which costs names alone here."""
    try:
        noted = read_json(file)
    except InputError:
        return
    cases, names = (noted.get(key) if isinstance(noted, dict) else None for key in ("cases", "names"))
    for name, case in cases.items() if isinstance(cases, dict) else ():
        model, finished = (case.get(key) if isinstance(case, dict) else None for key in ("model", "finished"))
        named = names.get(model) if isinstance(names, dict) and isinstance(model, str) else None
        texts = named if isinstance(named, dict) else {}
        is_whole = all(re.fullmatch(r"-?\d{1,18}", key) and isinstance(text, str) for key, text in texts.items())
        of_model = {int(key): text for key, text in texts.items()} if is_whole else {}
        yield name, float(finished) if isinstance(finished, int | float) else 0.0, of_model


def labels_found(*label_maps: np.ndarray) -> Labels:
    """Labels from all values that occur in integer arrays, named after their values; 0 is the background."""
    values = (0, *sorted({value for array in label_maps for value in unique_values(array)} - {0}))
    return Labels(names=tuple(f"label_{value}" if value else "background" for value in values), values=values)


def _files_by_case(place: Path, role: str) -> tuple[dict[str, Path], tuple[CaseFailure, ...]]:
    """The label maps of a folder, and the cases of which there are two files, or whose names are no Unicode."""
    from medseg3d import images
    from medseg3d.data.case_files import Findings, image_files

    if not place.exists():
        raise InputError(f"{place}: no such folder of {role}.")
    if place.is_file():
        return {images.case_name(place): place}, ()
    findings = Findings()
    files = image_files(place, findings)
    failed = {failure.case for failure in findings.failures}
    found = {case: file for case, file in files.items() if case not in failed and file.is_file()}
    if role == "references" and (declared := labels_beside(place)) is not None and declared.soft:
        found = by_soft_case(found)
    if not found:
        reasons = "; ".join([*findings, *(f"{failure.case}: {failure.reason}" for failure in findings.failures)])
        what = reasons or "Name the folder that holds the files themselves."
        raise InputError(f"{place}: no label maps in this folder of {role}. {what}")
    return found, findings.failures


def _common_tolerance(pairs: Sequence[Pair]) -> float:
    """The median of the cases' own default, over the references whose header can be read."""
    from medseg3d import images

    tolerances = []
    for pair in pairs:
        try:
            header = images.read_header(pair.reference)
        except InputError:  # this case fails when its turn comes, with this same message
            continue
        tolerances.append(default_tolerance_mm(header.geometry.spacing, header.geometry.shape))
    return statistics.median(tolerances) if tolerances else default_tolerance_mm((1.0, 1.0, 1.0))


def _bytes_of(pair: Pair) -> int:
    from medseg3d import images

    try:
        return BYTES_PER_VOXEL * int(np.prod(images.read_header(pair.reference).geometry.shape, dtype=np.int64))
    except InputError:
        return 0


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" … ({len(listed)} in all)" if len(listed) > 3 else "")
