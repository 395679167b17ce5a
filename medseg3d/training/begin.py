"""How a run begins: with the state in its folder, or with fresh or given weights in a precision and batch sizes that suit the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from medseg3d.devices import Device, Precision
from medseg3d.errors import InputError
from medseg3d.networks.family import Sharing
from medseg3d.options import TrainingOptions
from medseg3d.patches.augmentation import augment
from medseg3d.planning.recipe_rules import recipe_for
from medseg3d.team import Team
from medseg3d.training.domains import TrainingDomain, following, patch_loader, running_parts
from medseg3d.training.initial import InitialWeights, check_began_with, take_over
from medseg3d.training.learner import in_trusted_precision, learner_following
from medseg3d.training.state import (
    BEST,
    LAST,
    SavedRun,
    TrainingState,
    check_same_parts,
    check_same_run,
    load_state,
    read_summary,
    remove_run,
    restore_state,
    saved_average,
)
from medseg3d.training.step import Learner
from medseg3d.training.time_budget import Affordable, batch_for_hours
from medseg3d.training.tuning import Tuning

logger = logging.getLogger(__name__)


def asked_state(
    domains: Sequence[TrainingDomain],
    *,
    name: str,
    fold: str,
    device: Device,
    options: TrainingOptions,
    plan_digest: str,
    tuning: Tuning,
    team: Team,
) -> TrainingState:
    """The state before the first step, as the plan and the user ask for it; the training numbers are those of the first domain."""
    settings = domains[0].configuration.training
    return TrainingState(
        configuration=name,
        fold=fold,
        seed=options.seed,
        epochs=options.epochs or settings.epochs,
        iterations_per_epoch=options.iterations or (None if options.hours else settings.iterations_per_epoch),
        hours=options.hours,
        batch_sizes=tuple(options.batch_size or domain.configuration.batch_size for domain in domains),
        precision=device.precision,
        plan_digest=plan_digest,
        threads=torch.get_num_threads() if device.device.type == "cpu" else None,
        processes=team.size,
        providers=running_parts(domain.configuration for domain in domains),
        tuning=None if tuning == Tuning() else tuning,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What trains from here on: ``domains`` with the training numbers of the run, and the averaged weights of a run that goes on."""

    learner: Learner
    state: TrainingState
    domains: Sequence[TrainingDomain]
    averaged: Mapping[str, Tensor] = field(default_factory=dict)


def begin(
    learner: Learner,
    asked: TrainingState,
    domains: Sequence[TrainingDomain],
    folder: Path,
    *,
    options: TrainingOptions,
    init: InitialWeights | None,
    joins: Sharing | None,
    check: Callable[[], None],
    team: Team,
) -> Begun:
    """Continue the run in the folder if there is one; otherwise check the precision on first batches, fit these to the hours, and choose
    the training numbers for the length of the run.

    ``init`` is what to begin with: tensors of the same name and shape are taken, the others are listed. ``joins`` is given where a
    domain joins a trained network, of which only what is shared is taken then. Raises :class:`InputError` where the run in the folder
    began with something else. Of a ``team`` only the first process deletes, tries and measures.
    """
    saved = None if options.restart else load_state(folder)
    if saved is not None:
        return _resumed(learner, asked, saved, domains, folder, options=options, init=init, joins=joins)
    done = None if options.restart or joins is not None else _finished_without_state(asked, folder)
    if done is not None:
        check_began_with(done.init, init, folder)
        check_same_parts(done.providers, asked.providers, folder, is_over=True)
        return Begun(learner=learner, state=done, domains=domains)
    if init is None and asked.tuning is not None and asked.tuning.freeze:
        raise InputError(
            f"--freeze {' '.join(asked.tuning.freeze)}: fresh weights would never learn. Name a model to begin with: --init MODEL."
        )
    taken = None if init is None else take_over(learner.network, init, domains, only_shared=joins)
    is_filled = taken is not None and not taken.fresh
    if options.restart or read_summary(folder) is not None:  # weights alone were put there on purpose
        team.wait()  # all have looked
        if team.is_first:
            check()
            remove_run(folder)

    def trusted() -> Precision:
        return in_trusted_precision(learner, domains, asked.batch_sizes, seed=asked.seed, is_trained=is_filled).device.precision

    learner = learner.on(replace(learner.device, precision=team.from_first(trusted)))
    state = replace(asked, precision=learner.device.precision, init=None if init is None else init.digest, taken=taken)
    state = team.from_first(lambda: _for_its_length(learner, state, domains, options, team))
    return Begun(learner=learner_following(learner, state.recipe), state=state, domains=following(domains, state.recipe))


