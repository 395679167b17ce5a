"""Train one network on one fold: batches in, weights and a line per epoch out. The whole loop can be read here.

Deterministic on the CPU: batches and augmentation are drawn from (seed, epoch, iteration) alone, and the state is saved whole
after every epoch and when the run is stopped, so that a continued run gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from medseg3d.checkpoints import ModelCard, load_matching, load_tensors, save_weights
from medseg3d.devices import Device, checked_precision, use_all_cores
from medseg3d.errors import DivergedError, PlanMismatchError
from medseg3d.execution import available_cores
from medseg3d.networks.build import build_network
from medseg3d.patches.augmentation import Batch, augment, augmentation_policy
from medseg3d.patches.loading import PatchLoader
from medseg3d.plan import Configuration, Plan, TrainingPlan
from medseg3d.preprocessing.store import StoredCase
from medseg3d.training.losses import Counts, dice_cross_entropy
from medseg3d.training.probe import trusted_precision
from medseg3d.training.schedule import poly
from medseg3d.training.state import (
    BEST,
    HISTORY,
    LAST,
    STATE,
    EpochRecord,
    TrainingState,
    append_history,
    check_same_run,
    load_state,
    restore_state,
    save_state,
)

logger = logging.getLogger(__name__)

SMOOTHING = 0.9
"""Smoothed pseudo-Dice = 0.9 old + 0.1 new (nnU-Net 2.8.1)."""
MAX_BAD_STEPS_IN_A_ROW = 20
"""So many steps with a NaN or infinite loss one after the other are no accident of a batch any more."""
EPOCHS_IN_A_TIME_BUDGET = 30
"""With ``hours`` an epoch ends after this share of the budget at the latest, so that slow devices decay and validate as well."""
TIMED_STEPS = 3
"""The first step sets up memory and kernels; the fastest of three is what the others will take."""
MIN_STEPS_IN_A_TIME_BUDGET = 2500
"""Ten epochs of 250: nnU-Net's plain network reaches 99 % of its final pseudo-Dice on Hippocampus by then."""
MIN_BATCH = 2
"""The smallest batch of nnU-Net's plans."""
VALIDATION_STREAM = 1
"""Validation patches have random numbers of their own, and are those of epoch 0 every time, so that epochs can be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """What a user may say beside the plan; None means the plan's value."""

    epochs: int | None = None
    iterations: int | None = None
    hours: float | None = None
    batch_size: int | None = None
    seed: int = 0
    restart: bool = False


