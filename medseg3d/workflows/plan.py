"""Plan: dataset → fingerprint → plan and splits, written into the work folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg3d.data.dataset import Dataset
from medseg3d.data.label_names import ignored_value, with_names
from medseg3d.data.label_pairs import sides
from medseg3d.data.open_dataset import open_dataset
from medseg3d.errors import CaseFailure, InputError
from medseg3d.events import Event, Listener, silent
from medseg3d.execution import memory_budget
from medseg3d.files import check_writable
from medseg3d.fingerprint.familiarity import profile_of
from medseg3d.fingerprint.inferred_names import infer_labels
from medseg3d.fingerprint.make_fingerprint import make_fingerprint
from medseg3d.fingerprint.records import CaseFingerprint, Fingerprint
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
from medseg3d.planning.candidates import Candidate, candidates
from medseg3d.planning.inherit import inherited_plan, with_axes_of
from medseg3d.planning.loss_rules import check_extensions
from medseg3d.records import read_json, read_record, write_record
from medseg3d.training.folds import Splits
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.choose_folds import GroupChoice, choose_folds
from medseg3d.workflows.estimate import measured_speed
from medseg3d.workflows.plan_dataset import DEFAULT_PLANNER, NAMED_CHANNELS, describe_dataset
from medseg3d.workflows.plan_time import rules_for_time
from medseg3d.workflows.taking_turns import planning_lock
from medseg3d.workflows.verb import verb
from medseg3d.workflows.workers import cluster_workers, on_absolute_paths

logger = logging.getLogger(__name__)
NO_OPTIONS = PlanOptions()
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

    ``inherit_plan`` is a model whose network, spacing and patch are taken. Without ``planner`` the choices of a plan that is there
    (planner, memory, channels, the model) are kept, and so are the names of labels.
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
    inherited = None if options.inherit_plan is None else plan_of_model(Path(options.inherit_plan))
    dataset = open_dataset(root, channels=channels)
    dataset = replace(dataset, label_names={**dataset.label_names, **label_names})
    for failure in dataset.failures:
        logger.error("%s", failure)
    folder = work_folder(root, work)
    check_writable(folder.root)
    with planning_lock(folder, on):
        fingerprint = measure_dataset(dataset, folder, options, on)
        on(Event(stage="plan", total=1))  # counting what networks take is seconds as well
        model = inherited if inherited is not None or planner is not None else earlier_model(folder)
        if model is not None:
            theirs, fingerprint = with_axes_of(model[0], fingerprint)
            model = theirs, model[1]
        described = describe_dataset(dataset, fingerprint, label_names)
        write_record(folder.fingerprint, described.fingerprint, "fingerprint")
        if num_datasets == 1 and model is None:
            rules = rules_for_time(
                rules, folder, described.summary, hours=options.hours, gpu_memory_gb=gpu_memory_gb, device=options.device
            )
        decided = described.plan_by(rules, gpu_memory_gb)
        if model is not None:
            decided = inherited_plan(decided, described.summary, rules, *model)
        table = None if options.groups is None else Path(options.groups)
        asked = GroupChoice(pattern=options.group_pattern, table=table, is_off=options.no_groups, members=options.members)
        folds, split_warnings = choose_folds(dataset, described.fingerprint, folder.splits, asked)
        split_warnings = (*split_warnings, *_stale_models(folder, decided.value))
        write_record(folder.splits, folds, "splits")
        write_record(folder.planner, rules, "planner")
        write_record(folder.plan, decided.value, "plan")  # last, as others ask whether it is there
    proposed = _candidates(described.summary, decided.value, num_datasets, options) if options.with_candidates else ()
    on(Event(stage="plan", done=1, total=1))
    return PlanResult(
        plan=decided.value,
        explanations=decided.reasons,
        warnings=(*described.warnings, *split_warnings),
        failures=described.fingerprint.failures,
        folds=folds,
        path=folder.plan,
        candidates=proposed,
    )


def earlier_choices(
    folder: WorkFolder, gpu_memory_gb: float | None, channels: Sequence[str] | None
) -> tuple[Planner, float | None, Sequence[str] | None]:
    """Planner, memory and channels of the plan in the work folder, where they are not given now; a planner file is not needed again."""
    before = folder.read_plan()
    check_extensions(before)
    rules = read_record(folder.planner, Planner, "planner") if folder.planner.exists() else None
    if rules is None or rules.name != before.planner:
        rules = load_planner(before.planner)
    named = before.channels if before.modality_reason == NAMED_CHANNELS else None
    return rules, gpu_memory_gb or before.gpu_memory_gb, channels or named


def plan_of_model(path: Path) -> tuple[Plan, str]:
    """The plan that a model of any kind was trained by, and what to call the model; raises :class:`InputError` where none is trained."""
    from medseg3d.models.sources import source_of

    try:
        source = source_of(path)
        held = source.held(path)
        name = next(iter(held), None)
        if name is None:
            raise InputError(f"{path}: nothing is trained there.")
        return source.open(path, name, held[name][:1]).description.plan, str(path)
    except InputError as error:
        raise InputError(f"--inherit-plan {error}") from None


def earlier_model(folder: WorkFolder) -> tuple[Plan, str] | None:
    """The plan in the work folder where it was inherited; it holds all that it has of the model."""
    before = folder.read_plan() if folder.plan.exists() else None
    return (before, before.inherits) if before is not None and before.inherits else None


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
    document, model = read_json(file), None if options.inherit_plan is None else plan_of_model(Path(options.inherit_plan))
    if isinstance(document, dict) and document.get("format") == "medseg3d/fingerprint":
        fingerprint = read_record(file, Fingerprint, "fingerprint")
        if model is not None:
            theirs, fingerprint = with_axes_of(model[0], fingerprint)
            model = theirs, model[1]
        labels = replace(with_names(infer_labels(fingerprint), options.label_names or {}), ignore=fingerprint.ignore)
        found = sides(fingerprint.cases, labels)
        summary = summarize(fingerprint, replace(labels, pairs=found.pairs), left_right_doubt=found.doubt)
        images = profile_of(fingerprint)
    elif isinstance(document, dict) and "spacings" in document:
        summary, images = read_nnunet_fingerprint(file), None
    else:
        raise InputError(f"{file}: neither a medseg3d fingerprint.json nor nnU-Net's dataset_fingerprint.json.")
    rules, memory = load_planner(options.planner or DEFAULT_PLANNER), options.gpu_memory_gb
    if model is None:
        folder = None if work is None else WorkFolder(work)
        rules = rules_for_time(rules, folder, summary, hours=options.hours, gpu_memory_gb=memory, device=options.device)
    decided = explained_plan(summary, rules, gpu_memory_gb=memory)
    if model is not None:
        decided = inherited_plan(decided, summary, rules, *model)
    made = replace(decided.value, images=images)
    path = None
    if work is not None:
        with planning_lock(WorkFolder(work)):
            write_record(WorkFolder(work).planner, rules, "planner")
            path = write_record(WorkFolder(work).plan, made, "plan")
    proposed = _candidates(summary, made, 1, options) if options.with_candidates else ()
    return PlanResult(plan=made, explanations=decided.reasons, warnings=(), path=path, candidates=proposed)


def _candidates(summary: DatasetSummary, made: Plan, num_datasets: int, options: PlanOptions) -> tuple[Candidate, ...]:
    """What other networks would take on the device at hand."""
    speed = measured_speed("auto")
    return candidates(
        summary, gpu_memory_gb=made.gpu_memory_gb, speed=speed, num_datasets=num_datasets, own=made, real_time=options.real_time
    )


def measure_dataset(dataset: Dataset, folder: WorkFolder, options: CasesOptions, on: Listener = silent) -> Fingerprint:
    """The fingerprint in the work folder, with what is new or has changed measured again."""
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
                dataset=dataset.name,
                channel_names=dataset.channel_names,
                background=background,
                cases=tuple(cases),
                intensities=(),
                ignore=ignored_value(dataset.labels, dataset.label_names),
            )
            write_record(folder.fingerprint, partial, "fingerprint")
            saved = time.monotonic()

    budget = memory_budget(options.max_ram_gb)
    with cluster_workers(options.cluster) as cluster:
        fingerprint = make_fingerprint(
            dataset if cluster is None else on_absolute_paths(dataset),
            previous=previous,
            num_workers=options.jobs if cluster is None else cluster.num_threads,
            max_bytes=budget,
            on_case=keep,
            executor=None if cluster is None else cluster.cases,
        )
    write_record(folder.fingerprint, fingerprint, "fingerprint")
    return fingerprint
