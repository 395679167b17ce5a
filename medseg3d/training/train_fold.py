"""Train one network on one fold: batches in, weights and a line per epoch out. The whole loop can be read here.

Deterministic on the CPU: batches and augmentation are drawn from (seed, epoch, iteration) alone, and the state is saved whole
after every epoch and when the run is stopped, so that a continued run gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medseg3d.devices import Device, is_out_of_memory, use_all_cores
from medseg3d.errors import DivergedError, InputError
from medseg3d.execution import available_cores
from medseg3d.losses import supervised_loss
from medseg3d.models.checkpoints import ModelCard, save_weights
from medseg3d.options import TrainingOptions
from medseg3d.patches.augmentation import Batch, augment
from medseg3d.patches.loading import BatchReader, PatchLoader
from medseg3d.plan import Configuration, Plan, TrainingPlan
from medseg3d.precision import checked_precision
from medseg3d.preprocessing.store import StoredCase
from medseg3d.signals import StopRequest, last_words
from medseg3d.training.domains import (
    NO_NAME,
    TrainingDomain,
    build_for,
    draw_domain,
    freeze_all_but,
    patch_loader,
    run_network,
    sharing_between,
    with_unit_gradients,
)
from medseg3d.training.initial import InitialWeights, check_began_with, read_initial, take_over
from medseg3d.training.probe import trusted_precision
from medseg3d.training.pseudo_dice import PatchValidation, Smoothed, mean_of_known, smoothed, validate_patches
from medseg3d.training.schedule import learning_rate, parameter_groups
from medseg3d.training.state import (
    BEST,
    LAST,
    EpochRecord,
    TrainingState,
    append_history,
    check_same_run,
    load_state,
    read_summary,
    remove_run,
    restore_state,
    save_state,
    write_summary,
)
from medseg3d.training.time_budget import batch_for_hours

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, int], None]
"""Is told the epoch, and how many of how many are done."""


def _ignore(epoch: int, done: int, total: int) -> None:
    """Nobody listens."""


MAX_BAD_STEPS_IN_A_ROW = 20
"""So many steps with a NaN or infinite loss one after the other are no accident of a batch any more."""
EPOCHS_IN_A_TIME_BUDGET = 30
"""With ``hours`` an epoch ends after this share of the budget at the latest, so that slow devices decay and validate as well."""


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
    init: Path | InitialWeights | None = None,
    check: Callable[[], None] = lambda: None,
    on_step: Progress = _ignore,
    on_validation: Progress = _ignore,
) -> Iterator[EpochRecord]:
    """Train and yield a record per finished epoch; ends early, state saved, when ``stop`` is set.

    ``check`` is called before anything is written, and raises where the folder belongs to another process by now.
    ``on_step(epoch, iteration, iterations)`` is called after every step; ``on_validation`` in the same way before and after each batch
    that an epoch is measured on. ``init`` is what to begin with, a weights file or tensors.
    Raises :class:`DivergedError` after
    ``MAX_BAD_STEPS_IN_A_ROW`` bad steps, naming the cases of their batches, and ``PlanMismatchError`` where ``folder`` holds a
    run with other settings.
    """
    domain = TrainingDomain(name=NO_NAME, plan=plan, configuration=configuration, training=training, validation=validation)
    yield from train_domains(
        [domain],
        name=configuration.name,
        fold=fold,
        folder=folder,
        device=device,
        options=options,
        plan_digest=plan_digest,
        stop=stop,
        init=init,
        check=check,
        on_step=on_step,
        on_validation=on_validation,
    )


def train_domains(
    domains: Sequence[TrainingDomain],
    *,
    name: str,
    fold: str,
    folder: Path,
    device: Device,
    options: TrainingOptions,
    plan_digest: str,
    stop: StopRequest,
    init: Path | InitialWeights | None = None,
    added: str | None = None,
    check: Callable[[], None] = lambda: None,
    on_step: Progress = _ignore,
    on_validation: Progress = _ignore,
) -> Iterator[EpochRecord]:
    """As :func:`train_fold`, for one network that serves several datasets; ``name`` is the configuration's.

    The training numbers are those of the first domain's plan. With ``added``, the weights come from ``init``, everything but the
    parts of the domain of that name keeps its bits, and only that domain is drawn and measured.
    """
    use_all_cores()
    run = _Run(domains, name, fold, folder, device, options, plan_digest, added, check)
    try:
        run.resume_or_begin(init)
        with last_words(run.save):
            yield from _epochs(run, stop, on_step, on_validation)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        sizes = ", ".join(map(str, run.state.batch_sizes))
        raise InputError(
            f"{name}, fold {fold}: a training step with a batch of {sizes} does not fit the memory of {device.device}. Close what else "
            "uses it, give a smaller --batch-size, or plan again with a smaller --gpu-memory. What is trained so far is kept."
        ) from error


def _epochs(run: _Run, stop: StopRequest, on_step: Progress, on_validation: Progress) -> Iterator[EpochRecord]:
    """Train epoch after epoch until the run is over, or until it is told to stop."""
    if run.is_finished:  # the length that is asked for now may be over already, or the last words were not written
        run.end()
    while not run.is_finished:
        if not run.train_epoch(stop, on_step):
            run.save()
            return
        yield run.finish_epoch(on_validation)


class _Run:
    """The parts of a run: network, optimizer, scaler, and the state that says where it stands."""

    def __init__(
        self,
        domains: Sequence[TrainingDomain],
        name: str,
        fold: str,
        folder: Path,
        device: Device,
        options: TrainingOptions,
        plan_digest: str,
        added: str | None,
        check: Callable[[], None],
    ) -> None:
        settings = domains[0].configuration.training
        self.all_domains, self.folder, self.device, self.options, self.added = tuple(domains), folder, device, options, added
        self.domains = tuple(domain for domain in domains if added in (None, domain.name))
        self.settings: TrainingPlan = settings
        self.state = TrainingState(
            configuration=name,
            fold=fold,
            seed=options.seed,
            epochs=options.epochs or settings.epochs,
            iterations_per_epoch=options.iterations or (None if options.hours else settings.iterations_per_epoch),
            hours=options.hours,
            batch_sizes=tuple(options.batch_size or domain.configuration.batch_size for domain in self.domains),
            precision=device.precision,
            plan_digest=plan_digest,
            threads=torch.get_num_threads() if device.device.type == "cpu" else None,
        )
        torch.manual_seed(options.seed)
        self.network = build_for(domains).to(device.device)
        self.sharing = sharing_between(domains)
        self.shared = [] if self.sharing is None else self.sharing.shared_parameters(self.network)
        if added is not None and self.sharing is not None:
            freeze_all_but(self.network, added, self.sharing)
        self.optimizer = optimizer_of(self.network, settings)
        self.scaler = _scaler(device)
        torch.backends.cudnn.benchmark = device.is_gpu  # patches of a domain all have one size
        self.policies = [domain.policy() for domain in self.domains]
        self.losses = [domain.loss() for domain in self.domains]
        self._epoch_rate: float | None = None
        self._check = check
        self._changing = threading.RLock()
        """Held while weights and state do not belong together, so that another thread can save them where the process must end."""

    @property
    def is_finished(self) -> bool:
        state = self.state
        if state.hours is not None and state.elapsed_seconds >= state.hours * 3600:
            return True
        return state.epoch >= state.epochs

    def resume_or_begin(self, init: Path | InitialWeights | None) -> None:
        """Continue the run in the folder if there is one; otherwise check the precision on a first batch.

        ``init`` is what to begin with: tensors of the same name and shape are taken, the others are listed. Raises :class:`InputError`
        where the run in the folder began with something else."""
        initial = read_initial(init)
        saved = None if self.options.restart else load_state(self.folder)
        if saved is None and (done := self._finished_without_state()) is not None:
            check_began_with(done.init, initial, self.folder)
            self.state = done
            return
        if saved is not None:
            state, tensors, metadata = saved
            if self.options.batch_size is None:
                self.state = replace(self.state, batch_sizes=state.batch_sizes)  # they may have been fitted to the hours
            check_same_run(state, self.state, self.folder)
            if self.added is None:
                check_began_with(state.init, initial, self.folder)
            self.device = replace(self.device, precision=state.precision)
            self.scaler = _scaler(self.device)
            restore_state(self.folder, tensors, metadata, self.network, self.optimizer, self.scaler)
            if None not in (state.threads, self.state.threads) and state.threads != self.state.threads and not state.is_finished:
                logger.warning(
                    "Fold %s was begun with %d threads and goes on with %d; its weights will differ in the last digits from those of a run "
                    "that was never stopped.",
                    state.fold,
                    state.threads,
                    self.state.threads,
                )
            is_length_given = self.options.epochs is not None or self.options.hours is not None
            self.state = replace(
                state,
                epochs=self.state.epochs if is_length_given else state.epochs,
                hours=self.state.hours if is_length_given else state.hours,
                iterations_per_epoch=self.options.iterations or state.iterations_per_epoch,
            )
            logger.info("Continuing %s fold %s at epoch %d.", state.configuration, state.fold, state.epoch)
            return
        is_filled = initial is not None and take_over(self.network, initial, only_shared=None if self.added is None else self.sharing)
        if self.options.restart or read_summary(self.folder) is not None:  # weights alone were put there on purpose
            self._check()
            remove_run(self.folder)
        for index, domain in enumerate(self.domains):
            batch = self._loader(index).make_batch(0, 0)
            image, _ = augment(batch, self.policies[index], self.device.device)
            self.device = trusted_precision(self.device, domain.configuration, self.state.batch_sizes[index])
            if domain.name:
                self.network.domain = domain.name  # type: ignore[assignment]
            self.device = checked_precision(self.network, image[:1], self.device, is_trained=is_filled)
        self.state = replace(self.state, precision=self.device.precision, init=None if initial is None else initial.digest)
        self.scaler = _scaler(self.device)
        if self.options.hours is not None and self.options.batch_size is None and self.options.iterations is None:
            sizes = tuple(self._batch_for_hours(index, self.options.hours) for index in range(len(self.domains)))
            self.state = replace(self.state, batch_sizes=sizes)

    def _finished_without_state(self) -> TrainingState | None:
        """What a finished run of these settings says whose large state somebody has deleted; its weights are all that is needed.

        Raises :class:`InputError` where it would have to go on: beginning anew would replace good weights without a word."""
        done = None if self.options.restart or self.added is not None else read_summary(self.folder)
        if done is None or not done.is_finished or not (self.folder / BEST).exists():
            return None
        is_same = (done.plan_digest, done.seed) == (self.state.plan_digest, self.state.seed)
        hours = self.options.hours
        if is_same and (done.epochs >= self.state.epochs if hours is None else done.hours is not None and done.hours >= hours):
            return done
        raise InputError(
            f"{self.folder}: fold {done.fold} is finished ({done.epochs} epochs), and {LAST}, which training goes on from, is not there "
            f"any more. Give --restart to train it anew; {BEST} is replaced then."
        )

    def _batch_for_hours(self, index: int, hours: float) -> int:
        image, labels = augment(self._loader(index).make_batch(0, 0), self.policies[index], self.device.device)
        return batch_for_hours(self.network, self.domains[index], image, labels, self.losses[index], self.device, hours=hours)

    def train_epoch(self, stop: StopRequest, on_step: Progress) -> bool:
        """Train to the end of the epoch; False where a stop request came first."""
        state = self.state
        planned = state.iterations_per_epoch or self.settings.iterations_per_epoch
        self.network.train()
        bad_in_a_row: list[str] = []
        loaders = [self._loader(index) for index in range(len(self.domains))]
        is_gpu = self.device.is_gpu
        # a CPU needs its cores for the network
        reader = BatchReader(prefetch=6 if is_gpu else 3, num_threads=min(4, available_cores()) if is_gpu else 1)
        began, start = time.perf_counter(), state

        def domain_of(iteration: int) -> int:
            return draw_domain(self.domains, seed=state.seed, epoch=state.epoch, iteration=iteration)

        def make(iteration: int) -> Batch:
            return loaders[domain_of(iteration)].make_batch(state.epoch, iteration)

        # closing: leaving the loop early must end the reading threads at once, not when the generator is collected
        with closing(reader.read(make, state.iteration, planned)) as batches:
            for batch in batches:
                self._set_learning_rate(planned)
                index = domain_of(self.state.iteration)
                value = self._backward(batch, index, self.state.epoch, self.state.iteration)
                with self._changing:
                    value = self._update(value, index)
                    elapsed = time.perf_counter() - began
                    self.state = replace(
                        self.state,
                        iteration=self.state.iteration + 1,
                        elapsed_seconds=start.elapsed_seconds + elapsed,
                        epoch_seconds=start.epoch_seconds + elapsed,
                        epoch_waiting=start.epoch_waiting + reader.waited_seconds,
                    )
                    if math.isfinite(value):
                        bad_in_a_row = []
                        self.state = replace(self.state, loss_sum=self.state.loss_sum + value, num_losses=self.state.num_losses + 1)
                    else:
                        bad_in_a_row.extend(batch.names)
                        self._count_bad_step(batch, bad_in_a_row)
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

    def _backward(self, batch: Batch, index: int, epoch: int, iteration: int) -> float:
        """The gradients of a batch, and its loss; the weights stay."""
        torch.manual_seed(_step_seed(self.state.seed, epoch, iteration))  # dropout draws the same after a resume
        image, labels = augment(batch, self.policies[index], self.device.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self.device.autocast():
            outputs = run_network(self.network, image, self.domains[index])
        loss = supervised_loss(outputs, labels, self.losses[index]).total
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return value

    def _update(self, value: float, index: int) -> float:
        """Change the weights by the gradients, where the loss is finite; NaN where the gradients are not."""
        if not math.isfinite(value):
            return value
        self.scaler.unscale_(self.optimizer)
        if self.settings.unit_gradients:
            norms = with_unit_gradients(self.network, index, self.state.gradient_norms or (0.0,) * len(self.domains), self.shared)
            self.state = replace(self.state, gradient_norms=norms)
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

    def finish_epoch(self, on_validation: Progress = _ignore) -> EpochRecord:
        """Measure, keep the weights if they are the best so far, save the state, and give the epoch's record."""
        began = time.perf_counter()
        state = self.state
        found = self._validate(state.iteration, on_validation)
        mean = mean_of_known([each.mean for each in found])
        seconds = time.perf_counter() - began
        mean_so_far = state.smoothed_dice if mean is None else smoothed(state.smoothed_dice, mean)
        value = None if mean_so_far is None else mean_so_far.value
        # Without validation cases (fold "all") the newest weights are the best there is.
        is_best = value is None or state.best is None or value > state.best
        record = EpochRecord(
            epoch=state.epoch,
            train_loss=state.loss_sum / state.num_losses if state.num_losses else None,
            validation_loss=mean_of_known([each.loss for each in found]),
            pseudo_dice={label: dice for each in found for label, dice in each.dice.items()},
            pseudo_dice_mean=mean,
            pseudo_dice_smoothed=value,
            learning_rate=self._rate_of_last_step(),
            seconds=state.epoch_seconds + seconds,
            waiting_share=state.epoch_waiting / max(state.epoch_seconds, 1e-9),
            iterations=state.iteration,
            skipped_iterations=state.skipped,
            is_best=is_best,
            elapsed_seconds=state.elapsed_seconds + seconds,
        )
        with self._changing:
            self._close_epoch(state, record, mean_so_far)
        return record

    def _close_epoch(self, state: TrainingState, record: EpochRecord, smooth: Smoothed | None) -> None:
        """Put the state behind an epoch, and write it with all that belongs to it."""
        self.state = replace(
            state,
            epoch=state.epoch + 1,
            iteration=0,
            iterations_per_epoch=state.iterations_per_epoch or state.iteration,
            elapsed_seconds=record.elapsed_seconds,
            epoch_seconds=0.0,
            epoch_waiting=0.0,
            loss_sum=0.0,
            num_losses=0,
            skipped=0,
            smoothed=record.pseudo_dice_smoothed,
            smoothed_weight=None if smooth is None else smooth.weight,
            best=record.pseudo_dice_smoothed if record.is_best else state.best,
            best_epoch=state.epoch if record.is_best else state.best_epoch,
        )
        self.state = replace(self.state, is_finished=self.is_finished)
        self._check()
        if record.is_best:  # everything comes before the state: where this is stopped, the epoch is trained and written once more
            self._save_best(record)
        append_history(self.folder, record)
        self.save()

    def _validate(self, trained_iterations: int, on_validation: Progress) -> list[PatchValidation]:
        """Each domain on as many batches as are a fifth of its steps, with nnU-Net's numbers."""
        share = self.settings.validation_iterations / self.settings.iterations_per_epoch
        of_one = max(1, trained_iterations // len(self.domains))
        num_batches = max(1, min(self.settings.validation_iterations, math.ceil(of_one * share)))
        total = num_batches * len(self.domains)
        counter = itertools.count()

        def tell() -> None:
            on_validation(self.state.epoch, next(counter), total)

        tell()
        return [
            validate_patches(
                self.network,
                domain,
                self._loader(index, is_validation=True),
                self.losses[index],
                self.device,
                num_batches=num_batches,
                on_batch=tell,
            )
            for index, domain in enumerate(self.domains)
        ]

    def end(self) -> None:
        """Write down that the run is finished, where that is not known yet."""
        if not self.state.is_finished:
            self.state = replace(self.state, is_finished=True)
            self.save()
        elif (self.folder / LAST).exists():
            self._complete()

    def save(self) -> None:
        """Write the state; where there is no best model yet, the present weights are it."""
        with self._changing:
            self._check()
            save_state(self.folder, self.state, self.network, self.optimizer, self.scaler)
            self._complete()

    def _complete(self) -> None:
        """Write what stands beside the state, where a run was killed before it could."""
        if not (self.folder / BEST).exists():
            self._save_best(None)
        write_summary(self.folder, self.state)

    def _save_best(self, record: EpochRecord | None) -> None:
        facts: dict[str, float | int | str | None] = {
            "epoch": self.state.epoch if record is None else record.epoch,
            "pseudo_dice_smoothed": None if record is None else record.pseudo_dice_smoothed,
            "precision": self.state.precision,
        }
        plans = {domain.name: domain.plan for domain in self.all_domains}
        names = {domain.name: domain.configuration.name for domain in self.all_domains}
        card = ModelCard(plans=plans, configurations=names, fold=self.state.fold, facts=facts)
        save_weights(self.folder / BEST, self.network, card)

    def _progress(self, iteration_share: float = 0.0) -> float:
        """The share of the run that is over, by epochs or by the time budget, whichever is further."""
        state = self.state
        progress = (state.epoch + iteration_share) / state.epochs
        return progress if state.hours is None else max(progress, state.elapsed_seconds / (state.hours * 3600))

    def _set_learning_rate(self, planned: int) -> None:
        """Before every step; a plain polynomial moves once per epoch, as nnU-Net's does.

        The clock is only read where hours are given: a continued run must repeat the numbers of an uninterrupted one.
        """
        is_plain = self.settings.schedule == "poly" and not self.settings.warmup
        if is_plain and self.state.iteration and self._epoch_rate is not None:
            rate = self._epoch_rate
        else:
            rate = learning_rate(self.settings, self._progress(0.0 if is_plain else self.state.iteration / planned))
        self._epoch_rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]

    def _rate_of_last_step(self) -> float:
        """Also where a run was stopped between the last step of an epoch and its end."""
        if self._epoch_rate is None and self.state.iteration:
            here = self.state
            self.state = replace(here, iteration=here.iteration - 1)
            self._set_learning_rate(here.iterations_per_epoch or self.settings.iterations_per_epoch)
            self.state = here
        return self._epoch_rate or 0.0

    def _loader(self, index: int, *, is_validation: bool = False) -> PatchLoader:
        return patch_loader(
            self.domains[index],
            batch_size=self.state.batch_sizes[index],
            seed=self.state.seed,
            on_gpu=self.device.is_gpu,
            policy=None if is_validation else self.policies[index],
            is_validation=is_validation,
        )


def _scaler(device: Device) -> torch.amp.GradScaler:
    """Scales losses in float16, where small gradients would vanish; does nothing otherwise."""
    return torch.amp.GradScaler(device.device.type, enabled=device.precision == "float16")


def optimizer_of(network: torch.nn.Module, settings: TrainingPlan) -> torch.optim.Optimizer:
    """The plan's optimizer over what is trainable, with the learning rates of its layers."""
    parameters = parameter_groups(network, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def _step_seed(seed: int, epoch: int, iteration: int) -> int:
    return int(np.random.SeedSequence((seed, epoch, iteration)).generate_state(1)[0])
