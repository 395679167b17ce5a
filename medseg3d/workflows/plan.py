"""Plan: dataset → fingerprint → plan and splits, written into the work folder."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg3d.data.dataset import Dataset
from medseg3d.data.label_names import with_names
from medseg3d.data.label_pairs import Sides, sides
from medseg3d.data.label_rules import Filled, absent_background, background_doubts, marker_message, marker_values, name_doubts, rare_labels
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.plausible import CT_WITHOUT_AIR, LOST_INTERCEPT, is_ct_without_air, is_far_beyond, lost_intercepts, spacing_doubt
from medseg3d.errors import CaseFailure, DatasetError, InputError
from medseg3d.events import Event, Listener, silent
from medseg3d.execution import memory_budget
from medseg3d.files import check_writable
from medseg3d.fingerprint.familiarity import profile_of
from medseg3d.fingerprint.inferred_names import infer_labels, infer_modality
from medseg3d.fingerprint.make_fingerprint import make_fingerprint, merge
from medseg3d.fingerprint.records import CaseFingerprint, Fingerprint
from medseg3d.labels import Labels
from medseg3d.options import CasesOptions, PlanOptions
from medseg3d.plan import Plan
from medseg3d.planning import (
    DatasetSummary,
    Explanation,
    Planner,
    explained_plan,
    load_planner,
    read_nnunet_fingerprint,
    summarize,
)
from medseg3d.planning.candidates import Candidate, Speed, candidates
from medseg3d.records import read_json, read_record, write_record
from medseg3d.training.folds import Splits
from medseg3d.wording import counted, listed
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.choose_folds import GroupChoice, choose_folds
from medseg3d.workflows.taking_turns import planning_lock
from medseg3d.workflows.verb import verb

logger = logging.getLogger(__name__)
DEFAULT_PLANNER = "default"
NO_OPTIONS = PlanOptions()
NAMED_CHANNELS = "named by dataset.json or --channels"
"""Why a plan took its channels' modalities, where they were not guessed."""
SECONDS_BETWEEN_SAVES = 60.0
"""Cases measured since are measured again after a power cut; writing the fingerprint takes a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanResult:
    """A plan with what led to it; ``path`` is None where no work folder was named."""

    plan: Plan
    explanations: tuple[Explanation, ...]
    warnings: tuple[str, ...]
    failures: tuple[CaseFailure, ...] = ()
    folds: Splits | None = None
    path: Path | None = None
    candidates: tuple[Candidate, ...] = ()


@verb(PlanOptions)
def plan(root: Path, work: Path | None, options: PlanOptions, on: Listener) -> PlanResult:
    """Measure the dataset and plan it; unchanged cases are not read again. Raises an ``InputError`` for an unusable dataset.

    Without ``planner`` the choices of a plan that is there (planner, memory, channels) are kept, and so are the names of labels.
    ``with_candidates`` also says what other networks would take, which needs torch and some seconds.
    """
    return plan_by(None if options.planner is None else load_planner(options.planner), root, work, options, on)


def plan_by(
    planner: Planner | None, root: Path, work: Path | None, options: PlanOptions, on: Listener = silent, *, num_datasets: int = 1
) -> PlanResult:
    """:func:`plan` by the rules of a planner; ``num_datasets`` could share a universal network."""
    folder = work_folder(root, work)
    label_names = options.label_names
    if label_names is None:
        label_names = folder.read_plan().given_names if folder.plan.exists() else {}
    rules, gpu_memory_gb = planner or load_planner(DEFAULT_PLANNER), options.gpu_memory_gb
    channels = [options.channels] if isinstance(options.channels, str) else options.channels
    if planner is None and folder.plan.exists():
        rules, gpu_memory_gb, channels = earlier_choices(folder, gpu_memory_gb, channels)
    dataset = open_dataset(root, channels=channels)
    for failure in dataset.failures:
        logger.error("%s", failure)
    folder = work_folder(root, work)
    check_writable(folder.root)
    with planning_lock(folder, on):
        fingerprint = _measure(dataset, folder, options, on)
        names = {**dataset.label_names, **label_names}
        if dataset.labels is None:
            fingerprint = _without_markers(fingerprint, names)
        labels, found, warnings = _labels(dataset, fingerprint, names)
        channel_names, reason = dataset.channel_names, NAMED_CHANNELS
        if not dataset.has_named_channels:
            channel_names, reason = infer_modality(fingerprint)
        fingerprint = replace(fingerprint, channel_names=tuple(channel_names))
        write_record(folder.fingerprint, fingerprint, "fingerprint")
        summary = summarize(fingerprint, labels, modality_reason=reason, left_right_doubt=found.doubt)
        decided = explained_plan(summary, rules, gpu_memory_gb=gpu_memory_gb)
        made = replace(decided.value, given_names=dict(label_names), images=profile_of(fingerprint))
        table = None if options.groups is None else Path(options.groups)
        asked = GroupChoice(pattern=options.group_pattern, table=table, is_off=options.no_groups)
        folds, split_warnings = choose_folds(dataset, fingerprint, folder.splits, asked)
        split_warnings = (*split_warnings, *_stale_models(folder, made))
        write_record(folder.splits, folds, "splits")
        write_record(folder.planner, rules, "planner")
        write_record(folder.plan, made, "plan")  # last, as others ask whether it is there
    return PlanResult(
        plan=made,
        explanations=decided.reasons,
        warnings=(*_doubts(fingerprint), *warnings, *split_warnings),
        failures=fingerprint.failures,
        folds=folds,
        path=folder.plan,
        candidates=_candidates(summary, made, num_datasets) if options.with_candidates else (),
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


def earlier_choices(
    folder: WorkFolder, gpu_memory_gb: float | None, channels: Sequence[str] | None
) -> tuple[Planner, float | None, Sequence[str] | None]:
    """Planner, memory and channels of the plan in the work folder, where they are not given now; a planner file is not needed again."""
    before = folder.read_plan()
    rules = read_record(folder.planner, Planner, "planner") if folder.planner.exists() else None
    if rules is None or rules.name != before.planner:
        rules = load_planner(before.planner)
    named = before.channels if before.modality_reason == NAMED_CHANNELS else None
    return rules, gpu_memory_gb or before.gpu_memory_gb, channels or named


def _stale_models(folder: WorkFolder, made: Plan) -> list[str]:
    """Says which trained configurations the new plan does not describe any more."""
    if not folder.plan.exists():
        return []
    before = folder.read_plan()
    changed = [
        name
        for name, configuration in before.configurations.items()
        if folder.trained_folds(name) and (made.configurations.get(name), made.labels) != (configuration, before.labels)
    ]
    if not changed:
        return []
    return [
        f"{', '.join(changed)}: trained with an earlier plan ({before.planner}, {before.gpu_memory_gb:g} GB), which predict goes on using. "
        "To train by this plan, give --restart; to have the earlier one back, plan with its planner and --gpu-memory."
    ]


def plan_from_fingerprint(file: Path, work: Path | None = None, options: PlanOptions = NO_OPTIONS) -> PlanResult:
    """Plan without images, from our ``fingerprint.json`` or nnU-Net's ``dataset_fingerprint.json``; written only with ``work``."""
    document = read_json(file)
    if isinstance(document, dict) and document.get("format") == "medseg3d/fingerprint":
        fingerprint = read_record(file, Fingerprint, "fingerprint")
        labels = with_names(infer_labels(fingerprint), options.label_names or {})
        found = sides(fingerprint.cases, labels)
        summary = summarize(fingerprint, replace(labels, pairs=found.pairs), left_right_doubt=found.doubt)
        images = profile_of(fingerprint)
    elif isinstance(document, dict) and "spacings" in document:
        summary, images = read_nnunet_fingerprint(file), None
    else:
        raise InputError(f"{file}: neither a medseg3d fingerprint.json nor nnU-Net's dataset_fingerprint.json.")
    rules = load_planner(options.planner or DEFAULT_PLANNER)
    decided = explained_plan(summary, rules, gpu_memory_gb=options.gpu_memory_gb)
    made = replace(decided.value, images=images)
    path = None
    if work is not None:
        with planning_lock(WorkFolder(work)):
            write_record(WorkFolder(work).planner, rules, "planner")
            path = write_record(WorkFolder(work).plan, made, "plan")
    proposed = _candidates(summary, made, 1) if options.with_candidates else ()
    return PlanResult(plan=made, explanations=decided.reasons, warnings=(), path=path, candidates=proposed)


