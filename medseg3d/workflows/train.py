"""Train: a fold of a configuration, from the preprocessed store to weights and to measured label maps of its validation cases."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from medseg3d.boundary import CaseBoundary
from medseg3d.data.dataset import Case, Split
from medseg3d.data.open_dataset import open_dataset
from medseg3d.devices import choose_device
from medseg3d.errors import CaseFailure, DamagedCaseError, InputError, InterruptedBySignalError, PlanMismatchError, UnsupportedError
from medseg3d.evaluation.evaluate_folders import Pair, evaluate_pairs
from medseg3d.evaluation.metrics import Evaluation, read_evaluation, write_evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.execution import memory_budget
from medseg3d.files import remove_file, remove_tree, storage, storage_errors
from medseg3d.images import write_label_map
from medseg3d.locks import Lock
from medseg3d.models.loading import load_models
from medseg3d.models.model import Model
from medseg3d.plan import Configuration, Plan
from medseg3d.preprocessing.store import Store, StoredCase
from medseg3d.provenance import METRICS, ORIGIN, write_origin
from medseg3d.records import to_plain, write_record
from medseg3d.reporting.figures import progress_figure
from medseg3d.signals import stop_on_signals
from medseg3d.training.folds import read_folds
from medseg3d.training.state import EpochRecord, read_history
from medseg3d.training.train_fold import TrainingOptions, train_fold
from medseg3d.validation.empty_windows import EMPTY_WINDOWS
from medseg3d.validation.selection import MIRRORING, FoldMirroring, choose_mirroring, read_fold_mirroring
from medseg3d.wording import counted
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.evaluate import work_tolerance_mm
from medseg3d.workflows.initial_weights import initial_weights
from medseg3d.workflows.origins import note_training_data, origin_of_validation, raw_cases, validation_age
from medseg3d.workflows.renew_cases import renew_cases
from medseg3d.workflows.taking_turns import fold_lock

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_FIGURES = 20.0
"""Drawing progress.png takes half a second; short epochs need not pay it each time."""
ALL_CASES = "all"


def train(
    root: Path,
    work: Path | None = None,
    *,
    configuration: str | None = None,
    fold: str = "0",
    device: str = "auto",
    options: TrainingOptions | None = None,
    init: Path | None = None,
    tta: str = "auto",
    on: Listener = silent,
) -> Evaluation | None:
    """Train a fold to its end, going on where an earlier run stopped, then measure it; None for the fold ``all``.

    ``tta`` is the mirroring of the measured cases: ``on``, ``off``, or both ways, of which the better one stays (``auto``).
    Raises :class:`InterruptedBySignalError` when SIGINT or SIGTERM came: the state is saved then. Raises :class:`BusyError` where
    another process trains or measures the fold.
    """
    folder = work_folder(root, work)
    chosen = folder.read_plan().configuration(configuration)
    refuse_cascade(chosen)
    read_split(folder, fold)
    with fold_lock(folder.fold(chosen.name, fold), "is being trained") as lock:
        return _train(root, folder, chosen, fold, device, options or TrainingOptions(), init, tta, lock, on)


def _train(
    root: Path,
    folder: WorkFolder,
    chosen: Configuration,
    fold: str,
    device: str,
    options: TrainingOptions,
    init: Path | None,
    tta: str,
    lock: Lock,
    on: Listener,
) -> Evaluation | None:
    plan, split = folder.read_plan(), read_split(folder, fold)
    renew_cases(root, folder, plan, chosen, (*split.train, *split.validation), on=on)
    training, validation = stored_cases(folder, chosen, split)
    target = folder.fold(chosen.name, fold)
    _warn_about_memory(training)
    note_training_data(target, {case.name: case.digest for case in training}, is_restart=options.restart)
    stage = f"train {chosen.name} fold {fold}"
    on(Event(stage=stage, total=options.epochs or chosen.training.epochs))
    with stop_on_signals() as stop:
        epochs = train_fold(
            plan,
            chosen,
            fold=fold,
            training=training,
            validation=validation,
            folder=target,
            device=choose_device(device),
            options=options,
            plan_digest=plan_digest(plan, chosen, split),
            stop=stop,
            init=None if init is None else initial_weights(init, configuration=chosen.name, fold=fold, plan=plan),
            check=lock.check,
            on_step=lambda epoch, step, steps: on(Event(stage=f"{stage}, epoch {epoch}", done=step, total=steps)),
            on_validation=lambda epoch, done, total: on(Event(stage=f"{stage}, epoch {epoch}, validating", done=done, total=total)),
        )
        follow(epochs, f"{chosen.name}, fold {fold}", target, on)
    if stop.signal_number is not None:
        again = " without --restart" if options.restart else ""
        advice = f"Run the same command again{again} to go on."
        raise InterruptedBySignalError(stop.signal_number, f"Stopped; the state is saved in {target}. {advice}")
    if not split.validation or fold == ALL_CASES:
        on(Event(stage="validate", message="Trained on all cases: there is nothing to validate on, so the quality is not known."))
        return None
    return validate(root, folder.root, configuration=chosen.name, fold=fold, device=device, tta=tta, keep_finished=True, on=on)


def refuse_cascade(configuration: Configuration) -> None:
    """Raise :class:`UnsupportedError` for the second stage of a cascade, whose first stage's output no network here reads yet."""
    if configuration.previous_stage is not None:
        raise UnsupportedError(
            f"{configuration.name}: training the cascade is not supported yet. Train 3d_fullres, {configuration.previous_stage} or 2d."
        )


