"""Compare: several presets planned, trained alike and validated on one fold; a paired table comes out. A second call goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg3d.boundary import CaseBoundary
from medseg3d.data.grouping import recorded_patients
from medseg3d.data.open_dataset import open_dataset
from medseg3d.devices import choose_device
from medseg3d.errors import DivergedError, InputError, PlanError, PlanMismatchError, UnsupportedError
from medseg3d.evaluation.metrics import Evaluation
from medseg3d.events import Event, Listener
from medseg3d.files import check_writable, write_text
from medseg3d.models.loading import load_models
from medseg3d.options import CompareOptions, PlanOptions, PreprocessOptions, TrainOptions
from medseg3d.plan import Configuration, Plan
from medseg3d.planning import load_planner
from medseg3d.provenance import weights_digest
from medseg3d.records import read_record, write_record
from medseg3d.reporting.comparison_page import write_comparison_page
from medseg3d.training.state import read_history, read_summary
from medseg3d.validation.preset_comparison import Comparison, Trained, compared
from medseg3d.wording import counted
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.plan import plan
from medseg3d.workflows.preprocess import preprocess
from medseg3d.workflows.splits import read_split
from medseg3d.workflows.train import train
from medseg3d.workflows.verb import verb

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = "medseg3d-compare"
"""In the dataset's folder, where no other is named."""
TIMED_CASES = 3
"""Validation cases that are predicted once more for the seconds of one."""
RECORD, PAGE, TRAINED = "comparison.json", "comparison.html", "trained.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A preset or a planner file as it was named, with the configuration that it shall train, and the name of its folder."""

    preset: str
    configuration: str | None
    name: str
    is_first: bool = False


@verb(CompareOptions)
def compare(root: Path, work: Path | None, options: CompareOptions, on: Listener) -> Comparison:
    """Plan, preprocess, train and validate each preset on the same fold, for the same length, and compare their Dice case by case.

    ``work`` is the folder of the comparison (``DATASET/medseg3d-compare``): a work folder for each preset, ``comparison.json`` and
    ``comparison.html``. What is done there is not done again. A preset that cannot be planned or diverges is left out, with its reason;
    raises :class:`InputError` where fewer than two are named, or one twice.
    """
    contenders = contenders_of(options.presets)
    if options.fold == "all":
        raise InputError("--fold all: has no validation cases to compare on. Name a fold, such as 0.")
    open_dataset(root)  # says what is wrong with the folder before anything is written
    choose_device(options.device)
    folder = WorkFolder(root / DEFAULT_FOLDER if work is None else work)
    check_writable(folder.root)
    planned, problems = _all_planned(root, folder, contenders, options, on)
    trained: list[Trained] = []
    for number, (contender, configuration) in enumerate(planned, 1):
        on(Event(stage="compare", message=f"— {contender.name} ({number} of {len(planned)}) —"))
        try:
            trained.append(_trained(root, folder, contender, configuration, options, on))
        except (InputError, PlanError, PlanMismatchError, DivergedError, UnsupportedError) as error:  # such as too little memory for one
            problems[contender.name] = str(error)
            on(Event(stage="compare", message=f"{contender.name}: {error}"))
        if trained:
            comparison = _written(folder.root, root, trained, problems, options)
    if not trained:
        raise PlanError(" ".join(f"{name}: {problem}" for name, problem in problems.items()))
    return comparison


