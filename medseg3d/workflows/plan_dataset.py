"""Plan a dataset in memory: what was opened and measured goes in, a plan with reasons and doubts comes out; nothing is written."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from medseg3d.data.annotated import unused_rows
from medseg3d.data.dataset import Dataset
from medseg3d.data.label_names import with_names
from medseg3d.data.label_pairs import Sides, by_region, sides
from medseg3d.data.label_rules import Filled, absent_background, background_doubts, marker_message, marker_values, name_doubts, rare_labels
from medseg3d.data.plausible import CT_WITHOUT_AIR, LOST_INTERCEPT, is_ct_without_air, is_far_beyond, lost_intercepts, spacing_doubt
from medseg3d.errors import CaseFailure, DatasetError
from medseg3d.fingerprint.familiarity import profile_of
from medseg3d.fingerprint.inferred_names import infer_labels, infer_modality
from medseg3d.fingerprint.make_fingerprint import merge
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.label_codes import LabelCodes, unrecovered_values, with_annotated
from medseg3d.labels import Labels
from medseg3d.options import PlanningOptions
from medseg3d.plan import Plan
from medseg3d.planning import DatasetSummary, Planner, explained_plan, load_planner, summarize
from medseg3d.planning.reasons import Decided
from medseg3d.wording import counted, listed

logger = logging.getLogger(__name__)
MOST_CODES = 32_767
"""Patches hold 16 bits."""
DEFAULT_PLANNER = "default"
NAMED_CHANNELS = "named by dataset.json or --channels"
"""Why a plan took its channels' modalities, where they were not guessed."""


def plan_dataset(
    dataset: Dataset,
    fingerprint: Fingerprint,
    *,
    planner: str | Path = DEFAULT_PLANNER,
    gpu_memory_gb: float | None = None,
    label_names: Mapping[int, str] | None = None,
) -> Plan:
    """The plan that ``medseg3d plan`` makes: a configuration for each resolution, and which one is recommended.

    ``planner`` is the name of a preset or a TOML file; ``gpu_memory_gb`` replaces the memory that it plans for; ``label_names`` are
    names by label value. Doubts about the data are logged as warnings. Raises :class:`DatasetError` where the labels cannot be used,
    and :class:`PlanError` where the planner is wrong or nothing fits the memory.
    """
    PlanningOptions(gpu_memory_gb=gpu_memory_gb, label_names=label_names)  # refuses what the command line refuses
    described = describe_dataset(dataset, fingerprint, label_names or {})
    for warning in described.warnings:
        logger.warning("%s", warning)
    return described.plan_by(load_planner(str(planner)), gpu_memory_gb).value


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedDataset:
    """What planning is told of a dataset; the fingerprint has names for its channels, and only the cases that can be used."""

    fingerprint: Fingerprint
    summary: DatasetSummary
    given_names: dict[int, str]
    warnings: tuple[str, ...]

    def plan_by(self, rules: Planner, gpu_memory_gb: float | None) -> Decided[Plan]:
        """The plan and the reasons for its numbers."""
        decided = explained_plan(self.summary, rules, gpu_memory_gb=gpu_memory_gb)
        made = replace(decided.value, given_names=self.given_names, images=profile_of(self.fingerprint))
        return replace(decided, value=made)


def describe_dataset(dataset: Dataset, fingerprint: Fingerprint, label_names: Mapping[int, str]) -> DescribedDataset:
    """Labels and channels by their declared or inferred names, and what is doubtful about them; raises :class:`DatasetError`."""
    names = {**dataset.label_names, **label_names}
    if dataset.labels is None:
        fingerprint = _without_markers(fingerprint, names)
    labels, found, warnings = _labels(dataset, fingerprint, names)
    channel_names, reason = dataset.channel_names, NAMED_CHANNELS
    if not dataset.has_named_channels:
        channel_names, reason = infer_modality(fingerprint)
    fingerprint = replace(fingerprint, channel_names=tuple(channel_names))
    return DescribedDataset(
        fingerprint=fingerprint,
        summary=summarize(fingerprint, labels, modality_reason=reason, left_right_doubt=found.doubt),
        given_names=dict(label_names),
        warnings=(*_doubts(fingerprint), *warnings),
    )