def validate(
    root: Path,
    work: Path | None = None,
    *,
    configuration: str | None = None,
    fold: str = "0",
    device: str = "auto",
    tta: str = "auto",
    keep_finished: bool = False,
    on: Listener = silent,
) -> Evaluation:
    """Predict the validation cases of a fold whole, on the grid of their files, and measure them.

    ``keep_finished`` returns the measures that belong to the weights and cases of today instead of making them again. Raises
    :class:`BusyError` where another process trains or measures the fold.
    """
    folder = work_folder(root, work)
    chosen = folder.read_plan().configuration(configuration)
    read_split(folder, fold)
    with fold_lock(folder.fold(chosen.name, fold), "is being measured"):
        return _validate(root, folder, chosen, fold, device, tta, keep_finished, on)


def _validate(
    root: Path, folder: WorkFolder, chosen: Configuration, fold: str, device: str, tta: str, keep_finished: bool, on: Listener
) -> Evaluation:
    plan = folder.read_plan()
    target = folder.validation(chosen.name, fold)
    split = read_split(folder, fold)
    _check_trained_on(folder, chosen.name, fold, plan_digest(plan, chosen, split))
    if keep_finished and (kept := _kept_measures(root, folder, plan, chosen.name, fold, tta)) is not None:
        return kept
    if not split.validation:
        raise InputError(f"Fold {fold} has no validation cases, so there is nothing to measure.")
    model = load_models(folder, [chosen.name], folds=[fold], device=device, mirroring=tta != "off")
    measure = measure_both_ways if tta == "auto" and chosen.mirror_axes else predict_and_measure
    remove_tree(target)  # a measure that is stopped leaves none that belongs to other label maps
    write_origin(target, origin_of_validation(root, folder, plan, [chosen.name], fold, split.validation))
    if measure is predict_and_measure:
        write_record(target / MIRRORING, FoldMirroring(is_used=tta != "off", has_other=False), "mirroring")
    survey = model.survey_windows()

    def finish() -> None:
        write_record(target / EMPTY_WINDOWS, survey.result(), "empty windows")

    return measure(root, model, split.validation, target, tolerance_mm=work_tolerance_mm(folder), finish=finish, on=on)


