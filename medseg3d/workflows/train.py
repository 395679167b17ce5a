"""Train: a fold of a configuration, from the preprocessed store to weights and to measured label maps of its validation cases."""

from __future__ import annotations

import logging
from pathlib import Path

from medseg3d.devices import choose_device
from medseg3d.errors import InterruptedBySignalError
from medseg3d.evaluation.metrics import Evaluation
from medseg3d.events import Event, Listener
from medseg3d.locks import Lock
from medseg3d.options import TrainOptions, ValidateOptions
from medseg3d.plan import Configuration
from medseg3d.preprocessing.store import StoredCase
from medseg3d.signals import stop_on_signals
from medseg3d.training.domains import NO_NAME, TrainingDomain
from medseg3d.training.loop import train_domains
from medseg3d.wording import counted
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.initial_weights import initial_weights
from medseg3d.workflows.origins import note_training_data
from medseg3d.workflows.progress import follow
from medseg3d.workflows.renew_cases import renew_cases
from medseg3d.workflows.splits import ALL_CASES, plan_digest, read_split, refuse_cascade, stored_cases
from medseg3d.workflows.taking_turns import fold_lock
from medseg3d.workflows.validate import validate
from medseg3d.workflows.verb import verb

logger = logging.getLogger(__name__)


@verb(TrainOptions)
def train(root: Path, work: Path | None, options: TrainOptions, on: Listener) -> Evaluation | None:
    """Train a fold to its end, going on where an earlier run stopped, then measure it; None for the fold ``all``.

    ``tta`` is the mirroring of the measured cases: ``on``, ``off``, or both ways, of which the better one stays (``auto``).
    Raises :class:`InterruptedBySignalError` when SIGINT or SIGTERM came: the state is saved then. Raises :class:`BusyError` where
    another process trains or measures the fold.
    """
    folder = work_folder(root, work)
    chosen = folder.read_plan().configuration(options.configuration)
    refuse_cascade(chosen)
    read_split(folder, options.fold)
    with fold_lock(folder.fold(chosen.name, options.fold), "is being trained") as lock:
        return _train(root, folder, chosen, options, lock, on)


def _train(root: Path, folder: WorkFolder, chosen: Configuration, options: TrainOptions, lock: Lock, on: Listener) -> Evaluation | None:
    fold, init = options.fold, options.init
    plan, split = folder.read_plan(), read_split(folder, fold)
    renew_cases(root, folder, plan, chosen, (*split.train, *split.validation), on=on)
    training, validation = stored_cases(folder, chosen, split)
    target = folder.fold(chosen.name, fold)
    _warn_about_memory(training)
    note_training_data(target, {case.name: case.digest for case in training}, is_restart=options.restart)
    stage = f"train {chosen.name} fold {fold}"
    on(Event(stage=stage, total=options.epochs or chosen.training.epochs))
    with stop_on_signals() as stop:
        epochs = train_domains(
            [TrainingDomain(name=NO_NAME, plan=plan, configuration=chosen, training=training, validation=validation)],
            name=chosen.name,
            fold=fold,
            folder=target,
            device=choose_device(options.device),
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
    validation_options = ValidateOptions.of(options, configuration=chosen.name, keep_finished=True)
    return validate(root, folder.root, validation_options, on)


def _warn_about_memory(training: list[StoredCase]) -> None:
    if len(training) < 3:
        logger.warning("Only %s: expect a network that knows what it was shown and little else.", counted(len(training), "training case"))
