"""Plan: dataset → fingerprint → plan and splits, written into the work folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg3d.dataset import Dataset, open_dataset, read_splits
from medseg3d.errors import CaseFailure, DatasetError, InputError
from medseg3d.events import Event, Listener, silent
from medseg3d.fingerprint import (
    Fingerprint,
    infer_labels,
    infer_modality,
    left_right_pairs_by_position,
    make_fingerprint,
)
from medseg3d.labels import Labels
from medseg3d.plan import Plan
from medseg3d.planning import Explanation, explain, load_planner, make_plan, read_nnunet_fingerprint, summarize
from medseg3d.records import read_json, read_record, write_record
from medseg3d.training.folds import Folds, check_groups, groups_from_csv, groups_from_pattern, make_splits
from medseg3d.work_folder import WorkFolder, work_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """A plan with what led to it; ``path`` is None where no work folder was named."""

    plan: Plan
    explanations: tuple[Explanation, ...]
    warnings: tuple[str, ...]
    failures: tuple[CaseFailure, ...] = ()
    folds: Folds | None = None
    path: Path | None = None


def plan(
    root: Path,
    work: Path | None = None,
    *,
    planner: str = "default",
    gpu_memory_gb: float | None = None,
    channels: Sequence[str] | None = None,
    group_pattern: str | None = None,
    groups: Path | None = None,
    on: Listener = silent,
) -> PlanResult:
    """Measure the dataset and plan it; unchanged cases are not read again. Raises an ``InputError`` for an unusable dataset."""
    rules = load_planner(planner)
    dataset = open_dataset(root, channels=channels)
    folder = work_folder(root, work)
    fingerprint = _measure(dataset, folder, on)
    labels, warnings = _labels(dataset, fingerprint)
    channel_names, reason = dataset.channel_names, "named by dataset.json or --channels"
    if not dataset.has_named_channels:
        channel_names, reason = infer_modality(fingerprint)
    fingerprint = replace(fingerprint, channel_names=tuple(channel_names))
    write_record(folder.fingerprint, fingerprint, "fingerprint")
    summary = summarize(fingerprint, labels, modality_reason=reason)
    made = make_plan(summary, rules, gpu_memory_gb=gpu_memory_gb)
    folds, split_warnings = _folds(dataset, fingerprint, folder, group_pattern, groups)
    write_record(folder.plan, made, "plan")
    write_record(folder.splits, folds, "splits")
    return PlanResult(
        plan=made,
        explanations=explain(made, summary, rules),
        warnings=(*warnings, *split_warnings),
        failures=fingerprint.failures,
        folds=folds,
        path=folder.plan,
    )


def plan_from_fingerprint(
    file: Path, *, work: Path | None = None, planner: str = "default", gpu_memory_gb: float | None = None
) -> PlanResult:
    """Plan without images, from our ``fingerprint.json`` or nnU-Net's ``dataset_fingerprint.json``; written only with ``work``."""
    document = read_json(file)
    if isinstance(document, dict) and document.get("format") == "medseg3d/fingerprint":
        fingerprint = read_record(file, Fingerprint, "fingerprint")
        summary = summarize(fingerprint, infer_labels(fingerprint))
    elif isinstance(document, dict) and "spacings" in document:
        summary = read_nnunet_fingerprint(file)
    else:
        raise InputError(f"{file}: neither a medseg3d fingerprint.json nor nnU-Net's dataset_fingerprint.json.")
    rules = load_planner(planner)
    made = make_plan(summary, rules, gpu_memory_gb=gpu_memory_gb)
    path = write_record(WorkFolder(work).plan, made, "plan") if work is not None else None
    return PlanResult(plan=made, explanations=explain(made, summary, rules), warnings=(), path=path)


def _measure(dataset: Dataset, folder: WorkFolder, on: Listener) -> Fingerprint:
    previous = None
    if folder.fingerprint.exists():
        try:
            previous = read_record(folder.fingerprint, Fingerprint, "fingerprint")
        except InputError as error:
            logger.warning("%s; measuring all cases again.", error)
    total, done = len(dataset.training), 0

    def count(name: str) -> None:
        nonlocal done
        done += 1
        on(Event(stage="fingerprint", done=done, total=total))

    return make_fingerprint(dataset, previous=previous, on_case=count)


def _labels(dataset: Dataset, fingerprint: Fingerprint) -> tuple[Labels, tuple[str, ...]]:
    """The declared labels, checked against what the files hold; inferred where nothing is declared."""
    labels = dataset.labels or infer_labels(fingerprint)
    findings = [
        f"{case.name}: label values {unknown} are not in the list {sorted(labels.values)}"
        for case in fingerprint.cases
        if (unknown := sorted(set(case.labels) - set(labels.values)))
    ]
    if findings:
        raise DatasetError(
            f"{dataset.root}: label files hold values that dataset.json does not list. Correct the files, or add the labels to "
            "dataset.json:",
            findings,
        )
    pairs, warnings = left_right_pairs_by_position(fingerprint, labels)
    absent = [name for name, value in zip(labels.names, labels.values, strict=True) if value not in fingerprint.label_values]
    absent = [name for name in absent if name != labels.names[0]]
    if absent:
        warnings = (*warnings, f"No training case holds {', '.join(absent)}; the network cannot learn it.")
    return replace(labels, pairs=tuple(pairs)), tuple(warnings)


def _folds(
    dataset: Dataset, fingerprint: Fingerprint, folder: WorkFolder, group_pattern: str | None, groups: Path | None
) -> tuple[Folds, tuple[str, ...]]:
    """The folds that are there already, those that came with the dataset, or new ones: in this order."""
    names = tuple(case.name for case in fingerprint.cases)
    if folder.splits.exists() and group_pattern is None and groups is None:
        return Folds(folds=read_splits(folder.splits, names)), ()
    if dataset.declared_splits is not None and group_pattern is None and groups is None:
        return Folds(folds=dataset.declared_splits), ()
    group_of = {}
    if group_pattern is not None:
        group_of = groups_from_pattern(names, group_pattern)
    elif groups is not None:
        group_of = groups_from_csv(groups)
        check_groups(group_of, names, str(groups))
    present = {case.name: frozenset(case.labels) for case in fingerprint.cases}
    made, warnings = make_splits(names, labels_present=present, group_of=group_of)
    return Folds(folds=made), warnings