def _candidates(summary: DatasetSummary, made: Plan, num_datasets: int) -> tuple[Candidate, ...]:
    """What other networks would take on the device at hand."""
    from medseg3d.devices import choose_device, measure_speed
    from medseg3d.patches.augmentation import measure_augmentation

    device = choose_device("auto")
    multiply_adds, moved = measure_speed(device)
    augmented = measure_augmentation(device.device)
    speed = Speed(device=str(device.device), multiply_adds=multiply_adds, bytes=moved, augmented_voxels=augmented)
    return candidates(summary, gpu_memory_gb=made.gpu_memory_gb, speed=speed, num_datasets=num_datasets)


def _measure(dataset: Dataset, folder: WorkFolder, options: CasesOptions, on: Listener) -> Fingerprint:
    previous = None
    if folder.fingerprint.exists():
        try:
            previous = read_record(folder.fingerprint, Fingerprint, "fingerprint")
        except InputError as error:
            logger.warning("%s; measuring all cases again.", error)
    total, done, saved = len(dataset.training), 0, time.monotonic()
    on(Event(stage="fingerprint", total=total))
    older = {case.name: case for case in previous.cases} if previous else {}

    def keep(measured: Sequence[CaseFingerprint]) -> None:
        nonlocal done, saved
        done += 1
        on(Event(stage="fingerprint", done=done, total=total))
        if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:  # a run that is killed does not begin anew
            cases = (older | {case.name: case for case in measured}).values()
            background = dataset.labels.values[0] if dataset.labels else 0
            partial = Fingerprint(
                dataset=dataset.name, channel_names=dataset.channel_names, background=background, cases=tuple(cases), intensities=()
            )
            write_record(folder.fingerprint, partial, "fingerprint")
            saved = time.monotonic()

    budget = memory_budget(options.max_ram_gb)
    fingerprint = make_fingerprint(dataset, previous=previous, num_workers=options.jobs, max_bytes=budget, on_case=keep)
    write_record(folder.fingerprint, fingerprint, "fingerprint")
    return fingerprint


def _without_markers(fingerprint: Fingerprint, names: Mapping[int, str]) -> Fingerprint:
    """Leave out the cases with values that seem to mean "not annotated", unless these have names.

    Raises :class:`DatasetError` where that is half of them or more.
    """
    markers = set(marker_values(fingerprint.label_values)) - set(names)
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


def _labels(dataset: Dataset, fingerprint: Fingerprint, names: Mapping[int, str]) -> tuple[Labels, Sides, tuple[str, ...]]:
    """The declared labels, checked against what the files hold, inferred where nothing is declared; what is known of left and right."""
    labels = dataset.labels or infer_labels(fingerprint)
    unknown_names = sorted(set(names) - set(labels.values))
    labels = with_names(labels, names)
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
    found = sides(fingerprint.cases, labels)
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
    absent = [name for name, value in zip(labels.names, labels.values, strict=True) if value not in fingerprint.label_values]
    absent = [name for name in absent if name != labels.names[0]]
    if absent:
        warnings = (*warnings, f"No training case holds {', '.join(absent)}; the network cannot learn it.")
    return replace(labels, pairs=found.pairs), found, tuple(warnings)
