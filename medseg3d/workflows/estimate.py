"""How long training and prediction take on the device at hand: a plan and three measured speeds go in, seconds come out.

Rules of thumb, by the multiply-adds and feature maps of the network, which is traced without data. Where a fold has been trained for an
epoch or more, its own seconds per epoch are known and count instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from medseg3d.errors import InputError
from medseg3d.options import RunOptions, TrainingOptions
from medseg3d.plan import Configuration, Plan
from medseg3d.planning.candidates import BACKWARD, Speed, step_seconds
from medseg3d.wording import counted, duration
from medseg3d.work_folder import WorkFolder, fold_names
from medseg3d.workflows.splits import trainings

if TYPE_CHECKING:
    from medseg3d.networks.cost import StepCost

STEP = 0.5
"""Windows of a prediction lie half a window apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldEstimate:
    """One training: ``seconds`` are still to go, ``disk_bytes`` what its weights and state take; ``epochs_done`` of ``epochs`` are over.

    ``is_measured`` says that the seconds are from its own epochs, ``ends_by_time`` that fewer epochs fit into the hours that are given.
    """

    configuration: str
    fold: str
    epochs: int
    epochs_done: int
    seconds: float
    disk_bytes: float
    is_measured: bool
    ends_by_time: bool = False


def measured_speed(device_name: str) -> Speed:
    """Three speeds of a device; takes some seconds."""
    from medseg3d.devices import choose_device, measure_speed
    from medseg3d.patches.augmentation_speed import measure_augmentation

    device = choose_device(device_name)
    multiply_adds, moved = measure_speed(device)
    augmented = measure_augmentation(device.device)
    return Speed(device=str(device.device), multiply_adds=multiply_adds, bytes=moved, augmented_voxels=augmented)


def traced(configuration: Configuration, batch_size: int | None = None) -> StepCost:
    """What a training step of a configuration takes."""
    from medseg3d.networks.cost import step_cost

    batch = batch_size or configuration.batch_size
    return step_cost(configuration.network, configuration.patch_size, batch, optimizer=configuration.training.optimizer)


def fold_estimate(
    configuration: Configuration, fold: str, folder: WorkFolder, options: TrainingOptions, speed: Speed, *, hours: float | None
) -> FoldEstimate:
    """What the training of a fold takes from where it stands; with ``hours`` that is known."""
    from medseg3d.training.state import read_history, read_summary

    target, settings = folder.fold(configuration.name, fold), configuration.training
    cost = traced(configuration, options.batch_size)
    epochs = options.epochs or settings.epochs
    state = None if options.restart else read_summary(target)
    is_over = state is not None and state.is_finished and options.epochs is None and hours is None  # a length that is named prolongs it
    done = 0 if state is None else epochs if is_over else min(state.epoch, epochs)
    measured = [] if state is None else [float(str(record["seconds"])) for record in read_history(target)]
    if measured:
        per_epoch = median(measured)
    else:
        iterations = options.iterations or settings.iterations_per_epoch
        per_step = step_seconds(cost, configuration, options.batch_size or configuration.batch_size, speed)
        checked = settings.validation_iterations * iterations / settings.iterations_per_epoch
        per_epoch = per_step * (iterations + checked / (1 + BACKWARD))  # an epoch is also measured, without a backward pass
    seconds = (epochs - done) * per_epoch
    left = math.inf if hours is None else max(0.0, hours * 3600 - (0.0 if state is None else state.elapsed_seconds))
    return FoldEstimate(
        configuration=configuration.name,
        fold=fold,
        epochs=epochs,
        epochs_done=done,
        seconds=min(seconds, left),
        disk_bytes=float(cost.fixed_bytes),  # last.safetensors holds weights and the optimizer's numbers; weights.safetensors the weights
        is_measured=bool(measured),
        ends_by_time=left < seconds,
    )


def configurations_of(plan: Plan, options: RunOptions) -> tuple[str, ...]:
    """What ``run`` trains, the earlier stages of a cascade first."""
    return tuple(dict.fromkeys(name for name, _ in trainings(plan, _chosen(plan, options), ("0",), ("0",))))


def _chosen(plan: Plan, options: RunOptions) -> tuple[str, ...]:
    given = options.configurations
    return tuple(plan.configuration(name).name for name in ((given,) if isinstance(given, str) else given or (plan.recommended,)))


def estimates(plan: Plan, folder: WorkFolder, options: RunOptions, speed: Speed, *, num_folds: int) -> list[FoldEstimate]:
    """Every training of a run; the hours are shared equally."""
    wanted = trainings(plan, _chosen(plan, options), fold_names(options.folds), tuple(map(str, range(num_folds))))
    hours = None if options.hours is None else options.hours / len(wanted)
    return [fold_estimate(plan.configuration(name), fold, folder, options, speed, hours=hours) for name, fold in wanted]


def prediction_seconds(plan: Plan, configuration: Configuration, speed: Speed, *, num_cases: int, num_networks: int) -> float:
    """Seconds to predict cases of the median size with mirroring, by each of some networks."""
    from medseg3d.prediction.sliding_window import window_starts

    cost = traced(configuration, 1)
    forward = (cost.multiply_adds / speed.multiply_adds) + cost.saved_bytes / speed.bytes
    shape, patch = configuration.median_shape[-len(configuration.patch_size) :], configuration.patch_size
    windows = math.prod(len(window_starts(int(n), size, STEP)) for n, size in zip(shape, patch, strict=True))
    if configuration.dimensions == 2:
        windows *= _num_slices(plan)
    return forward * windows * 2 ** len(configuration.mirror_axes) * num_cases * num_networks


def _num_slices(plan: Plan) -> int:
    volumes: Sequence[Configuration] = [each for each in plan.configurations.values() if each.dimensions == 3]
    return int(volumes[-1].median_shape[0]) if volumes else 1


def in_words(folds: Sequence[FoldEstimate], device: str) -> str:
    """One sentence on how long all trainings take; raises :class:`InputError` without any."""
    if not folds:
        raise InputError("There is no fold to train.")
    left = sum(fold.seconds for fold in folds)
    epochs = sorted({fold.epochs for fold in folds if not fold.ends_by_time})
    lengths = [f"{' and '.join(map(str, epochs))} epochs"] if epochs else []
    lengths += ["as many epochs as fit"] if any(fold.ends_by_time for fold in folds) else []
    length = f"{counted(len(folds), 'training')} of {' or '.join(lengths)}"
    source = "by the epochs so far" if all(fold.is_measured for fold in folds) else "by a rule of thumb"
    return f"{length} on {device}: about {duration(left)} {source}."
