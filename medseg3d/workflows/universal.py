"""One network for several datasets: plan, preprocess, train them together, and add one more without touching the others."""

from __future__ import annotations

import hashlib
import json
import logging
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
    planner: str = PLANNER,
    gpu_memory_gb: float | None = None,
    jobs: int | None = None,
    max_ram_gb: float | None = None,
    with_candidates: bool = False,
    on: Listener = silent,
) -> dict[str, PlanResult]:
    """Plan each dataset by the same planner, in a work folder of its own within ``work``; the results by domain.

    All train ``3d_fullres`` where all have it, otherwise ``2d``. Datasets join those that are domains already. Raises
    :class:`PlanError` where the planner's family cannot be shared, and :class:`InputError` for a work folder of one dataset.
    """
    folder = WorkFolder(work)
    if folder.plan.exists():
        raise InputError(f"{work}: holds the plan of a single dataset. Name another work folder for several of them.")
    before = read_universal(folder).domains if is_universal(folder) else {}
    known = {Path(path).resolve(): name for name, path in before.items()}
    fresh = [dataset for dataset in datasets if dataset.resolve() not in known]
    names = dict(zip((d.resolve() for d in fresh), domain_names(fresh, tuple(before)), strict=True)) | known
    results: dict[str, PlanResult] = {}
    for dataset in datasets:
        name = names[dataset.resolve()]
        results[name] = plan(
            dataset,
            domain_folder(folder, name).root,
            planner=planner,
            gpu_memory_gb=gpu_memory_gb,
            jobs=jobs,
            max_ram_gb=max_ram_gb,
            with_candidates=with_candidates,
            num_datasets=len(datasets),
            on=on,
        )
    configuration = _common_configuration({name: result.plan for name, result in results.items()})
    for name, result in results.items():
        results[name] = replace(result, plan=_recommending(result.plan, configuration, domain_folder(folder, name)))
    paths = before | {names[dataset.resolve()]: str(dataset.resolve()) for dataset in datasets}
    write_universal(folder, Universal(planner=planner, configuration=configuration, domains=paths))
    return results


def preprocess_universal(
    work: Path, *, jobs: int | None = None, max_ram_gb: float | None = None, on: Listener = silent
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
            on=on,
        )
        for name, dataset in universal.domains.items()
    }


def train_universal(
    work: Path,
    *,
    fold: str = "0",
    device: str = "auto",
    options: TrainingOptions | None = None,
    init: Path | None = None,
    on: Listener = silent,
) -> dict[str, Evaluation]:
    """Train the common network on one fold of every domain, then measure each domain's validation cases; by domain.

    A domain with fewer folds takes part with fold ``fold`` modulo its number. Raises :class:`InterruptedBySignalError` when
    SIGINT or SIGTERM came; the state is saved then, and the best weights so far can be used.
    """
    folder = WorkFolder(work)
    universal = read_universal(folder)
    domains = [_training_domain(folder, universal, name, fold) for name in universal.domains]
    target = folder.fold(UNIVERSAL, fold)
    _train(
        domains, fold=fold, target=target, folder=folder, device=device, options=options or TrainingOptions(), init=init, added=None, on=on
    )
    return _validate(folder, universal, list(universal.domains), fold, device, on)