class StopRequest:
    """Set by a signal; the loop saves its state after the step at hand and ends."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def set(self, signal_number: int) -> None:
        """Ask the loop to stop."""
        self.signal_number = signal_number

    @property
    def is_set(self) -> bool:
        """A signal came."""
        return self.signal_number is not None


def train_fold(
    plan: Plan,
    configuration: Configuration,
    *,
    fold: str,
    training: Sequence[StoredCase],
    validation: Sequence[StoredCase],
    folder: Path,
    device: Device,
    options: TrainingOptions,
    plan_digest: str,
    stop: StopRequest,
    init: Path | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
) -> Iterator[EpochRecord]:
    """Train and yield a record per finished epoch; ends early, state saved, when ``stop`` is set.

    ``on_step(epoch, iteration, iterations)`` is called after every step. ``init`` is a weights file to begin with.
    Raises :class:`DivergedError` after
    ``MAX_BAD_STEPS_IN_A_ROW`` bad steps, naming the cases of their batches, and ``PlanMismatchError`` where ``folder`` holds a
    run with other settings.
    """
    use_all_cores()
    run = _Run(plan, configuration, fold, folder, device, options, plan_digest)
    run.resume_or_begin(training, init)
    while not run.is_finished:
        if not run.train_epoch(training, stop, on_step):
            run.save()
            return
        yield run.finish_epoch(validation)


class _Run:
    """The parts of a run: network, optimizer, scaler, and the state that says where it stands."""

    def __init__(
        self, plan: Plan, configuration: Configuration, fold: str, folder: Path, device: Device, options: TrainingOptions, plan_digest: str
    ) -> None:
        settings = configuration.training
        self.plan, self.configuration, self.folder, self.device, self.options = plan, configuration, folder, device, options
        self.settings: TrainingPlan = settings
        self.state = TrainingState(
            configuration=configuration.name,
            fold=fold,
            seed=options.seed,
            epochs=options.epochs or settings.epochs,
            iterations_per_epoch=options.iterations or (None if options.hours else settings.iterations_per_epoch),
            hours=options.hours,
            batch_size=options.batch_size or configuration.batch_size,
            precision=device.precision,
            plan_digest=plan_digest,
        )
        torch.manual_seed(options.seed)
        self.network = build_network(configuration.network).to(device.device)
        self.optimizer = _optimizer(self.network, settings)
        self.scaler = _scaler(device)
        torch.backends.cudnn.benchmark = device.device.type == "cuda"  # patches all have one size
        self.policy = augmentation_policy(
            configuration.patch_size,
            num_channels=configuration.network.in_channels,
            mirror_axes=configuration.mirror_axes,
            masked_channels=[i for i, n in enumerate(configuration.normalization) if n.use_mask],
            left_right_axis=_left_right_axis(plan, configuration),
            label_pairs=plan.labels.pairs,
        )

    @property
    def is_finished(self) -> bool:
        state = self.state
        if state.hours is not None and state.elapsed_seconds >= state.hours * 3600:
            return True
        return state.epoch >= state.epochs

    def resume_or_begin(self, training: Sequence[StoredCase], init: Path | None) -> None:
        """Continue the run in the folder if there is one; otherwise check the precision on a first batch.

        ``init`` is a weights file to begin with: tensors of the same name and shape are taken, the others are listed."""
        saved = None if self.options.restart else load_state(self.folder)
        if saved is not None:
            state, tensors, metadata = saved
            if self.options.batch_size is None:
                self.state = replace(self.state, batch_size=state.batch_size)  # it may have been fitted to the hours
            check_same_run(state, self.state, self.folder)
            self.device = replace(self.device, precision=state.precision)
            self.scaler = _scaler(self.device)
            restore_state(self.folder, tensors, metadata, self.network, self.optimizer, self.scaler)
            is_length_given = self.options.epochs is not None or self.options.hours is not None
            self.state = replace(
                state,
                epochs=self.state.epochs if is_length_given else state.epochs,
                hours=self.state.hours if is_length_given else state.hours,
                iterations_per_epoch=self.options.iterations or state.iterations_per_epoch,
            )
            logger.info("Continuing %s fold %s at epoch %d.", state.configuration, state.fold, state.epoch)
            return
        if init is not None:
            tensors, _ = load_tensors(init)
            unused, missing = load_matching(self.network, tensors)
            if len(unused) == len(tensors):
                raise PlanMismatchError(f"{init}: none of its tensors fits this network. Name a weights.safetensors of the same family.")
            logger.info("Weights from %s; not used: %s; not found: %s.", init, unused or "none", missing or "none")
        if self.options.restart:
            for name in (LAST, BEST, STATE, HISTORY):
                (self.folder / name).unlink(missing_ok=True)
        batch = self._loader(training).make_batch(0, 0)
        image, labels = augment(batch, self.policy, self.device.device)
        self.device = trusted_precision(self.device, self.configuration, self.state.batch_size)
        self.device = checked_precision(self.network, image[:1], self.device)
        self.state = replace(self.state, precision=self.device.precision)
        self.scaler = _scaler(self.device)
        if self.options.hours is not None and self.options.batch_size is None and self.options.iterations is None:
            self._fit_batch_to_hours(image, labels, self.options.hours * 3600)

    def _fit_batch_to_hours(self, image: torch.Tensor, labels: torch.Tensor, seconds: float) -> None:
        """A smaller batch where the planned one would leave too few steps: early on, steps count for more than their size."""
        durations = []
        for _ in range(TIMED_STEPS):
            began = time.perf_counter()
            with self.device.autocast():
                outputs = self.network(image)
            dice_cross_entropy(outputs, labels, batch_dice=self.configuration.batch_dice).total.backward()  # type: ignore[no-untyped-call]
            durations.append(time.perf_counter() - began)
        self.network.zero_grad(set_to_none=True)
        affordable = seconds / MIN_STEPS_IN_A_TIME_BUDGET / (min(durations) / len(image))
        size = max(min(MIN_BATCH, self.state.batch_size), min(self.state.batch_size, int(affordable)))
        if size < self.state.batch_size:
            logger.warning(
                "A step takes %.2g s here, so the batch is %d instead of the plan's %d: that gives about %d steps in %.2g hours.",
                min(durations),
                size,
                self.state.batch_size,
                seconds / (min(durations) * size / self.state.batch_size),
                seconds / 3600,
            )
            self.state = replace(self.state, batch_size=size)

    def train_epoch(self, training: Sequence[StoredCase], stop: StopRequest, on_step: Callable[[int, int, int], None] | None) -> bool:
        """Train to the end of the epoch; False where a stop request came first."""
        state = self.state
        planned = state.iterations_per_epoch or self.settings.iterations_per_epoch
        self._set_learning_rate()
        self.network.train()
        bad_in_a_row: list[str] = []
        loader = self._loader(training)
        began, start = time.perf_counter(), state
        # closing: leaving the loop early must end the reading threads at once, not when the generator is collected
        with closing(loader.batches(state.epoch, planned, first=state.iteration)) as batches:
            for batch in batches:
                value = self._step(batch, self.state.epoch, self.state.iteration)
                elapsed = time.perf_counter() - began
                self.state = replace(
                    self.state,
                    iteration=self.state.iteration + 1,
                    elapsed_seconds=start.elapsed_seconds + elapsed,
                    epoch_seconds=start.epoch_seconds + elapsed,
                    epoch_waiting=start.epoch_waiting + loader.waited_seconds,
                )
                if math.isfinite(value):
                    bad_in_a_row = []
                    self.state = replace(self.state, loss_sum=self.state.loss_sum + value, num_losses=self.state.num_losses + 1)
                else:
                    bad_in_a_row.extend(batch.names)
                    self._count_bad_step(batch, bad_in_a_row)
                if on_step is not None:
                    on_step(self.state.epoch, self.state.iteration, planned)
                if stop.is_set:
                    return False
                if self._is_epoch_over(planned):
                    break
        return True

    def _is_epoch_over(self, planned: int) -> bool:
        state = self.state
        if state.iteration >= planned:
            return True
        if state.hours is None or self.options.iterations is not None:
            return False
        budget = state.hours * 3600
        return state.elapsed_seconds >= budget or (
            state.iterations_per_epoch is None and state.epoch_seconds >= budget / EPOCHS_IN_A_TIME_BUDGET
        )

    def _step(self, batch: Batch, epoch: int, iteration: int) -> float:
        torch.manual_seed(_step_seed(self.state.seed, epoch, iteration))  # dropout draws the same after a resume
        image, labels = augment(batch, self.policy, self.device.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self.device.autocast():
            outputs = self.network(image)
        loss = dice_cross_entropy(outputs, labels, batch_dice=self.configuration.batch_dice).total
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.gradient_clip)
        is_finite = bool(torch.isfinite(norm))
        if is_finite or self.scaler.is_enabled():  # the scaler skips the step itself, and must hear of it to lower its scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return value if is_finite else math.nan

    def _count_bad_step(self, batch: Batch, bad_in_a_row: list[str]) -> None:
        counts = dict(self.state.skipped_cases)
        for name in batch.names:
            counts[name] = counts.get(name, 0) + 1
        self.state = replace(self.state, skipped=self.state.skipped + 1, skipped_total=self.state.skipped_total + 1, skipped_cases=counts)
        logger.warning("Skipped a step with a NaN or infinite loss or gradient; cases of the batch: %s.", ", ".join(batch.names))
        if len(bad_in_a_row) >= MAX_BAD_STEPS_IN_A_ROW * len(batch.names):
            raise DivergedError(
                f"Training diverged: {MAX_BAD_STEPS_IN_A_ROW} steps in a row gave a NaN or infinite loss "
                f"(cases {', '.join(sorted(set(bad_in_a_row))[:10])}). The weights of the best epoch are kept. "
                "Look at these images with medseg3d doctor, or train with a lower learning rate (planner file, training.learning_rate)."
            )

    def finish_epoch(self, validation: Sequence[StoredCase]) -> EpochRecord:
        """Measure, keep the weights if they are the best so far, save the state, and give the epoch's record."""
        began = time.perf_counter()
        state = self.state
        validation_loss, counts = self._validate(validation, state.iteration)
        seconds = time.perf_counter() - began
        dice = counts.dice().tolist() if counts is not None else [math.nan] * self.plan.labels.num_classes
        names = self.plan.labels.names
        per_label = {names[index]: None if math.isnan(dice[index]) else dice[index] for index in self.plan.labels.foreground}
        present = [value for value in per_label.values() if value is not None]
        mean = float(np.mean(present)) if present else None
        smoothed = state.smoothed
        if mean is not None:
            smoothed = mean if smoothed is None else SMOOTHING * smoothed + (1 - SMOOTHING) * mean
        # Without validation cases (fold "all") the newest weights are the best there is.
        is_best = smoothed is None or state.best is None or smoothed > state.best
        record = EpochRecord(
            epoch=state.epoch,
            train_loss=state.loss_sum / state.num_losses if state.num_losses else None,
            validation_loss=validation_loss,
            pseudo_dice=per_label,
            pseudo_dice_mean=mean,
            pseudo_dice_smoothed=smoothed,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            seconds=state.epoch_seconds + seconds,
            waiting_share=state.epoch_waiting / max(state.epoch_seconds, 1e-9),
            iterations=state.iteration,
            skipped_iterations=state.skipped,
            is_best=is_best,
            elapsed_seconds=state.elapsed_seconds + seconds,
        )
        self.state = replace(
            state,
            epoch=state.epoch + 1,
            iteration=0,
            iterations_per_epoch=state.iterations_per_epoch or state.iteration,
            elapsed_seconds=state.elapsed_seconds + seconds,
            epoch_seconds=0.0,
            epoch_waiting=0.0,
            loss_sum=0.0,
            num_losses=0,
            skipped=0,
            smoothed=smoothed,
            best=smoothed if is_best else state.best,
            best_epoch=state.epoch if is_best else state.best_epoch,
        )
        self.state = replace(self.state, is_finished=self.is_finished)
        if is_best:
            self._save_best(record)
        self.save()
        append_history(self.folder, record)
        return record

    def _validate(self, validation: Sequence[StoredCase], trained_iterations: int) -> tuple[float | None, Counts | None]:
        if not validation:
            return None, None
        share = self.settings.validation_iterations / self.settings.iterations_per_epoch
        num_iterations = max(1, min(self.settings.validation_iterations, math.ceil(trained_iterations * share)))
        self.network.eval()
        losses: list[float] = []
        counts: Counts | None = None
        loader = self._loader(validation, is_validation=True)
        with torch.inference_mode(), closing(loader.batches(0, num_iterations)) as batches:
            for batch in batches:
                image, labels = batch.image.to(self.device.device), batch.labels.to(self.device.device).long()
                with self.device.autocast():
                    logits = self.network(image)
                loss = dice_cross_entropy(logits, labels, batch_dice=self.configuration.batch_dice, with_counts=True)
                losses.append(float(loss.total))
                if loss.counts is not None:
                    counts = loss.counts if counts is None else counts + loss.counts
        finite = [value for value in losses if math.isfinite(value)]
        return (float(np.mean(finite)) if finite else None), counts

    def save(self) -> None:
        """Write the state; where there is no best model yet, the present weights are it."""
        save_state(self.folder, self.state, self.network, self.optimizer, self.scaler)
        if not (self.folder / BEST).exists():
            self._save_best(None)

    def _save_best(self, record: EpochRecord | None) -> None:
        facts: dict[str, float | int | str | None] = {
            "epoch": self.state.epoch if record is None else record.epoch,
            "pseudo_dice_smoothed": None if record is None else record.pseudo_dice_smoothed,
            "precision": self.state.precision,
        }
        card = ModelCard(plan=self.plan, configuration=self.configuration.name, fold=self.state.fold, facts=facts)
        save_weights(self.folder / BEST, self.network, card)

    def _set_learning_rate(self) -> None:
        state = self.state
        progress = state.epoch / state.epochs
        if state.hours is not None:
            progress = max(progress, state.elapsed_seconds / (state.hours * 3600))
        for group in self.optimizer.param_groups:
            group["lr"] = poly(self.settings.learning_rate, progress, self.settings.poly_exponent)

    def _loader(self, cases: Sequence[StoredCase], *, is_validation: bool = False) -> PatchLoader:
        is_gpu = self.device.device.type == "cuda"
        return PatchLoader(
            cases,
            patch_size=self.configuration.patch_size,
            batch_size=self.state.batch_size,
            seed=self.state.seed,
            stream=VALIDATION_STREAM if is_validation else 0,
            foreground_share=self.settings.foreground_oversampling,
            policy=None if is_validation else self.policy,
            prefetch=6 if is_gpu else 3,
            num_threads=min(4, available_cores()) if is_gpu else 1,  # a CPU needs its cores for the network
            pin_memory=is_gpu,
        )


def _left_right_axis(plan: Plan, configuration: Configuration) -> int | None:
    """The patch axis that runs from left to right; None where the plan does not know, or a 2D slice does not have it."""
    if plan.orientation != "canonical":
        return None
    axis = plan.axis_order.index(2) - (3 - configuration.dimensions)
    return axis if axis >= 0 else None


def _scaler(device: Device) -> torch.amp.GradScaler:
    """Scales losses in float16, where small gradients would vanish; does nothing otherwise."""
    return torch.amp.GradScaler(device.device.type, enabled=device.precision == "float16")


def _optimizer(network: torch.nn.Module, settings: TrainingPlan) -> torch.optim.Optimizer:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def _step_seed(seed: int, epoch: int, iteration: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, iteration)).generate_state(1)[0])