def _doubts(fingerprint: Fingerprint) -> Iterator[str]:
    """Cases whose numbers can hardly be meant: voxels far beyond all others, voxels of another unit."""
    for index, (name, usual) in enumerate(zip(fingerprint.channel_names, fingerprint.intensities, strict=True)):
        found = [
            f"{case.name} ({channel.minimum:.4g} to {channel.maximum:.4g})"
            for case in fingerprint.cases
            if is_far_beyond((channel := case.channels[index]).minimum, channel.maximum, usual.percentile_00_5, usual.percentile_99_5)
        ]
        if found:
            labelled = f"{usual.percentile_00_5:.4g} to {usual.percentile_99_5:.4g}"
            yield f"Channel {index} ({name}): {listed(found)} reach far beyond the labelled voxels ({labelled}). See medseg3d doctor."
        least = {case.name: case.channels[index].minimum for case in fingerprint.cases}
        if is_ct_without_air(name, least.values()):
            yield f"Channel {index} {CT_WITHOUT_AIR}."
        lost = lost_intercepts(least)
        if lost:
            yield f"Channel {index} ({name}): {listed(lost, most=5)} {'has' if len(lost) == 1 else 'have'} {LOST_INTERCEPT}."
    doubtful = [case.name for case in fingerprint.cases if spacing_doubt(math.prod(case.spacing) ** (1 / 3))]
    if doubtful:
        first = next(case for case in fingerprint.cases if case.name == doubtful[0])
        yield f"{listed(doubtful)}: {spacing_doubt(math.prod(first.spacing) ** (1 / 3))}."


def _without_markers(fingerprint: Fingerprint, names: Mapping[int, str]) -> Fingerprint:
    """Leave out the cases with values that seem to mean "not annotated", unless these have names.

    Raises :class:`DatasetError` where that is half of them or more.
    """
    markers = set(marker_values({*fingerprint.label_values, *_ignored(fingerprint)})) - set(names)
    reasons = {case.name: marker_message(found) for case in fingerprint.cases if (found := sorted(markers & set(case.labels)))}
    if not reasons:
        return fingerprint
    if 2 * len(reasons) >= len(fingerprint.cases):
        message = f"{counted(len(reasons), 'label map')} of {len(fingerprint.cases)} cannot be used ({listed(list(reasons), most=5)}):"
        raise DatasetError(message, sorted(set(reasons.values())))
    rest = merge(
        [case for case in fingerprint.cases if case.name not in reasons],
        dataset=fingerprint.dataset,
        channel_names=fingerprint.channel_names,
        background=fingerprint.background,
        failures=(*fingerprint.failures, *(CaseFailure(case=n, stage="fingerprint", reason=r) for n, r in reasons.items())),
    )
    return replace(rest, frame=fingerprint.frame)


def _ignored(fingerprint: Fingerprint) -> tuple[int, ...]:
    return () if fingerprint.ignore is None else (fingerprint.ignore,)


