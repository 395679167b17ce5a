"""Train: a fold of a configuration, from the preprocessed store to weights and to measured label maps of its validation cases."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from medseg3d.dataset import Case, Split, open_dataset
from medseg3d.devices import choose_device
from medseg3d.errors import CaseFailure, InputError, InterruptedBySignalError, PlanMismatchError, UnsupportedError
from medseg3d.evaluation.evaluate_folders import Pair, evaluate_pairs
from medseg3d.evaluation.metrics import Evaluation, read_evaluation, write_evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.execution import memory_budget
from medseg3d.model import Model, load_models
from medseg3d.plan import Configuration, Plan
from medseg3d.preprocessing.store import Store, StoredCase
from medseg3d.records import read_json, read_record, to_plain
from medseg3d.reporting.figures import progress_figure
from medseg3d.training.folds import Folds
from medseg3d.training.state import STATE, EpochRecord, read_history
from medseg3d.training.train_fold import StopRequest, TrainingOptions, train_fold
from medseg3d.wording import counted
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.evaluate import work_tolerance_mm

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

    ``tta`` is the mirroring of the measured cases, as for prediction.
    Raises :class:`InterruptedBySignalError` when SIGINT or SIGTERM came: the state is saved then.
    """
    options = options or TrainingOptions()
    folder = work_folder(root, work)
    plan = folder.read_plan()
    chosen = plan.configuration(configuration)
    refuse_cascade(chosen)
    split = read_split(folder, fold)
    training, validation = stored_cases(folder, chosen, split)
    target = folder.fold(chosen.name, fold)
    _warn_about_memory(training)
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
            init=init,
            on_step=lambda epoch, step, steps: on(Event(stage=f"train {chosen.name} fold {fold}, epoch {epoch}", done=step, total=steps)),
        )
        follow(epochs, f"{chosen.name}, fold {fold}", target, on)
    if stop.signal_number is not None:
        again = " without --restart" if options.restart else ""
        advice = f"Run the same command again{again} to go on."
        raise InterruptedBySignalError(stop.signal_number, f"Stopped; the state is saved in {target}. {advice}")
    if not split.validation or fold == ALL_CASES:
        on(Event(stage="validate", message="Trained on all cases: there is nothing to validate on, so the quality is not known."))
        return None
    return validate(root, work, configuration=chosen.name, fold=fold, device=device, tta=tta, keep_finished=True, on=on)


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

    ``keep_finished`` returns the measures that are newer than the weights instead of making them again.
    """
    folder = work_folder(root, work)
    plan = folder.read_plan()
    chosen = plan.configuration(configuration)
    target = folder.validation(chosen.name, fold)
    metrics = target / "metrics.json"
    weights = folder.weights(chosen.name, fold)
    split = read_split(folder, fold)
    _check_trained_on(folder.fold(chosen.name, fold), plan_digest(plan, chosen, split))
    if keep_finished and metrics.exists() and weights.exists() and metrics.stat().st_mtime >= weights.stat().st_mtime:
        evaluation = read_evaluation(metrics)
        if not evaluation.failures:  # a case that failed may be mended by now
            return evaluation
    if not split.validation:
        raise InputError(f"Fold {fold} has no validation cases, so there is nothing to measure.")
    model = load_models(folder, [chosen.name], folds=[fold], device=device, mirroring=tta != "off")
    return predict_and_measure(root, model, split.validation, target, tolerance_mm=work_tolerance_mm(folder), on=on)


def _check_trained_on(folder: Path, digest: str) -> None:
    """Raise :class:`PlanMismatchError` where a fold was trained with another plan or on other cases than are planned now."""
    state = folder / STATE
    if state.exists() and read_json(state).get("plan_digest") != digest:
        raise PlanMismatchError(
            f"{folder}: was trained with another plan or other cases than are planned now, so its validation would not be honest. "
            "Train this fold again with --restart."
        )


def predict_and_measure(
    root: Path, model: Model, names: tuple[str, ...], target: Path, *, tolerance_mm: float | None, on: Listener
) -> Evaluation:
    """Label maps and ``metrics.json`` of training cases, in ``target``; a case that fails is listed there, the others go on."""
    cases = {case.name: case for case in open_dataset(root, channels=model.plan.channels).training}
    missing = [name for name in names if name not in cases]
    if missing:
        raise PlanMismatchError(f"{root}: the splits name cases that the dataset does not have: {', '.join(missing[:5])}. Plan again.")
    pairs: list[Pair] = []
    failures: list[CaseFailure] = []
    for index, name in enumerate(names):
        output = target / f"{name}.nii.gz"
        try:
            model.predict_case(cases[name], output)
        except (InputError, MemoryError) as error:
            logger.error("%s: validate failed: %s", name, error)
            failures.append(CaseFailure(case=name, stage="validate", reason=str(error)))
            output.unlink(missing_ok=True)
            continue
        pairs.append(Pair(case=name, prediction=output, reference=_label_of(cases[name])))
        on(Event(stage="validate", done=index + 1, total=len(names)))
    evaluation = evaluate_pairs(pairs, labels=model.plan.labels, tolerance_mm=tolerance_mm)
    evaluation = replace(evaluation, failures=(*failures, *evaluation.failures))
    write_evaluation(evaluation, target / "metrics.json")
    return evaluation


def _label_of(case: Case) -> Path:
    if case.label is None:
        raise InputError(f"{case.name}: has no label map to compare with.")
    return case.label


def read_split(folder: WorkFolder, fold: str) -> Split:
    """The cases of a fold; ``all`` trains on every case and validates on none."""
    if not folder.splits.exists():
        raise InputError(f"{folder.root}: there is no splits.json here. Run medseg3d plan first.")
    splits = read_record(folder.splits, Folds, "splits")
    if fold == ALL_CASES:
        return Split(train=tuple(sorted({n for s in splits.folds for n in (*s.train, *s.validation)})), validation=())
    if not fold.isdigit() or int(fold) >= len(splits.folds):
        raise InputError(f"There is no fold {fold}; the folds are 0 to {len(splits.folds) - 1}, and all.")
    return splits.folds[int(fold)]


def plan_digest(plan: Plan, configuration: Configuration, split: Split) -> str:
    """Changes when anything changes that makes another network or other data of a configuration: plan, labels, or the fold's cases."""
    parts = {
        "configuration": to_plain(configuration),
        "labels": to_plain(plan.labels),
        "axis_order": plan.axis_order,
        "split": to_plain(split),
    }
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
        [store.read(name) for name in usable],
        [store.read(name) for name in split.validation if name in available],
    )
    if sum(case.nbytes for case in (*training, *validation)) > memory_budget(None):
        return training, validation
    return [case.load() for case in training], [case.load() for case in validation]


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


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM ask the loop to save and end; a second SIGINT ends at once. Only the main thread can listen."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        if stop.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        logger.warning("Stopping after this step …")
        stop.set(number)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