def contenders_of(presets: str | Sequence[str]) -> tuple[Contender, ...]:
    """What was named; raises :class:`InputError` for fewer than two, and for two of one name.

    >>> [contender.name for contender in contenders_of(["default", "unet_wide@2d", "mine/small.toml"])]
    ['default', 'unet_wide@2d', 'small']
    """
    names = [presets] if isinstance(presets, str) else list(presets)
    found: list[Contender] = []
    for each in map(str, names):
        folder, slash, last = each.rpartition("/")  # an @ in the name of a folder is no configuration
        preset, _, configuration = last.partition("@")
        name = Path(preset).stem + (f"@{configuration}" if configuration else "")
        found.append(Contender(preset=folder + slash + preset, configuration=configuration or None, name=name, is_first=not found))
    twice = sorted({each.name for each in found if [other.name for other in found].count(each.name) > 1})
    if len(found) < 2:
        raise InputError(f"compare: {counted(len(found), 'preset')} named, expected two or more, such as compare default unet_plus_plus.")
    if twice:
        raise InputError(f"compare: {', '.join(twice)} is named twice. Name each preset once; planner files need different names.")
    return tuple(found)


def _written(target: Path, root: Path, trained: Sequence[Trained], problems: dict[str, str], options: CompareOptions) -> Comparison:
    """After every preset, so that what is known can be read while the others train."""
    comparison = compared(
        trained,
        dataset=root.resolve().name,
        fold=options.fold,
        length=_length_in_words(options),
        problems=problems,
        seed=options.seed,
        patients=recorded_patients(WorkFolder(target / trained[0].name).splits) if trained else {},
    )
    write_record(target / RECORD, comparison, "comparison")
    write_comparison_page(comparison, target / PAGE)
    return comparison


def _length_in_words(options: CompareOptions) -> str:
    length = options.length
    if length["hours"] is not None:
        return f"{length['hours']:g} hours each"
    epochs = "the plan's epochs" if length["epochs"] is None else counted(int(length["epochs"]), "epoch")
    steps = "" if length["iterations"] is None else f" of {counted(int(length['iterations']), 'step')}"
    return f"{epochs}{steps} each"


def _all_planned(
    root: Path, folder: WorkFolder, contenders: Sequence[Contender], options: CompareOptions, on: Listener
) -> tuple[list[tuple[Contender, Configuration]], dict[str, str]]:
    """What each preset trains, before anything is trained; and why the others cannot be planned.

    Raises :class:`PlanError` for an unknown preset, :class:`InputError` for a configuration that a plan does not have, and for two presets
    that would train the same network.
    """
    for contender in contenders:
        load_planner(contender.preset)
    planned: list[tuple[Contender, Configuration]] = []
    problems: dict[str, str] = {}
    for contender in contenders:
        try:
            made = _planned(root, folder, WorkFolder(folder.root / contender.name), contender, options, on)
        except (PlanError, UnsupportedError) as error:
            problems[contender.name] = str(error)
            on(Event(stage="compare", message=f"{contender.name}: {error}"))
            continue
        if contender.configuration not in (None, *made.configurations):
            known = ", ".join(made.configurations)
            raise InputError(f"{contender.name}: its plan has no configuration {contender.configuration}. Name one of {known}.")
        configuration = made.configuration(contender.configuration)
        for other, chosen in planned:
            if (other.preset, chosen.name) == (contender.preset, configuration.name):
                raise InputError(f"{other.name} and {contender.name} are the same network, {chosen.name}. Leave one of them out.")
        planned.append((contender, configuration))
    return planned, problems


def _trained(
    root: Path, folder: WorkFolder, contender: Contender, configuration: Configuration, options: CompareOptions, on: Listener
) -> Trained:
    """One preset, from its plan to its validation."""
    own = WorkFolder(folder.root / contender.name)
    preprocess(root, own.root, PreprocessOptions.of(options, configurations=[configuration.name], device="cpu"), on)
    training = TrainOptions.of(options, configuration=configuration.name, fold=options.fold, **options.length)
    evaluation = train(root, own.root, training, on)[None]
    if evaluation is None:
        raise PlanError(f"fold {options.fold} has no validation cases, so there is nothing to compare.")
    return _described(root, own, contender, configuration, evaluation, options)


