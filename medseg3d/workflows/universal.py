"""One network for several datasets: plan, preprocess, train them together, and add one more without touching the others."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from medseg3d.checkpoints import FORMAT_VERSION, ModelCard, load_tensors, read_card, save_tensors
from medseg3d.dataset import Split
from medseg3d.devices import choose_device
from medseg3d.errors import InputError, InterruptedBySignalError, PlanError, PlanMismatchError
from medseg3d.evaluation.metrics import Evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.files import write_text
from medseg3d.networks.build import build_network
from medseg3d.networks.u2net import ONLY
from medseg3d.plan import NetworkPlan, Plan
from medseg3d.planning import Planner, load_planner
from medseg3d.records import read_record, to_plain, write_record
from medseg3d.reporting.figures import progress_figure
from medseg3d.training.domains import TrainingDomain
from medseg3d.training.folds import Folds
from medseg3d.training.state import BEST, HISTORY, STATE, TrainingState, read_history
from medseg3d.training.train_fold import StopRequest, TrainingOptions, train_domains
from medseg3d.universal import UNIVERSAL, Universal, domain_folder, domain_names, is_universal, read_universal, write_universal
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.plan import PlanResult, plan
from medseg3d.workflows.preprocess import PreprocessResult, preprocess
from medseg3d.workflows.run import RunResult, predict_test_set, write_report
from medseg3d.workflows.select import select
from medseg3d.workflows.train import ALL_CASES, follow, plan_digest, read_split, stop_on_signals, stored_cases, validate

logger = logging.getLogger(__name__)
PLANNER = "universal"
ADDED = "added"
"""The folder, within a fold, of the trainings that added domains."""


def plan_universal(
    datasets: Sequence[Path],
    work: Path,
    *,
    planner: str | None = None,
    gpu_memory_gb: float | None = None,
    jobs: int | None = None,
    max_ram_gb: float | None = None,
    with_candidates: bool = False,
    on: Listener = silent,
) -> dict[str, PlanResult]:
    """Plan each dataset by the same planner, in a work folder of its own within ``work``; the results by domain.

    The datasets join those that are trained together already, which are planned again. Without ``planner`` the numbers of the
    work folder are kept, ``universal`` in a new one. All train ``3d_fullres`` where all have it, otherwise ``2d``. Raises
    :class:`PlanError` where the planner's family cannot be shared, and :class:`InputError` for a work folder of one dataset or a
    dataset that was added to a trained network.
    """
    folder = WorkFolder(work)
    if folder.plan.exists():
        raise InputError(f"{work}: holds the plan of a single dataset. Name another work folder for several of them.")
    before = read_universal(folder) if is_universal(folder) else None
    rules = _rules(folder, planner)
    if gpu_memory_gb is None and before is not None:
        gpu_memory_gb = _memory(folder, before)
    paths = {name: Path(before.domains[name]) for name in before.joint} if before else {}
    added = [before.domain_at(dataset) for dataset in datasets if before and before.domain_at(dataset) in before.added] if before else []
    if added:
        raise InputError(f"{work}: {', '.join(map(str, added))} joined the trained network. Go on with train --add-domain.")
    known = {path.resolve() for path in paths.values()}
    fresh = [dataset for dataset in datasets if dataset.resolve() not in known]
    paths |= dict(zip(domain_names(fresh, tuple(before.domains) if before else ()), (d.resolve() for d in fresh), strict=True))
    results = {
        name: plan(
            dataset,
            domain_folder(folder, name).root,
            planner=rules,
            gpu_memory_gb=gpu_memory_gb,
            jobs=jobs,
            max_ram_gb=max_ram_gb,
            with_candidates=with_candidates,
            num_datasets=len(paths),
            on=on,
        )
        for name, dataset in paths.items()
    }
    configuration = _common_configuration({name: result.plan for name, result in results.items()})
    for name, result in results.items():
        results[name] = replace(result, plan=_recommending(result.plan, configuration, domain_folder(folder, name)))
    kept = {name: before.domains[name] for name in before.added} if before else {}
    write_record(folder.planner, rules, "planner")
    domains = {name: str(path) for name, path in paths.items()} | kept
    write_universal(folder, Universal(configuration=configuration, domains=domains, added=tuple(kept)))
    return results


def _rules(folder: WorkFolder, planner: str | None) -> Planner:
    """The named planner, or the numbers of the work folder; raises :class:`PlanError` where its network cannot be shared."""
    if planner is None and folder.planner.exists():
        rules = read_record(folder.planner, Planner, "planner")
    else:
        rules = load_planner(planner or PLANNER)
    if rules.network.family != "u2net":
        raise PlanError(
            f"The planner {rules.name} plans {rules.network.family}, and only u2net serves several datasets. Use --planner universal."
        )
    return rules


def _memory(folder: WorkFolder, universal: Universal) -> float | None:
    """The GPU memory that the domains were planned for."""
    home = domain_folder(folder, universal.joint[0])
    return home.read_plan().gpu_memory_gb if home.plan.exists() else None


def preprocess_universal(
    work: Path, *, jobs: int | None = None, max_ram_gb: float | None = None, device: str = "cpu", on: Listener = silent
) -> dict[str, PreprocessResult]:
    """Preprocess every domain for the configuration that they train; the results by domain."""
    folder = WorkFolder(work)
    universal = read_universal(folder)
    return {
        name: preprocess(
            Path(dataset),
            domain_folder(folder, name).root,
            configurations=[universal.configuration],
            jobs=jobs,
            max_ram_gb=max_ram_gb,
            device=device,
            on=on,
        )
        for name, dataset in universal.domains.items()
        if name in universal.joint
    }


def train_universal(
    work: Path,
    *,
    fold: str = "0",
    device: str = "auto",
    options: TrainingOptions | None = None,
    init: Path | None = None,
    tta: str = "auto",
    on: Listener = silent,
) -> dict[str, Evaluation]:
    """Train the common network on one fold of every domain, then measure each domain's validation cases; by domain.

    A domain with fewer folds takes part with fold ``fold`` modulo its number. Raises :class:`InterruptedBySignalError` when
    SIGINT or SIGTERM came; the state is saved then, and the best weights so far can be used.
    """
    folder = WorkFolder(work)
    options = options or TrainingOptions()
    universal = read_universal(folder)
    _check_fold(folder, universal, fold)
    target = folder.fold(UNIVERSAL, fold)
    joined = sorted(path.name for path in (target / ADDED).glob("*"))
    if joined and not options.restart:
        if not _is_finished(target) or options.epochs is not None or options.hours is not None:
            raise InputError(
                f"{target}: {', '.join(joined)} joined this network. Training it on would change what they stand on; --restart trains it "
                "anew, and they have to join again."
            )
        return _validate(folder, universal, universal.joint, fold, device, tta, on)
    if options.restart:
        shutil.rmtree(target / ADDED, ignore_errors=True)
    domains = [_training_domain(folder, universal, name, fold) for name in universal.joint]
    _train(domains, fold=fold, target=target, folder=folder, device=device, options=options, init=init, added=None, on=on)
    return _validate(folder, universal, universal.joint, fold, device, tta, on)


def _is_finished(target: Path) -> bool:
    return (target / STATE).exists() and read_record(target / STATE, TrainingState, "training").is_finished


def add_domain(
    work: Path,
    dataset: Path,
    *,
    fold: str = "0",
    device: str = "auto",
    options: TrainingOptions | None = None,
    jobs: int | None = None,
    tta: str = "auto",
    on: Listener = silent,
) -> dict[str, Evaluation]:
    """Plan, preprocess and train one more dataset on a trained network, whose shared part and other domains keep every bit.

    Only the new domain's depthwise convolutions, norms, stem and heads are trained. Its network has at most as many stages as the
    shared part. Goes on where it was stopped. Raises :class:`InputError` where the fold is not trained yet.
    """
    folder = WorkFolder(work)
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
    num_stages = max(len(_network(card, other).features) for other in card.plans if other != name)
    rules = _rules(folder, None)
    stages = min(num_stages, rules.network.max_stages or num_stages)
    rules = replace(rules, network=replace(rules.network, max_stages=stages))
    home = domain_folder(folder, name)
    result = plan(dataset, home.root, planner=rules, gpu_memory_gb=_memory(folder, universal), jobs=jobs, on=on)
    made = _recommending(result.plan, universal.configuration, home)
    prepared = preprocess(dataset, home.root, configurations=[made.recommended], jobs=jobs, on=on)
    for note in (*result.warnings, *(f"{f.case}: {f.reason}" for f in (*result.failures, *prepared.failures))):
        on(Event(stage="plan", message=f"{name}: {note}"))
    if name not in universal.domains:
        universal = replace(universal, domains={**universal.domains, name: str(dataset.resolve())}, added=(*universal.added, name))
        write_universal(folder, universal)
    _check_fold(folder, universal, fold)
    target = base.parent / ADDED / name
    domain = _training_domain(folder, universal, name, fold)
    _train(
        [domain], fold=fold, target=target, folder=folder, device=device, options=options or TrainingOptions(), init=base, added=name, on=on
    )
    return _validate(folder, universal, [name], fold, device, tta, on)


def _check_fold(folder: WorkFolder, universal: Universal, fold: str) -> None:
    """Raise :class:`InputError` for a fold that no domain has."""
    most = max(_num_folds(domain_folder(folder, name)) for name in universal.domains)
    if fold != ALL_CASES and (not fold.isdigit() or int(fold) >= most):
        raise InputError(f"--fold {fold}: there are folds 0 to {most - 1}, and all.")


def _num_folds(home: WorkFolder) -> int:
    if not home.splits.exists():
        raise InputError(f"{home.root}: there is no splits.json here. Run medseg3d plan first.")
    return len(read_record(home.splits, Folds, "splits").folds)


def run_universal(
    datasets: Sequence[Path],
    work: Path,
    *,
    planner: str | None = None,
    gpu_memory_gb: float | None = None,
    folds: Sequence[str] | None = None,
    epochs: int | None = None,
    iterations: int | None = None,
    hours: float | None = None,
    device: str = "auto",
    jobs: int | None = None,
    max_ram_gb: float | None = None,
    seed: int = 0,
    restart: bool = False,
    on: Listener = silent,
) -> dict[str, RunResult]:
    """The whole chain for several datasets, ending in a report for each; the results by domain.

    ``hours`` is the time of all training together, shared equally by the folds (all of them, if none are named).
    """
    planned = plan_universal(datasets, work, planner=planner, gpu_memory_gb=gpu_memory_gb, jobs=jobs, max_ram_gb=max_ram_gb, on=on)
    for name, result in planned.items():
        for warning in result.warnings:
            on(Event(stage="plan", message=f"{name}: {warning}"))
    prepared = preprocess_universal(work, jobs=jobs, max_ram_gb=max_ram_gb, on=on)
    most = max(len(result.folds.folds) if result.folds else 1 for result in planned.values())
    wanted = list(folds or map(str, range(most)))
    share = hours / len(wanted) if hours else None
    options = TrainingOptions(epochs=epochs, iterations=iterations, hours=share, seed=seed, restart=restart)
    failures = {name: [*planned[name].failures, *prepared[name].failures] for name in planned}
    for fold in wanted:
        for name, evaluation in train_universal(work, fold=fold, device=device, options=options, on=on).items():
            failures[name] += evaluation.failures
    results: dict[str, RunResult] = {}
    for name, root, home in domains_of(work):
        if name not in planned:  # it was added, and its report is made by medseg3d report
            continue
        selection = select(root, home, device=device, on=on) if any(fold != ALL_CASES for fold in wanted) else None
        test, test_failures = predict_test_set(root, WorkFolder(home), home, device, on)
        unique = tuple({failure.case: failure for failure in (*failures[name], *test_failures)}.values())
        page = write_report(root, WorkFolder(home), failures=unique, warnings=planned[name].warnings)
        results[name] = RunResult(report=page, selection=selection, test=test, failures=unique)
    return results


def export_domain(folder: WorkFolder, weights: Path, name: str, fold: str, state: TrainingState) -> Path:
    """Write the part of a common network that a domain uses as ordinary weights into the domain's work folder.

    The tensors are the common ones, bit for bit, under the names that the network of a single dataset has.
    """
    card = read_card(weights)
    tensors, _ = load_tensors(weights)
    made, configuration = card.plans[name], card.plans[name].configuration(card.configurations[name])
    with torch.device("meta"):
        wanted = build_network(configuration.network).state_dict()
    renamed = {
        key.replace(f"domains.{name}.", f"domains.{ONLY}.", 1): tensor for key, tensor in tensors.items() if not _is_foreign(key, name)
    }
    missing = [key for key in wanted if key not in renamed]
    if missing:
        raise PlanMismatchError(f"{weights}: lacks {missing[0]} of the domain {name}. Train again with --restart.")
    home = domain_folder(folder, name)
    own_fold = _own_fold(home, fold)
    target = home.fold(configuration.name, own_fold)
    own = ModelCard(plans={"": made}, configurations={"": configuration.name}, fold=own_fold, facts=card.facts)
    used = {key: renamed[key] for key in wanted}
    if not _holds(target / BEST, own, used):  # what is there already keeps its time stamp, and its measures with it
        save_tensors(target / BEST, used, {"format_version": FORMAT_VERSION, "card": to_plain(own)})
    digest = plan_digest(made, configuration, _split(home, fold))
    write_record(target / STATE, replace(state, configuration=configuration.name, fold=own_fold, plan_digest=digest), "training")
    return target / BEST


def _holds(file: Path, card: ModelCard, tensors: dict[str, torch.Tensor]) -> bool:
    """The file holds these weights."""
    if not file.exists() or read_card(file) != card:
        return False
    kept, _ = load_tensors(file)
    return kept.keys() == tensors.keys() and all(torch.equal(kept[key], tensor) for key, tensor in tensors.items())


def _export_history(common: Path, home: Path, name: str) -> None:
    """The epochs of a common training as one domain saw them: its own labels, and their mean."""
    lines = []
    for epoch in read_history(common):
        dice = cast(dict[str, float | None], epoch["pseudo_dice"])
        own = {label.removeprefix(f"{name}/"): value for label, value in dice.items() if label.startswith(f"{name}/")}
        present = [value for value in own.values() if value is not None]
        mean = sum(present) / len(present) if present else None
        lines.append(json.dumps({**epoch, "pseudo_dice": own, "pseudo_dice_mean": mean, "pseudo_dice_smoothed": None}))
    if lines:
        write_text(home / HISTORY, "\n".join(lines) + "\n")
        progress_figure(read_history(home), home / "progress.png", title=f"{name} in the universal network")


def _train(
    domains: Sequence[TrainingDomain],
    *,
    fold: str,
    target: Path,
    folder: WorkFolder,
    device: str,
    options: TrainingOptions,
    init: Path | None,
    added: str | None,
    on: Listener,
) -> None:
    """Train to the end or to a signal; either way each trained domain has its weights then."""
    stop: StopRequest
    try:
        with stop_on_signals() as stop:
            epochs = train_domains(
                domains,
                name=UNIVERSAL,
                fold=fold,
                folder=target,
                device=choose_device(device),
                options=options,
                plan_digest=_digest(domains, folder, fold, init if added else None),
                stop=stop,
                init=init,
                added=added,
                on_step=lambda epoch, step, steps: on(Event(stage=f"train universal fold {fold}, epoch {epoch}", done=step, total=steps)),
            )
            follow(epochs, f"universal, fold {fold}" + (f", adding {added}" if added else ""), target, on)
    finally:  # also where it was stopped or diverged: the best weights so far can be used
        _hand_out(domains, target, folder, fold, added)
    if stop.signal_number is not None:
        again = " without --restart" if options.restart else ""
        raise InterruptedBySignalError(
            stop.signal_number, f"Stopped; the state is saved in {target}. Run the same command again{again} to go on."
        )


def _hand_out(domains: Sequence[TrainingDomain], target: Path, folder: WorkFolder, fold: str, added: str | None) -> None:
    """Give each domain that the fold is one of its own its part of the best weights; an added domain joins the common file first."""
    weights, state = target / BEST, target / STATE
    if not weights.exists() or not state.exists():
        return
    if added is not None:
        _join(folder.weights(UNIVERSAL, fold), weights, added)
    reached = read_record(state, TrainingState, "training")
    for domain in domains:
        if _own_fold(domain_folder(folder, domain.name), fold) == fold:
            exported = export_domain(folder, folder.weights(UNIVERSAL, fold), domain.name, fold, reached)
            _export_history(target, exported.parent, domain.name)


def _join(base: Path, trained: Path, added: str) -> None:
    """Put an added domain's tensors and plan beside those of the common network, none of which changes."""
    tensors, _ = load_tensors(base)
    new, _ = load_tensors(trained)
    changed = [key for key, tensor in new.items() if key.startswith("shared.") and not torch.equal(tensor, tensors[key])]
    if changed:  # a defect, never the user's doing; better no file than a network that forgot something
        raise RuntimeError(f"training {added} changed {changed[0]}, which belongs to all domains")
    card, own = read_card(base), read_card(trained)
    joined = replace(
        card,
        plans={**card.plans, added: own.plans[added]},
        configurations={**card.configurations, added: own.configurations[added]},
    )
    kept = {key: tensor for key, tensor in tensors.items() if _is_foreign(key, added) or key.startswith("shared.")}
    kept |= {key: tensor for key, tensor in new.items() if key.startswith(f"domains.{added}.")}
    save_tensors(base, kept, {"format_version": FORMAT_VERSION, "card": to_plain(joined)})


