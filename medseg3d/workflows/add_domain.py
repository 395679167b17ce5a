"""Add one more dataset to a trained universal network, without touching the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medseg3d.domain import UNIVERSAL, Domain, domain_folder, domain_names, read_domains, write_domains
from medseg3d.errors import InputError
from medseg3d.evaluation.metrics import Evaluation
from medseg3d.events import Event, Listener, silent
from medseg3d.models.checkpoints import read_card
from medseg3d.options import PlanOptions, PreprocessOptions, TrainOptions
from medseg3d.planning import Planner
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.plan import plan_by
from medseg3d.workflows.plan_domains import planned_memory, recommending, rules_of
from medseg3d.workflows.preprocess import preprocess
from medseg3d.workflows.splits import check_fold
from medseg3d.workflows.taking_turns import adding_lock, planning_lock
from medseg3d.workflows.train import NetworkFold, is_finished, measured, train_network


def add_domain(dataset: Path, work: Path | None, options: TrainOptions, on: Listener = silent) -> dict[str | None, Evaluation | None]:
    """Plan, preprocess and train one more dataset on a trained network, whose shared part and other domains keep every bit.

    Only the new domain's depthwise convolutions, norms, stem and heads are trained. Its network has at most as many stages as the
    shared part. Goes on where it was stopped. Raises :class:`InputError` where the fold is not trained yet, and :class:`BusyError` where
    it is being trained.
    """
    if work is None:
        raise InputError("--add-domain needs the universal work folder: name it with -w WORK.")
    if options.init is not None:
        raise InputError("--init: a domain that is added begins with the network that it is added to.")
    folder, fold = WorkFolder(work), options.fold
    common = read_domains(folder)
    base = folder.weights(UNIVERSAL, fold)
    if not base.exists():
        raise InputError(
            f"{folder.root}: fold {fold} of the common network is not trained yet. Run medseg3d train -w {work} --fold {fold} first."
        )
    domain = _domain_for(dataset, folder, common)
    network = NetworkFold(name=UNIVERSAL, fold=fold, folder=base.parent, domains=(domain,), added=domain.name)
    with adding_lock(base.parent, str(domain.name)) as lock:
        if not is_finished(base.parent):
            raise InputError(
                f"{base.parent}: its training is not finished, and would change what a new domain stands on. Let it end first."
            )
        _plan(domain, _limited(rules_of(folder, None), base, str(domain.name)), planned_memory(common), on)
        if domain not in common:
            with planning_lock(folder, on):  # others may have been added since
                write_domains(folder, str(domain.configuration), [*read_domains(folder), domain])
        check_fold([*common, domain], fold)
        train_network(network, replace(options, init=base), lock, on)
    return measured(network, options, on)


def _domain_for(dataset: Path, folder: WorkFolder, common: tuple[Domain, ...]) -> Domain:
    """The domain of a dataset, which may have been added before; raises :class:`InputError` where it is trained with the others."""
    for known in common:
        if known.is_at(dataset):
            if not known.is_added:
                raise InputError(f"{dataset}: {known.name} is trained together with the others; there is nothing to add.")
            return known
    (name,) = domain_names([dataset], [str(domain.name) for domain in common])
    return Domain(
        name=name,
        dataset=dataset.resolve(),
        folder=domain_folder(folder, name),
        configuration=common[0].configuration,
        is_added=True,
    )


def _limited(rules: Planner, base: Path, name: str) -> Planner:
    """The planner's numbers, with at most as many stages as the shared part has."""
    num_stages = max(len(network.features) for other, network in read_card(base).networks.items() if other != name)
    return replace(rules, network=replace(rules.network, max_stages=min(num_stages, rules.network.max_stages or num_stages)))


def _plan(domain: Domain, rules: Planner, gpu_memory_gb: float | None, on: Listener) -> None:
    """Plan and preprocess a domain for the configuration that the others train; warnings and failures are told."""
    result = plan_by(rules, domain.dataset, domain.folder.root, PlanOptions(gpu_memory_gb=gpu_memory_gb), on)
    recommending(result.plan, str(domain.configuration), domain)
    prepared = preprocess(domain.dataset, domain.folder.root, PreprocessOptions(configurations=domain.configuration), on)
    failures = (*result.failures, *prepared.failures)
    for note in (*result.warnings, *(f"{f.case}: {f.reason}" for f in failures)):
        on(Event(stage="plan", message=domain.named(note)))
    if failures:
        on(Event(stage="plan", failures=failures))