def _labels(dataset: Dataset, fingerprint: Fingerprint, names: Mapping[int, str]) -> tuple[Labels, Sides, tuple[str, ...]]:
    """The declared labels, checked against what the files hold, inferred where nothing is declared; what is known of left and right."""
    labels = dataset.labels or replace(infer_labels(fingerprint), ignore=fingerprint.ignore)
    labels = with_names(labels, names)
    unknown_names = sorted(set(names) - set(labels.file_values))
    findings = [
        f"{case.name}: label values {unknown} are not in the list {sorted(labels.file_values)}"
        for case in fingerprint.cases
        if (unknown := sorted(set(case.labels) - set(labels.file_values)))
    ]
    if findings:
        raise DatasetError(
            f"{dataset.root}: label files hold values that dataset.json does not list. Correct the files, or add the labels to "
            "dataset.json:",
            findings,
        )
    found = sides(by_region(fingerprint.cases, labels), labels)
    warnings = (*found.warnings, *name_doubts(dict(zip(labels.values, labels.names, strict=True))))
    if unknown_names:
        values = ", ".join(map(str, unknown_names))
        warnings = (
            *warnings,
            f"Names are given for the label values {values}, which no label file holds; they are {list(labels.values[1:])}.",
        )
    filled = [
        Filled(name=case.name, shares={value: label.voxels / math.prod(case.shape) for value, label in case.labels.items()})
        for case in fingerprint.cases
    ]
    if dataset.labels is None and not names and (reason := absent_background(filled)):
        raise DatasetError(f"{dataset.root}: the label maps cannot be used as they are:", [reason])
    warnings = (*warnings, *background_doubts(filled, dict(zip(labels.values, labels.names, strict=True))))
    if dataset.labels is None:
        voxels = {case.name: {value: label.voxels for value, label in case.labels.items()} for case in fingerprint.cases}
        warnings = (*warnings, *rare_labels(voxels))
    absent = [labels.names[index] for index in labels.foreground if not set(labels.members(index)) & set(fingerprint.label_values)]
    if absent:
        warnings = (*warnings, f"No training case holds {', '.join(absent)}; the network cannot learn it.")
    labels = with_annotated(replace(labels, pairs=found.pairs), {case.name: case.annotated for case in dataset.training})
    if LabelCodes(labels).num_codes > MOST_CODES:
        raise DatasetError(
            f"{dataset.root}: annotated.csv makes {len(labels.unannotated)} different sets of structures, more than fit with "
            f"{len(labels.annotated_values)} label values. Annotate groups of cases alike, or train them as several datasets."
        )
    return labels, found, (*warnings, *_about_kinds(dataset, fingerprint, labels))


def _about_kinds(dataset: Dataset, fingerprint: Fingerprint, labels: Labels) -> Iterator[str]:
    """What was found of annotations that are not complete, where the files alone say so or something does not fit."""
    if labels.ignore is not None and dataset.labels is None and labels.ignore not in dataset.label_names:
        yield (
            f"The label value {labels.ignore} is taken for voxels that nobody has annotated: they are left out of training and evaluation. "
            f"If it is a structure, name it (--labels {labels.ignore}=NAME, or labels.csv beside the images)."
        )
    if unused := unused_rows(dataset.root, [case.name for case in (*dataset.training, *dataset.test)]):
        yield f"{unused[:1].upper()}{unused[1:]}."
    if blurred := unrecovered_values(labels):
        yield (
            f"A predicted label map cannot tell all regions: voxels of the value {', '.join(map(str, blurred))} belong to other regions "
            "than what is written for them by regions_class_order. Training is not affected; metrics of these regions are."
        )
    if labels.soft:
        yield (
            "The label files hold probabilities (soft labels): training learns them as they are; folds, sampling and evaluation go by the "
            "most probable label of a voxel."
        )
    if dataset.labels is None and (unknown := sorted({n for c in dataset.training for n in c.annotated or ()} - set(labels.names))):
        raise DatasetError(
            f"{dataset.root}: annotated.csv names labels that the dataset does not have. Give the label values names, in labels.csv:",
            [f"{listed(unknown)}; the labels are {listed(list(labels.names[1:]), most=20)}"],
        )
    held = {case.name: set(case.labels) for case in fingerprint.cases}
    for index in labels.foreground:
        lacking = [case.name for case in dataset.training if case.annotated is not None and labels.names[index] not in case.annotated]
        holders = [name for name in lacking if held.get(name, set()) & set(labels.members(index))]
        if holders and not labels.regions:
            yield (
                f"{labels.names[index]} is not among what {listed(holders, most=5)} were annotated for, by annotated.csv, but the files "
                "hold it: it is not used there."
            )
        if len(lacking) == len(dataset.training):
            yield f"No training case was annotated for {labels.names[index]}; the network cannot learn it."