def _is_foreign(key: str, domain: str) -> bool:
    """The tensor belongs to another domain."""
    return key.startswith("domains.") and not key.startswith(f"domains.{domain}.")


def _validate(
    folder: WorkFolder, universal: Universal, names: Sequence[str], fold: str, device: str, tta: str, on: Listener
) -> dict[str, Evaluation]:
    measured = {}
    for name in names:
        home = domain_folder(folder, name)
        if _own_fold(home, fold) != fold:
            on(Event(stage="validate", message=f"{name}: has no fold {fold}; it took part in the training with another one."))
            continue
        if fold == ALL_CASES or not _split(home, fold).validation:
            on(Event(stage="validate", message=f"{name}: trained on all cases, so there is nothing to validate on."))
            continue
        on(Event(stage="validate", message=f"Measuring {name}"))
        own_fold = _own_fold(home, fold)
        measured[name] = validate(
            universal.dataset(name),
            home.root,
            configuration=universal.configuration,
            fold=own_fold,
            device=device,
            tta=tta,
            keep_finished=True,
            on=on,
        )
    return measured


def _training_domain(folder: WorkFolder, universal: Universal, name: str, fold: str) -> TrainingDomain:
    home = domain_folder(folder, name)
    made = home.read_plan()
    configuration = made.configuration(universal.configuration)
    training, validation = stored_cases(home, configuration, _split(home, fold))
    return TrainingDomain(name=name, plan=made, configuration=configuration, training=training, validation=validation)