def _kept_measures(root: Path, folder: WorkFolder, plan: Plan, name: str, fold: str, tta: str) -> Evaluation | None:
    """The measures of a fold, where they belong to its weights and cases and were made with the wanted mirroring; in place afterwards."""
    target = folder.validation(name, fold)
    metrics = target / METRICS
    if not (metrics.exists() and folder.weights(name, fold).exists()):
        return None
    changes = validation_age(root, folder, plan, [name], fold)
    if changes is not None:
        logger.info("%s was made from %s, and is made anew.", metrics, changes)
        return None
    try:
        made, evaluation = read_fold_mirroring(target), read_evaluation(metrics)
    except InputError as error:
        logger.warning("%s The fold is measured again.", error)
        return None
    made = made or FoldMirroring(is_used=True, has_other=False)
    with suppress(OSError):
        (target / replace(made, is_used=not made.is_used).other).rmdir()  # an exchange that was stopped at its end has left it empty
    if made.has_other and not (target / made.other / METRICS).exists():
        return None
    if tta != "auto" and made.is_used != (tta == "on"):
        if not made.has_other:
            return None
        use_other_mirroring(target)
        evaluation = read_evaluation(metrics)
    readable = raw_cases(root, plan) if evaluation.failures else {}
    return None if any(failure.case in readable for failure in evaluation.failures) else evaluation  # such a case may be repaired by now


def use_other_mirroring(validation: Path) -> None:
    """Exchange the label maps and measures of a validation with those that were made the other way.

    The measures leave first and come last: where this is stopped half-way there are none, and the fold is measured again.
    """
    made = read_fold_mirroring(validation)
    if made is None or not made.has_other:
        raise InputError(f"{validation}: was measured one way only.")
    now = replace(made, is_used=not made.is_used)
    other, own = validation / made.other, validation / now.other
    with storage_errors(validation):
        storage().make_folder(own)
        storage().replace(validation / METRICS, own / METRICS)
        _exchange_label_maps(validation, other, own)
        write_record(validation / MIRRORING, now, "mirroring")
        storage().replace(other / METRICS, validation / METRICS)
        other.rmdir()


def _exchange_label_maps(validation: Path, other: Path, own: Path) -> None:
    """Put all but the measures of ``validation`` into ``own``, and those of ``other`` in their place."""
    for file in sorted(file for file in validation.iterdir() if file.is_file() and file.name not in (MIRRORING, EMPTY_WINDOWS, ORIGIN)):
        storage().replace(file, own / file.name)
    for file in sorted(file for file in other.iterdir() if file.name != METRICS):
        storage().replace(file, validation / file.name)


def _check_trained_on(folder: WorkFolder, name: str, fold: str, digest: str) -> None:
    """Raise :class:`PlanMismatchError` where a fold was trained with another plan or on other cases than are planned now."""
    state = folder.training_state(name, fold)
    if state is not None and state.get("plan_digest") != digest:
        raise PlanMismatchError(
            f"{folder.fold(name, fold)}: was trained with another plan or other cases than are planned now, so its validation would not be "
            "honest. Train this fold again with --restart."
        )