def add_domain(
    work: Path,
    dataset: Path,
    *,
    fold: str = "0",
    device: str = "auto",
    options: TrainingOptions | None = None,
    jobs: int | None = None,
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
    card = read_card(base)
    name = universal.domain_at(dataset) or domain_names([dataset], tuple(universal.domains))[0]
    if name in card.plans and not (base.parent / ADDED / name).exists():
        raise InputError(f"{dataset}: {name} was trained together with the others; there is nothing to add.")
    num_stages = max(len(_network(card, other).features) for other in card.plans if other != name)
    result = plan(dataset, domain_folder(folder, name).root, planner=universal.planner, max_stages=num_stages, jobs=jobs, on=on)
    made = _recommending(result.plan, universal.configuration, domain_folder(folder, name))
    preprocess(dataset, domain_folder(folder, name).root, configurations=[made.recommended], jobs=jobs, on=on)
    universal = replace(universal, domains={**universal.domains, name: str(dataset.resolve())})
    others = [
        TrainingDomain(
            name=other,
            plan=card.plans[other],
            configuration=card.plans[other].configuration(card.configurations[other]),
            training=(),
            validation=(),
        )
        for other in card.plans
        if other != name
    ]
    write_universal(folder, universal)
    target = base.parent / ADDED / name
    domains = [*others, _training_domain(folder, universal, name, fold)]
    _train(
        domains, fold=fold, target=target, folder=folder, device=device, options=options or TrainingOptions(), init=base, added=name, on=on
    )
    return _validate(folder, universal, [name], fold, device, on)


def run_universal(
    datasets: Sequence[Path],
    work: Path,
    *,
    planner: str = PLANNER,
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
    prepared = preprocess_universal(work, jobs=jobs, max_ram_gb=max_ram_gb, on=on)
    most = max(len(result.folds.folds) if result.folds else 1 for result in planned.values())
    wanted = list(folds or map(str, range(most)))
    options = TrainingOptions(
        epochs=epochs, iterations=iterations, hours=hours / len(wanted) if hours else None, seed=seed, restart=restart
    )
    for fold in wanted:
        train_universal(work, fold=fold, device=device, options=options, on=on)
    results: dict[str, RunResult] = {}
    for name, root, home in domains_of(work):
        selection = select(root, home, device=device, on=on) if any(fold != ALL_CASES for fold in wanted) else None
        test, test_failures = predict_test_set(root, WorkFolder(home), home, device, on)
        failures = (*planned[name].failures, *prepared[name].failures, *test_failures)
        page = write_report(root, WorkFolder(home), failures=failures, warnings=planned[name].warnings)
        results[name] = RunResult(report=page, selection=selection, test=test, failures=failures)
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
    with stop_on_signals() as stop:
        epochs = train_domains(
            domains,
            name=UNIVERSAL,
            fold=fold,
            folder=target,
            device=choose_device(device),
            options=options,
            plan_digest=_digest(domains, folder, fold, added),
            stop=stop,
            init=init,
            added=added,
            on_step=lambda epoch, step, steps: on(Event(stage=f"train universal fold {fold}, epoch {epoch}", done=step, total=steps)),
        )
        follow(epochs, f"universal, fold {fold}" + (f", adding {added}" if added else ""), target, on)
    weights, state = target / BEST, target / STATE
    if weights.exists() and state.exists():
        if added is not None:
            _join(folder.weights(UNIVERSAL, fold), weights, added)
        reached = read_record(state, TrainingState, "training")
        for name in [added] if added else [domain.name for domain in domains]:
            exported = export_domain(folder, folder.weights(UNIVERSAL, fold), name, fold, reached)
            _export_history(target, exported.parent, name)
    if stop.signal_number is not None:
        raise InterruptedBySignalError(stop.signal_number, f"Stopped; the state is saved in {target}. Run the same command again to go on.")


def _join(base: Path, trained: Path, added: str) -> None:
    """Put an added domain's tensors and plan beside those of the common network, none of which changes."""
    tensors, _ = load_tensors(base)
    new, _ = load_tensors(trained)
    changed = [key for key, tensor in tensors.items() if _is_foreign(key, added) and not torch.equal(tensor, new[key])]
    changed += [key for key, tensor in tensors.items() if key.startswith("shared.") and not torch.equal(tensor, new[key])]
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
    folder: WorkFolder, universal: Universal, names: Sequence[str], fold: str, device: str, on: Listener
) -> dict[str, Evaluation]:
    measured = {}
    for name in names:
        home = domain_folder(folder, name)
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


def _digest(domains: Sequence[TrainingDomain], folder: WorkFolder, fold: str, added: str | None) -> str:
    """Changes when the plan or the cases of any trained domain change, or the domains themselves."""
    parts = [
        f"{domain.name} {plan_digest(domain.plan, domain.configuration, _split(domain_folder(folder, domain.name), fold))}"
        for domain in domains
        if added in (None, domain.name)
    ]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _common_configuration(plans: dict[str, Plan]) -> str:
    families = {made.configuration(None).network.family for made in plans.values()}
    if families != {"u2net"}:
        raise PlanError(
            f"The planner plans {', '.join(sorted(families))}, and only u2net serves several datasets. Use --planner universal."
        )
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