def _split(home: WorkFolder, fold: str) -> Split:
    return read_split(home, _own_fold(home, fold))


def _own_fold(home: WorkFolder, fold: str) -> str:
    """The fold of a domain that belongs to a fold of the common network."""
    if fold == ALL_CASES or not fold.isdigit() or not home.splits.exists():
        return fold
    return str(int(fold) % len(read_record(home.splits, Folds, "splits").folds))


def _digest(domains: Sequence[TrainingDomain], folder: WorkFolder, fold: str, base: Path | None) -> str:
    """Changes when the plan or the cases of any domain change, the domains themselves, or the shared tensors of ``base``."""
    digest = hashlib.blake2b(digest_size=8)
    for domain in domains:
        split = _split(domain_folder(folder, domain.name), fold)
        digest.update(f"{domain.name} {plan_digest(domain.plan, domain.configuration, split)}".encode())
    if base is not None:
        for key, tensor in sorted(load_tensors(base)[0].items()):
            if key.startswith("shared."):
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _common_configuration(plans: dict[str, Plan]) -> str:
    lacking = [name for name, made in plans.items() if "3d_fullres" not in made.configurations]
    if not lacking:
        return "3d_fullres"
    logger.warning("%s: single slices; all datasets are trained as 2d.", ", ".join(lacking))
    return "2d"


def _recommending(made: Plan, configuration: str, home: WorkFolder) -> Plan:
    """The plan, written again with the common configuration recommended."""
    if configuration not in made.configurations:
        raise PlanError(f"{home.root}: the other datasets train {configuration}, which this one cannot: its cases are single slices.")
    changed = replace(made, recommended=configuration, recommended_reason="All datasets of the universal network train it.")
    write_record(home.plan, changed, "plan")
    return changed


def _network(card: ModelCard, name: str) -> NetworkPlan:
    return card.plans[name].configuration(card.configurations[name]).network


def domains_of(work: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, dataset and work folder of every domain."""
    universal = read_universal(WorkFolder(work))
    for name, dataset in universal.domains.items():
        yield name, Path(dataset), domain_folder(WorkFolder(work), name).root
