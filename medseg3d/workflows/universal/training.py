"""Train one network for several datasets, and add one more without touching the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg3d.devices import choose_device
from medseg3d.errors import InputError, InterruptedBySignalError
from medseg3d.evaluation.metrics import Evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.files import remove_tree
from medseg3d.locks import Lock
from medseg3d.models.checkpoints import load_tensors, read_card
from medseg3d.networks.build import sharing_of
from medseg3d.options import PlanOptions, PreprocessOptions, TrainOptions, ValidateOptions
from medseg3d.records import read_record
from medseg3d.signals import StopRequest, stop_on_signals
from medseg3d.training.domains import TrainingDomain
from medseg3d.training.folds import read_folds
from medseg3d.training.initial import InitialWeights
from medseg3d.training.loop import train_domains
from medseg3d.training.state import STATE, TrainingState
from medseg3d.universal import UNIVERSAL, Universal, domain_folder, domain_names, read_universal, write_universal
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.initial_weights import initial_weights
from medseg3d.workflows.origins import note_training_data
from medseg3d.workflows.plan import plan_by
from medseg3d.workflows.preprocess import preprocess
from medseg3d.workflows.progress import follow
from medseg3d.workflows.renew_cases import renew_cases
from medseg3d.workflows.splits import ALL_CASES, plan_digest, stored_cases
from medseg3d.workflows.taking_turns import fold_lock, joining_lock, planning_lock
from medseg3d.workflows.universal.planning import planned_memory, recommending, rules_of
from medseg3d.workflows.universal.weights import fold_of_domain, hand_out, split_of
from medseg3d.workflows.validate import validate

ADDED = "added"
"""The folder, within a fold, of the trainings that added domains."""


def train_universal(work: Path, options: TrainOptions, on: Listener = silent) -> dict[str, Evaluation]:
    """Train the common network on one fold of every domain, then measure each domain's validation cases; by domain.

    A domain with fewer folds takes part with fold ``fold`` modulo its number. Raises :class:`InterruptedBySignalError` when
    SIGINT or SIGTERM came; the state is saved then, and the best weights so far can be used.
    """
    folder = WorkFolder(work)
    universal = read_universal(folder)
    _check_fold(folder, universal, options.fold)
    with fold_lock(folder.fold(UNIVERSAL, options.fold), "is being trained") as lock:
        return _train_common(folder, universal, options, lock, on)


def _train_common(folder: WorkFolder, universal: Universal, options: TrainOptions, lock: Lock, on: Listener) -> dict[str, Evaluation]:
    fold, init = options.fold, options.init
    target = folder.fold(UNIVERSAL, fold)
    joined = sorted(path.name for path in (target / ADDED).glob("*"))
    start = None if init is None else initial_weights(init, configuration=universal.configuration, fold=fold)
    if joined and not options.restart:
        if init is not None:
            raise InputError(f"--init {init}: {target} holds a network that {', '.join(joined)} joined. Leave --init out, or --restart.")
        if not _is_finished(target) or options.epochs is not None or options.hours is not None:
            raise InputError(
                f"{target}: {', '.join(joined)} joined this network. Training it on would change what they stand on; --restart trains it "
                "anew, and they have to join again."
            )
        return _validate(folder, universal, universal.joint, options, on)
    if options.restart:
        remove_tree(target / ADDED)
    domains = [_training_domain(folder, universal, name, fold, on) for name in universal.joint]
    _train(domains, target=target, folder=folder, options=options, init=start, added=None, lock=lock, on=on)
    return _validate(folder, universal, universal.joint, options, on)


def add_domain(work: Path, dataset: Path, options: TrainOptions, on: Listener = silent) -> dict[str, Evaluation]:
    """Plan, preprocess and train one more dataset on a trained network, whose shared part and other domains keep every bit.

    Only the new domain's depthwise convolutions, norms, stem and heads are trained. Its network has at most as many stages as the
    shared part. Goes on where it was stopped. Raises :class:`InputError` where the fold is not trained yet.
    """
    folder, fold = WorkFolder(work), options.fold
    universal = read_universal(folder)
    base = folder.weights(UNIVERSAL, fold)
    if not base.exists():
        raise InputError(
            f"{folder.root}: fold {fold} of the common network is not trained yet. Run medseg3d train -w {work} --fold {fold} first."
        )
    if not _is_finished(base.parent):
        raise InputError(f"{base.parent}: its training is not finished, and would change what a new domain stands on. Let it end first.")
    card = read_card(base)
    name = universal.domain_at(dataset) or domain_names([dataset], tuple(universal.domains))[0]
    if name in universal.joint:
        raise InputError(f"{dataset}: {name} is trained together with the others; there is nothing to add.")
    num_stages = max(len(network.features) for other, network in card.networks.items() if other != name)
    rules = rules_of(folder, None)
    stages = min(num_stages, rules.network.max_stages or num_stages)
    rules = replace(rules, network=replace(rules.network, max_stages=stages))
    home = domain_folder(folder, name)
    planning = PlanOptions(gpu_memory_gb=planned_memory(folder, universal))
    result = plan_by(rules, dataset, home.root, planning, on)
    made = recommending(result.plan, universal.configuration, home)
    prepared = preprocess(dataset, home.root, PreprocessOptions(configurations=made.recommended), on)
    for note in (*result.warnings, *(f"{f.case}: {f.reason}" for f in (*result.failures, *prepared.failures))):
        on(Event(stage="plan", message=f"{name}: {note}"))
    if name not in universal.domains:
        with planning_lock(folder, on):
            universal = read_universal(folder)  # others may have been added since
            universal = replace(universal, domains={**universal.domains, name: str(dataset.resolve())}, added=(*universal.added, name))
            write_universal(folder, universal)
    _check_fold(folder, universal, fold)
    target = base.parent / ADDED / name
    with fold_lock(target, "is being trained") as lock:
        _train(
            [_training_domain(folder, universal, name, fold, on)],
            target=target,
            folder=folder,
            options=options,
            init=base,
            added=name,
            lock=lock,
            on=on,
        )
    return _validate(folder, universal, [name], options, on)


def _train(
    domains: Sequence[TrainingDomain],
    *,
    target: Path,
    folder: WorkFolder,
    options: TrainOptions,
    init: Path | InitialWeights | None,
    added: str | None,
    lock: Lock,
    on: Listener,
) -> None:
    """Train to the end or to a signal; either way each trained domain has its weights then."""
    fold = options.fold
    data = {f"{domain.name}/{case.name}": case.digest for domain in domains for case in domain.training}
    note_training_data(target, data, is_restart=options.restart)
    stop: StopRequest
    try:
        with stop_on_signals() as stop:
            epochs = train_domains(
                domains,
                name=UNIVERSAL,
                fold=fold,
                folder=target,
                device=choose_device(options.device),
                options=options,
                plan_digest=_digest(domains, folder, fold, init if added and isinstance(init, Path) else None),
                stop=stop,
                init=init,
                added=added,
                check=lock.check,
                on_step=lambda epoch, step, steps: on(Event(stage=f"train universal fold {fold}, epoch {epoch}", done=step, total=steps)),
                on_validation=lambda epoch, done, total: on(
                    Event(stage=f"train universal fold {fold}, epoch {epoch}, validating", done=done, total=total)
                ),
            )
            follow(epochs, f"universal, fold {fold}" + (f", adding {added}" if added else ""), target, on)
    finally:  # also where it was stopped or diverged: the best weights so far can be used
        with joining_lock(folder.fold(UNIVERSAL, fold)):  # several domains may be added at the same time
            hand_out(domains, target, folder, fold, added)
    if stop.signal_number is not None:
        again = " without --restart" if options.restart else ""
        raise InterruptedBySignalError(
            stop.signal_number, f"Stopped; the state is saved in {target}. Run the same command again{again} to go on."
        )


def _validate(folder: WorkFolder, universal: Universal, names: Sequence[str], options: TrainOptions, on: Listener) -> dict[str, Evaluation]:
    fold = options.fold
    measured = {}
    for name in names:
        home = domain_folder(folder, name)
        if fold_of_domain(home, fold) != fold:
            on(Event(stage="validate", message=f"{name}: has no fold {fold}; it took part in the training with another one."))
            continue
        if fold == ALL_CASES or not split_of(home, fold).validation:
            on(Event(stage="validate", message=f"{name}: trained on all cases, so there is nothing to validate on."))
            continue
        on(Event(stage="validate", message=f"Measuring {name}"))
        own = ValidateOptions.of(options, configuration=universal.configuration, fold=fold_of_domain(home, fold), keep_finished=True)
        measured[name] = validate(universal.dataset(name), home.root, own, on)
    return measured


def _training_domain(folder: WorkFolder, universal: Universal, name: str, fold: str, on: Listener = silent) -> TrainingDomain:
    home = domain_folder(folder, name)
    made = home.read_plan()
    configuration = made.configuration(universal.configuration)
    split = split_of(home, fold)
    renew_cases(universal.dataset(name), home, made, configuration, (*split.train, *split.validation), on=on)
    training, validation = stored_cases(home, configuration, split)
    return TrainingDomain(name=name, plan=made, configuration=configuration, training=training, validation=validation)


def _digest(domains: Sequence[TrainingDomain], folder: WorkFolder, fold: str, base: Path | None) -> str:
    """Changes when the plan or the cases of any domain change, the domains themselves, or the shared tensors of ``base``."""
    digest = hashlib.blake2b(digest_size=8)
    for domain in domains:
        split = split_of(domain_folder(folder, domain.name), fold)
        digest.update(f"{domain.name} {plan_digest(domain.plan, domain.configuration, split)}".encode())
    if base is not None:
        domain_of = sharing_of(read_card(base).networks).domain_of
        for key, tensor in sorted(load_tensors(base)[0].items()):
            if domain_of(key) is None:
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _is_finished(target: Path) -> bool:
    return (target / STATE).exists() and read_record(target / STATE, TrainingState, "training").is_finished


def _check_fold(folder: WorkFolder, universal: Universal, fold: str) -> None:
    """Raise :class:`InputError` for a fold that no domain has."""
    most = max(_num_folds(domain_folder(folder, name)) for name in universal.domains)
    if fold != ALL_CASES and (not fold.isdigit() or int(fold) >= most):
        raise InputError(f"--fold {fold}: there are folds 0 to {most - 1}, and all.")


def _num_folds(home: WorkFolder) -> int:
    if not home.splits.exists():
        raise InputError(f"{home.root}: there is no splits.json here. Run medseg3d plan first.")
    return len(read_folds(home.splits).folds)