def _planned(root: Path, folder: WorkFolder, own: WorkFolder, contender: Contender, options: CompareOptions, on: Listener) -> Plan:
    """The plan of a preset, whose folds and measured images are those of the first one that was planned."""
    for shared, wanted in ((folder.splits, own.splits), (folder.fingerprint, own.fingerprint)):
        if shared.exists():
            text = shared.read_text(encoding="utf-8")
            if not wanted.exists() or (shared is folder.splits and wanted.read_text(encoding="utf-8") != text):
                write_text(wanted, text)
    says_groups = options.group_pattern is not None or options.groups is not None or options.no_groups
    decides = not folder.splits.exists() or (says_groups and contender.is_first)
    groups = {} if decides else {"group_pattern": None, "groups": None, "no_groups": False}
    result = plan(root, own.root, PlanOptions.of(options, planner=contender.preset, **groups), on)
    if decides and folder.splits.exists() and own.splits.read_text(encoding="utf-8") != folder.splits.read_text(encoding="utf-8"):
        raise InputError(
            f"{folder.splits}: these groups of cases give other folds than those that the networks there were trained on. Leave the groups "
            "out, or name another folder with -w."
        )
    for made, shared in ((own.splits, folder.splits), (own.fingerprint, folder.fingerprint)):
        if not shared.exists():
            write_text(shared, made.read_text(encoding="utf-8"))
    return result.plan


def _described(
    root: Path, own: WorkFolder, contender: Contender, configuration: Configuration, evaluation: Evaluation, options: CompareOptions
) -> Trained:
    """What a network is and took, and its Dice; what was measured of these weights before is kept."""
    from medseg3d.networks.cost import step_cost

    fold = own.fold(configuration.name, options.fold)
    weights = weights_digest(own.weights(configuration.name, options.fold))
    known = _known(fold / TRAINED, weights)
    state = read_summary(fold)
    if state is None:
        raise InputError(f"{fold}: has no training.json, which says how long it was trained. Train it with --restart.")
    cost = step_cost(configuration.network, configuration.patch_size, 1)
    found = Trained(
        name=contender.name,
        preset=contender.preset,
        configuration=configuration.name,
        family=configuration.network.family,
        parameters=cost.parameters,
        multiply_adds=cost.multiply_adds,
        patch=configuration.patch_size,
        batch=state.batch_sizes[0],
        steps=sum(int(str(epoch["iterations"])) for epoch in read_history(fold)),
        training_seconds=state.elapsed_seconds,
        seconds_per_case=known if known is not None else seconds_per_case(root, own, configuration, options),
        dice=dict(evaluation.dice_per_case()),
        labels={label.name: label.dice.mean for label in evaluation.labels},
        weights=weights,
    )
    write_record(fold / TRAINED, found, "trained")
    return found


def _known(file: Path, weights: str) -> float | None:
    """The seconds of a case that were measured for these weights before; None where none were."""
    if not file.exists():
        return None
    try:
        found = read_record(file, Trained, "trained")
    except InputError as error:
        logger.info("%s It is measured anew.", error)
        return None
    return found.seconds_per_case if found.weights == weights else None


def seconds_per_case(root: Path, own: WorkFolder, configuration: Configuration, options: CompareOptions) -> float | None:
    """The mean over some validation cases, without reading and preprocessing them; the first one, which sets up kernels, does not count.

    None where no image of them can be read any more.
    """
    model = load_models(own, [configuration.name], folds=[options.fold], device=options.device)
    validation = read_split(own, options.fold).validation
    cases = [case for case in open_dataset(root, channels=model.plan.channels).training if case.name in validation]
    seconds: list[float] = []
    boundary = CaseBoundary("compare")
    for case in (*cases[:1], *cases):
        if len(seconds) > TIMED_CASES:
            break
        with boundary.around(case.name):
            prepared = model.prepare(model.read(case), in_place=True)
            began = time.perf_counter()
            model.segment(prepared)
            seconds.append(time.perf_counter() - began)
    boundary.finish()
    timed = seconds[1:] or seconds
    return sum(timed) / len(timed) if timed else None
