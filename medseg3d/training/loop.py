"""Train one network: batches in, weights and a record per epoch out. The whole loop can be read here.

Deterministic on the CPU: batches and augmentation are drawn from (seed, epoch, iteration) alone, and the state is saved whole
after every epoch and when the run is stopped, so that a continued run gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import itertools
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from medseg3d.devices import Device, use_all_cores
from medseg3d.models.checkpoints import ModelCard, save_weight_tensors
from medseg3d.options import TrainingOptions
from medseg3d.patches.augmentation import Batch, augment
from medseg3d.patches.loading import PatchLoader, augmented_ahead
from medseg3d.signals import StopRequest, last_words
from medseg3d.team import ALONE, Team
from medseg3d.training.averaging import averaging
from medseg3d.training.begin import Begun, asked_state, begin
from medseg3d.training.collapse import silent_since, warnings
from medseg3d.training.domains import TrainingDomain, draw_domain, patch_loader, training_case_loader
from medseg3d.training.failures import check_not_diverged, check_shares, explained
from medseg3d.training.growth import grown_batch, grown_domains, growth_stage
from medseg3d.training.hard_cases import measured_cases
from medseg3d.training.initial import InitialWeights, read_initial
from medseg3d.training.judging import Judged, judge
from medseg3d.training.learner import make_learner, replicated, sharing_between
from medseg3d.training.pseudo_dice import PatchValidation, mean_of_known, validate_patches
from medseg3d.training.schedule import learning_rate
from medseg3d.training.state import BEST, LAST, EpochRecord, append_history, save_state, write_summary
from medseg3d.training.step import apply_gradients, compute_gradients
from medseg3d.training.tiles import validate_tiles
from medseg3d.training.tuning import Tuning, tuned

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, int], None]
"""Is told the epoch, and how many of how many are done."""


ENDS_AT_0 = "cosine"
"""The schedule of short runs: its last epoch has the smallest steps, so it is kept whatever a few patches say of the epochs before."""


def _ignore(epoch: int, done: int, total: int) -> None:
    """Nobody listens."""


EPOCHS_IN_A_TIME_BUDGET = 30
"""With ``hours`` an epoch ends after this share of the budget at the latest, so that slow devices decay and validate as well."""


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
    tuning: Tuning | None = None,
    check: Callable[[], None] = lambda: None,
    team: Team = ALONE,
    on_step: Progress = _ignore,
    on_validation: Progress = _ignore,
) -> Iterator[EpochRecord]:
    """Train one network on one or several datasets and yield a record per finished epoch; ends early, state saved, when ``stop`` is set.

    ``name`` is the configuration's; the training numbers are those of the first domain's plan. ``init`` is what to begin with, a weights
    file or tensors. With ``added``, everything but the parts of the domain of that name keeps its bits, and only that domain is drawn and
    measured. ``tuning`` changes learning rates and freezes parts. ``check`` is called before anything is written, and raises where the
    folder belongs to another process by now. A ``team`` of processes calls this together: each has its samples of every batch, the numbers
    are those of whole batches, and the first one writes.

    ``on_step(epoch, iteration, iterations)`` is called after every step; ``on_validation`` in the same way before and after each batch
    that an epoch is measured on. Raises :class:`DivergedError` after ``MAX_BAD_STEPS_IN_A_ROW`` bad steps, naming the cases of their
    batches, and ``PlanMismatchError`` where ``folder`` holds a run with other settings.
    """
    use_all_cores()
    tuning = Tuning() if tuning is None else tuning
    domains = tuned(domains, tuning)
    trained = [domain for domain in domains if added in (None, domain.name)]
    state = asked_state(trained, name=name, fold=fold, device=device, options=options, plan_digest=plan_digest, tuning=tuning, team=team)
    learner = make_learner(domains, device, seed=options.seed, added=added, frozen=tuning.freeze)
    # patches of a domain all have one size
    torch.backends.cudnn.benchmark = device.is_gpu and not torch.are_deterministic_algorithms_enabled()
    plans = {domain.name: domain.plan for domain in domains}
    card = ModelCard(plans=plans, configurations={domain.name: domain.configuration.name for domain in domains}, fold=fold)
    joins = None if added is None else sharing_between(domains)
    try:
        begun = begin(learner, state, trained, folder, options=options, init=read_initial(init), joins=joins, check=check, team=team)
        state = begun.state
        check_shares(state, team)
        run = _Run(begun, folder, card, options, check, team)
        with last_words(run.save):
            yield from _epochs(run, stop, on_step, on_validation)
    except RuntimeError as error:
        reason = explained(error, state, device)
        if reason is None:
            raise
        raise reason from error


def _epochs(run: _Run, stop: StopRequest, on_step: Progress, on_validation: Progress) -> Iterator[EpochRecord]:
    """Train epoch after epoch until the run is over, or until it is told to stop."""
    if run.state.is_over:  # the length that is asked for now may be over already, or the last words were not written
        run.end()
    while not run.state.is_over:
        if not run.train_epoch(stop, on_step):
            run.save()
            return
        yield run.finish_epoch(on_validation)


class _Run:
    """What learns, and the state that says where it stands; both change together, after every step and every epoch."""

    def __init__(
        self,
        begun: Begun,
        folder: Path,
        card: ModelCard,
        options: TrainingOptions,
        check: Callable[[], None],
        team: Team,
    ) -> None:
        self.learner, self.state, self.domains = replicated(begun.learner, team), begun.state, begun.domains
        self.folder, self.card, self.options, self.team = folder, card, options, team
        self.settings = begun.domains[0].configuration.training
        self._rate: float | None = None
        self._check = check
        self._changing = threading.RLock()
        """Held while weights and state do not belong together, so that another thread can save them where the process must end."""
        self.average = averaging(self.learner.network, self.settings.weight_averaging, self._changing, begun.averaged)

    def train_epoch(self, stop: StopRequest, on_step: Progress) -> bool:
        """Train to the end of the epoch; False where a stop request came first."""
        began, start = self.state, time.perf_counter()
        planned = began.iterations_per_epoch or self.settings.iterations_per_epoch
        loaders = [self._loader(domain) for domain in range(len(self.domains))]
        reader = loaders[0].reader  # of all domains, in the order of the steps
        bad_in_a_row: list[str] = []

        def make(iteration: int) -> Batch:
            index = self._domain_of(iteration)
            batch = loaders[index].make_batch(began.epoch, iteration)
            return augmented_ahead(batch, self._grown(index)[0].policy, self.learner.device.device)

        self.learner.begin_training()
        # closing: leaving the loop early must end the reading threads at once, not when the generator is collected
        with closing(reader.read(make, began.iteration, planned)) as batches:
            for batch in batches:
                self._set_learning_rate(planned)
                index = self._domain_of(self.state.iteration)
                loss = self._gradients(batch, index)
                with self._changing:
                    step = apply_gradients(self.learner, loss, running_norm=self.state.running_norm(index))
                    if self.average is not None and step.is_finite:
                        self.average.note(self.state.averaged_steps + 1)
                    names = batch.names if step.is_finite else tuple(itertools.chain(*self.team.collected(batch.names)))
                    seconds, waited, stops = self._agreed(time.perf_counter() - start, reader.waited_seconds, stop)
                    self.state = self.state.after_step(
                        step,
                        domain=index,
                        cases=names,
                        began=began,
                        seconds=seconds,
                        waited=waited,
                        is_averaged=self.average is not None,
                    )
                bad_in_a_row = [] if step.is_finite else [*bad_in_a_row, *names]
                if not step.is_finite:
                    check_not_diverged(names, bad_in_a_row)
                on_step(self.state.epoch, self.state.iteration, planned)
                if stops:
                    return False
                if self._is_epoch_over(planned):
                    break
        return True

    def _gradients(self, batch: Batch, index: int) -> float:
        """The gradients of a batch of a domain, and its loss; the weights stay."""
        state, learner = self.state, self.learner
        domain, num_samples = self._grown(index)
        torch.manual_seed(_step_seed(state.seed, state.epoch, state.iteration, self.team.rank))  # dropout draws the same after a resume
        image, labels = augment(batch, domain.policy, learner.device.device)
        return compute_gradients(
            learner.network,
            image,
            labels,
            domain.loss,
            learner.device,
            scaler=learner.scaler,
            domain=domain.name,
            replica=learner.replica,
            num_samples=num_samples,
        )

    def _agreed(self, seconds: float, waited: float, stop: StopRequest) -> tuple[float, float, bool]:
        """Seconds of the first process, and whether any was told to stop: what decides about a step must be the same in all."""
        if self.team.size == 1:
            return seconds, waited, stop.is_set
        own = (seconds, waited) if self.team.is_first else (0.0, 0.0)
        seconds, waited, stops = self.team.summed([*own, stop.is_set])
        if stops and not stop.is_set:
            stop.set(signal.SIGTERM)
        return seconds, waited, stops > 0

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

    def finish_epoch(self, on_validation: Progress = _ignore) -> EpochRecord:
        """Measure, keep the weights if they are the best so far, save the state, and give the epoch's record."""
        began, state = time.perf_counter(), self.state
        judged = self._judged(on_validation)
        found, value = judged.last, judged.value
        case_dice = self._measured_cases()
        seconds, _, _ = self._agreed(time.perf_counter() - began, 0.0, StopRequest())
        record = EpochRecord(
            epoch=state.epoch,
            train_loss=state.loss_sum / state.num_losses if state.num_losses else None,
            validation_loss=mean_of_known([each.loss for each in found]),
            pseudo_dice={label: dice for each in found for label, dice in each.dice.items()},
            pseudo_dice_mean=judged.mean,
            pseudo_dice_smoothed=None if judged.smooth is None else judged.smooth.value,
            learning_rate=self._rate_of_last_step(),
            seconds=state.epoch_seconds + seconds,
            waiting_share=state.epoch_waiting / max(state.epoch_seconds, 1e-9),
            iterations=state.iteration,
            skipped_iterations=state.skipped,
            # without validation cases (fold "all") the newest weights are the best there is
            is_best=value is None or state.best is None or value > state.best,
            elapsed_seconds=state.elapsed_seconds + seconds,
            averaged_dice_mean=judged.averaged_mean,
            is_average=judged.is_average,
        )
        if self.settings.schedule == ENDS_AT_0 and not self.settings.best_on_tiles and state.after_epoch(record, judged).is_finished:
            record = replace(record, is_best=True)
        with self._changing:
            self.state = replace(state.after_epoch(record, judged), silent=self._silent(found), case_dice=case_dice)
            if self.team.is_first:
                self._check()
                if record.is_best:  # everything comes before the state: where this is stopped, the epoch is trained and written once more
                    self._save_best(record, judged)
                append_history(self.folder, record)
                self.save()
        return record

    def _judged(self, on_validation: Progress) -> Judged:
        """The last weights and the averaged ones on the same patches, on as many batches of each domain, both together, as are a fifth of
        its steps (nnU-Net's number)."""
        num_batches, counter = self._num_measured(), itertools.count()
        has_average = self.average is not None and self.average.is_there
        total = num_batches * len(self.domains) * (2 if has_average else 1)

        def tell() -> None:
            on_validation(self.state.epoch, min(next(counter), total), total)

        tell()
        last, averaged = self._validated(num_batches, tell), None
        if self.average is not None and has_average:
            with self.average.in_place():
                averaged = self._validated(num_batches, tell)
        return judge(last, averaged, before=(self.state.smoothed_dice, self.state.averaged))

    def _validated(self, num_batches: int, tell: Callable[[], None]) -> list[PatchValidation]:
        """What the network as it is now reaches, by domain."""
        network, device = self.learner.network, self.learner.device
        if self.settings.best_on_tiles:
            return self.team.from_first(lambda: self._validated_on_tiles(num_batches, tell))
        return [
            validate_patches(
                network, domain, self._loader(index, is_validation=True), device, num_batches=num_batches, on_batch=tell, team=self.team
            )
            for index, domain in enumerate(self.domains)
        ]

    def _validated_on_tiles(self, num_batches: int, tell: Callable[[], None]) -> list[PatchValidation]:
        """As many windows as patches would be."""
        return [
            validate_tiles(
                self.learner.network,
                domain,
                self._loader(index, is_validation=True, team=ALONE),
                self.learner.device,
                num_tiles=num_batches * self.state.batch_sizes[index],
                on_batch=tell,
            )
            for index, domain in enumerate(self.domains)
        ]

    def _silent(self, found: Sequence[PatchValidation]) -> dict[str, int]:
        """How long labels have been predicted nowhere; once they are so for long, what to try is said."""
        since = silent_since(self.state.silent, [label for each in found for label in each.silent])
        for warning in warnings(since, self.domains) if self.team.is_first else ():
            logger.warning("%s", warning)
        return since

    def _num_measured(self) -> int:
        """Batches of each domain that an epoch is measured on; half as many where averaged weights are measured as well."""
        share = self.settings.validation_iterations / self.settings.iterations_per_epoch / (1 if self.average is None else 2)
        steps = self.state.iterations_per_epoch if self.settings.best_on_tiles else None  # a last epoch is cut short by the clock
        of_one = max(1, (steps or self.state.iteration) // len(self.domains))
        return max(1, min(self.settings.validation_iterations, math.ceil(of_one * share)))

    def _measured_cases(self) -> dict[str, float]:
        """How well the training cases are known by now; nothing where hard ones are not drawn more often."""
        found: dict[str, float] = {}
        for index, domain in enumerate(self.domains):
            if domain.configuration.training.hard_cases:
                before, state = self._case_dice(domain), self.state
                loader = training_case_loader(domain, batch_size=state.batch_sizes[index], seed=state.seed, team=self.team)
                measured = measured_cases(
                    self.learner.network,
                    domain,
                    loader,
                    self.learner.device,
                    epoch=state.epoch,
                    num_batches=self._num_measured(),
                    before=before,
                    team=self.team,
                )
                found |= {f"{domain.name}/{name}".lstrip("/"): dice for name, dice in measured.items()}
        return found

    def _case_dice(self, domain: TrainingDomain) -> dict[str, float]:
        """Of the state, by the names of a domain's cases."""
        names = {f"{domain.name}/{case.name}".lstrip("/"): case.name for case in domain.training}
        return {names[key]: dice for key, dice in self.state.case_dice.items() if key in names}

    def end(self) -> None:
        """Write down that the run is finished, where that is not known yet."""
        if not self.state.is_finished:
            self.state = replace(self.state, is_finished=True)
            self.save()
        elif self.team.is_first and (self.folder / LAST).exists():
            self._complete()

    def save(self) -> None:
        """Write the state; where there is no best model yet, the present weights are it."""
        if not self.team.is_first:
            return
        with self._changing:
            self._check()
            weights = self.learner.network.state_dict() if self.average is None else self.average.last
            averaged = {} if self.average is None else self.average.averaged
            save_state(self.folder, self.state, weights, self.learner.optimizer, self.learner.scaler, averaged=averaged)
            self._complete()

    def _complete(self) -> None:
        """Write what stands beside the state, where a run was killed before it could."""
        if not (self.folder / BEST).exists():
            self._save_best(None, None)
        write_summary(self.folder, self.state)

    def _save_best(self, record: EpochRecord | None, judged: Judged | None) -> None:
        """The better weights of an epoch, or the present ones."""
        is_average = judged is not None and judged.is_average
        facts: dict[str, float | int | str | None] = {
            "epoch": self.state.epoch if record is None else record.epoch,
            "pseudo_dice_smoothed": None if judged is None else judged.value,
            "precision": self.state.precision,
        }
        weights: Mapping[str, torch.Tensor] = self.learner.network.state_dict()
        if self.average is not None:
            weights, facts["weights"] = (self.average.averaged, "averaged") if is_average else (self.average.last, "last")
        save_weight_tensors(self.folder / BEST, weights, replace(self.card, facts=facts))

    def _set_learning_rate(self, planned: int) -> None:
        """Before every step; a plain polynomial moves once per epoch, as nnU-Net's does."""
        if not self._is_plain or not self.state.iteration or self._rate is None:
            self._rate = self._rate_of_step(self.state.iteration, planned)
        for group in self.learner.optimizer.param_groups:
            group["lr"] = self._rate * group["factor"]

    def _rate_of_step(self, iteration: int, planned: int) -> float:
        return learning_rate(self.settings, self.state.progress(0.0 if self._is_plain else iteration / planned))

    @property
    def _is_plain(self) -> bool:
        return self.settings.schedule == "poly" and not self.settings.warmup

    def _rate_of_last_step(self) -> float:
        """Also where a run was stopped between the last step of an epoch and its end."""
        if self._rate is None and self.state.iteration:
            return self._rate_of_step(self.state.iteration - 1, self.state.iterations_per_epoch or self.settings.iterations_per_epoch)
        return self._rate or 0.0

    def _grown(self, index: int) -> tuple[TrainingDomain, int]:
        """A domain with the patch of this epoch, and how many of them are a batch: as many voxels as at full size."""
        share, domain, batch_size = self.settings.patch_growth, self.domains[index], self.state.batch_sizes[index]
        if not share:
            return domain, batch_size
        sizes = self._sizes[index]
        stage = growth_stage(self.state.progress_at_epoch_start, share, len(sizes))
        return sizes[stage], grown_batch(batch_size, domain.configuration.patch_size, sizes[stage].configuration.patch_size)

    @cached_property
    def _sizes(self) -> list[list[TrainingDomain]]:
        """Each domain at its sizes, the full one last."""
        return [grown_domains(domain) for domain in self.domains]

    def _domain_of(self, iteration: int) -> int:
        return draw_domain(self.domains, seed=self.state.seed, epoch=self.state.epoch, iteration=iteration)

    def _loader(self, index: int, *, is_validation: bool = False, team: Team | None = None) -> PatchLoader:
        state, device = self.state, self.learner.device
        domain, batch_size = self.domains[index], state.batch_sizes[index]
        if not is_validation:
            domain, batch_size = self._grown(index)
        return patch_loader(
            domain,
            batch_size=batch_size,
            seed=state.seed,
            on_gpu=device.is_gpu,
            is_validation=is_validation,
            team=team or self.team,
            case_dice=self._case_dice(self.domains[index]),
        )


def _step_seed(seed: int, epoch: int, iteration: int, rank: int) -> int:
    """Of each process another one, or their samples would lose the same voxels; of the first, what it is of one that trains alone."""
    place = (seed, epoch, iteration) if rank == 0 else (seed, epoch, iteration, rank)
    return int(np.random.SeedSequence(place).generate_state(1)[0])