def _for_its_length(
    learner: Learner, state: TrainingState, domains: Sequence[TrainingDomain], options: TrainingOptions, team: Team
) -> TrainingState:
    """With batches that leave enough steps in the hours, and the training numbers that suit the number of steps."""
    plan = domains[0].configuration.training
    steps = float(state.epochs * (state.iterations_per_epoch or plan.iterations_per_epoch))
    if options.hours is not None:
        is_fixed = options.batch_size is not None or options.iterations is not None
        found = [
            _batch_for_hours(learner, domain, size, state.seed, options.hours, team, is_fixed=is_fixed)
            for domain, size in zip(domains, state.batch_sizes, strict=True)
            if plan.follows_budget or not is_fixed
        ]
        if found:
            state = replace(state, batch_sizes=tuple(each.batch_size for each in found))
            steps = min(steps, options.hours * 3600 * len(found) / sum(each.step_seconds for each in found))
    keeps_rate = state.tuning is not None and state.tuning.learning_rate is not None
    recipe = recipe_for(plan, steps=steps, keeps_rate=keeps_rate)
    for reason in recipe.reasons:
        logger.info("A short run, %s Chosen for it: %s.", f"{reason.inputs[0].lower()}{reason.inputs[1:]}", reason.value)
    return replace(state, recipe=recipe.value) if recipe.reasons else state


def _resumed(
    learner: Learner,
    asked: TrainingState,
    saved: SavedRun,
    domains: Sequence[TrainingDomain],
    folder: Path,
    *,
    options: TrainingOptions,
    init: InitialWeights | None,
    joins: Sharing | None,
) -> Begun:
    state, tensors, metadata = saved
    if options.batch_size is None:
        asked = replace(asked, batch_sizes=state.batch_sizes)  # they may have been fitted to the hours
    check_same_run(state, asked, folder)
    if joins is None:
        check_began_with(state.init, init, folder)
    resumed = _with_length(state, asked, options)
    check_same_parts(state.providers, asked.providers, folder, is_over=resumed.is_over)
    learner = learner_following(learner.on(replace(learner.device, precision=state.precision)), state.recipe)
    restore_state(folder, tensors, metadata, learner.network, learner.optimizer, learner.scaler)
    is_on_cpu = None not in (state.threads, asked.threads)
    if not state.is_finished and (state.processes != asked.processes or (is_on_cpu and state.threads != asked.threads)):
        logger.warning(
            "Fold %s was begun with %s and goes on with %s; its weights will differ in the last digits from those of a run "
            "that was never stopped.",
            state.fold,
            _workforce(state),
            _workforce(asked),
        )
    logger.info("Continuing %s fold %s at epoch %d.", state.configuration, state.fold, state.epoch)
    return Begun(learner=learner, state=resumed, domains=following(domains, state.recipe), averaged=saved_average(tensors))


def _with_length(state: TrainingState, asked: TrainingState, options: TrainingOptions) -> TrainingState:
    """A saved state with the length that is asked for now, if any; it notes its extensions where an older version did not."""
    length = asked if options.epochs is not None or options.hours is not None else state
    return replace(
        state,
        epochs=length.epochs,
        hours=length.hours,
        iterations_per_epoch=options.iterations or state.iterations_per_epoch,
        providers=state.providers or ({} if state.is_finished else asked.providers),
        threads=state.threads if state.is_finished else asked.threads,
        processes=state.processes if state.is_finished else asked.processes,
    )


def _workforce(state: TrainingState) -> str:
    """What sums are divided among."""
    threads = "" if state.threads is None else f"{state.threads} threads"
    processes = f"{state.processes} processes" if state.processes > 1 or not threads else ""
    return " each in ".join(filter(None, [threads, processes]))


def _finished_without_state(asked: TrainingState, folder: Path) -> TrainingState | None:
    """What a finished run of these settings says whose large state somebody has deleted; its weights are all that is needed.

    Raises :class:`InputError` where it would have to go on: beginning anew would replace good weights without a word."""
    done = read_summary(folder)
    if done is None or not done.is_finished or not (folder / BEST).exists():
        return None
    is_same = (done.plan_digest, done.seed) == (asked.plan_digest, asked.seed)
    hours = asked.hours
    if is_same and (done.epochs >= asked.epochs if hours is None else done.hours is not None and done.hours >= hours):
        return done
    raise InputError(
        f"{folder}: fold {done.fold} is finished ({done.epochs} epochs), and {LAST}, which training goes on from, is not there "
        f"any more. Give --restart to train it anew; {BEST} is replaced then."
    )


def _batch_for_hours(
    learner: Learner, domain: TrainingDomain, batch_size: int, seed: int, hours: float, team: Team, *, is_fixed: bool
) -> Affordable:
    loader = patch_loader(domain, batch_size=batch_size, seed=seed, on_gpu=learner.device.is_gpu, team=team)
    image, labels = augment(loader.make_batch(0, 0), domain.policy, learner.device.device)
    return batch_for_hours(learner, domain, image, labels, hours=hours, planned=batch_size, is_fixed=is_fixed)