def predict_and_measure(
    root: Path,
    model: Model,
    names: tuple[str, ...],
    target: Path,
    *,
    tolerance_mm: float | None,
    on: Listener,
    finish: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Label maps and ``metrics.json`` of training cases, in ``target``; a case that fails is listed there, the others go on.

    The measures are written last, after ``finish``: where they are, everything is.
    """

    def predict(case: Case) -> None:
        model.predict_case(case, target / f"{case.name}.nii.gz")

    cases, failures = _predict_validation(root, model, names, predict, on)
    for name in set(names) - {case.name for case in cases}:
        remove_file(target / f"{name}.nii.gz")
    evaluation = _measured(cases, failures, model, target, tolerance_mm, on)
    finish()
    write_evaluation(evaluation, target / METRICS)
    return evaluation


def measure_both_ways(
    root: Path,
    model: Model,
    names: tuple[str, ...],
    target: Path,
    *,
    tolerance_mm: float | None,
    on: Listener,
    finish: Callable[[], None] = lambda: None,
) -> Evaluation:
    """:func:`predict_and_measure` with and without mirroring, of one pass over each image; what is better stays in ``target``.

    The other way lies beside it (:class:`~medseg3d.validation.selection.FoldMirroring`). Mirroring must gain enough to be worth its time.
    """
    record = FoldMirroring(is_used=True, has_other=True)
    plain = target / record.other

    def predict(case: Case) -> None:
        prepared = model.prepare(model.read(case), in_place=True)
        for folder, indices in zip((target, plain), model.segment_both(prepared), strict=True):
            write_label_map(folder / f"{case.name}.nii.gz", model.finish(indices, prepared.orientation), prepared.header)

    cases, failures = _predict_validation(root, model, names, predict, on)
    with_mirroring, without = (_measured(cases, failures, model, folder, tolerance_mm, on) for folder in (target, plain))
    choice = choose_mirroring(with_mirroring.dice_per_case(), without.dice_per_case())
    on(Event(stage="validate", message=f"Measured both ways: {choice.reason}."))
    finish()
    used, other = with_mirroring, without
    if not choice.is_used:
        used, other, record = without, with_mirroring, replace(record, is_used=False)
        storage().make_folder(target / record.other)
        _exchange_label_maps(target, plain, target / record.other)
        remove_tree(plain)
    write_record(target / MIRRORING, record, "mirroring")
    write_evaluation(other, target / record.other / METRICS)
    write_evaluation(used, target / METRICS)
    return used


def _predict_validation(
    root: Path, model: Model, names: tuple[str, ...], predict: Callable[[Case], None], on: Listener
) -> tuple[list[Case], list[CaseFailure]]:
    """Predict training cases one by one; those that worked, and the failures."""
    dataset = open_dataset(root, channels=model.plan.channels)
    cases = {case.name: case for case in dataset.training}
    failures = [failure for failure in dataset.failures if failure.case in names]
    names = tuple(name for name in names if name not in {failure.case for failure in failures})
    missing = [name for name in names if name not in cases]
    if missing:
        raise PlanMismatchError(f"{root}: the splits name cases that the dataset does not have: {', '.join(missing[:5])}. Plan again.")
    done: list[Case] = []
    boundary = CaseBoundary("validate")
    on(Event(stage="validate", total=len(names)))
    for index, name in enumerate(names):
        with boundary.around(name) as attempt:
            predict(cases[name])
        if attempt.failure is not None:
            failures.append(attempt.failure)
            continue
        done.append(cases[name])
        on(Event(stage="validate", done=index + 1, total=len(names)))
    boundary.finish()
    return done, failures


def _measured(
    cases: list[Case], failures: list[CaseFailure], model: Model, target: Path, tolerance_mm: float | None, on: Listener
) -> Evaluation:
    pairs = [Pair(case=case.name, prediction=target / f"{case.name}.nii.gz", reference=_label_of(case)) for case in cases]
    evaluation = evaluate_pairs(pairs, labels=model.plan.labels, tolerance_mm=tolerance_mm, on=on)
    return replace(evaluation, failures=(*failures, *evaluation.failures))


def _label_of(case: Case) -> Path:
    if case.label is None:
        raise InputError(f"{case.name}: has no label map to compare with.")
    return case.label


def read_split(folder: WorkFolder, fold: str) -> Split:
    """The cases of a fold; ``all`` trains on every case and validates on none."""
    if not folder.splits.exists():
        raise InputError(f"{folder.root}: there is no splits.json here. Run medseg3d plan first.")
    splits = read_folds(folder.splits)
    if fold == ALL_CASES:
        return Split(train=tuple(sorted({n for s in splits.folds for n in (*s.train, *s.validation)})), validation=())
    if not fold.isdigit() or int(fold) >= len(splits.folds):
        raise InputError(f"There is no fold {fold}; the folds are 0 to {len(splits.folds) - 1}, and all.")
    return splits.folds[int(fold)]


def plan_digest(plan: Plan, configuration: Configuration, split: Split) -> str:
    """Changes when anything changes that makes another network or other data of a configuration: plan, labels, axes, the fold's cases.

    What plans did not have once is left out where it has the value that all had then: folds that were trained before stay valid.
    """
    described = to_plain(configuration)
    if not configuration.training.unit_gradients:
        del described["training"]["unit_gradients"]
    parts = {
        "configuration": described,
        "labels": to_plain(plan.labels),
        "axis_order": plan.axis_order,
        "split": to_plain(split),
    }
    if not plan.frame.is_canonical:
        parts["frame"] = to_plain(plan.frame)
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def stored_cases(folder: WorkFolder, configuration: Configuration, split: Split) -> tuple[list[StoredCase], list[StoredCase]]:
    """The preprocessed training and validation cases of a fold, in memory where they fit; raises :class:`InputError` for none."""
    store = Store(folder.store(configuration.data))
    available = set(store.names())
    missing = [name for name in (*split.train, *split.validation) if name not in available]
    usable = [name for name in split.train if name in available]
    if missing:
        some = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        message = f"{counted(len(missing), 'case')} not preprocessed for {configuration.name} ({some})"
        if not usable:
            raise InputError(f"{folder.root}: {message}. Run medseg3d preprocess -c {configuration.name} first.")
        logger.warning("%s; training without them.", message)
    training, validation = (
        _undamaged(store, usable),
        _undamaged(store, [name for name in split.validation if name in available]),
    )
    if not training:
        raise InputError(f"{folder.root}: every training case is damaged. Run medseg3d preprocess -c {configuration.name} first.")
    if sum(case.nbytes for case in (*training, *validation)) > memory_budget(None):
        return training, validation
    return [case.load() for case in training], [case.load() for case in validation]


def _undamaged(store: Store, names: Sequence[str]) -> list[StoredCase]:
    cases = []
    for name in names:
        try:
            cases.append(store.read(name))
        except DamagedCaseError as error:
            logger.error("%s Until then the training goes on without it.", error)
    return cases


def _warn_about_memory(training: list[StoredCase]) -> None:
    if len(training) < 3:
        logger.warning("Only %s: expect a network that knows what it was shown and little else.", counted(len(training), "training case"))


def follow(epochs: Iterator[EpochRecord], title: str, target: Path, on: Listener) -> None:
    """Drive a training to its end: a line per epoch, ``progress.png``, TensorBoard."""
    board = _tensorboard(target)
    last_figure = 0.0
    for record in epochs:
        on(Event(stage="train", message=epoch_line(record)))
        if board is not None:
            board(record)
        if time.monotonic() - last_figure > SECONDS_BETWEEN_FIGURES:
            progress_figure(read_history(target), target / "progress.png", title=title)
            last_figure = time.monotonic()
    history = read_history(target)
    if history:
        progress_figure(history, target / "progress.png", title=title)


def epoch_line(record: EpochRecord) -> str:
    """One line for people: losses, pseudo-Dice per label, seconds, waiting; ``*`` marks the best epoch so far."""
    labels = " ".join(f"{name} {value:.3f}" if value is not None else f"{name} –" for name, value in list(record.pseudo_dice.items())[:8])
    more = f" … ({len(record.pseudo_dice)} labels)" if len(record.pseudo_dice) > 8 else ""
    losses = "/".join("–" if loss is None else f"{loss:.3f}" for loss in (record.train_loss, record.validation_loss))
    skipped = f", {record.skipped_iterations} steps skipped" if record.skipped_iterations else ""
    dice = f", pseudo-Dice {record.pseudo_dice_mean:.3f} ({labels}{more})" if record.pseudo_dice_mean is not None else ""
    return (
        f"epoch {record.epoch:4d}{'*' if record.is_best else ' '} loss {losses}{dice}, {record.iterations} steps in {record.seconds:.1f} s "
        f"(waiting for data {100 * record.waiting_share:.0f} %){skipped}, lr {record.learning_rate:.2g}"
    )


def _tensorboard(target: Path) -> Callable[[EpochRecord], None] | None:
    """A function that logs a record, where TensorBoard is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer = SummaryWriter(str(target / "tensorboard"))

    def log(record: EpochRecord) -> None:
        for name in ("train_loss", "validation_loss", "pseudo_dice_mean", "pseudo_dice_smoothed", "learning_rate", "seconds"):
            value = getattr(record, name)
            if value is not None:
                writer.add_scalar(name, value, record.epoch)
        for label, value in record.pseudo_dice.items():
            if value is not None:
                writer.add_scalar(f"pseudo_dice/{label}", value, record.epoch)
        writer.flush()

    return log
