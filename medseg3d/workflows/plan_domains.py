"""Plan: a dataset, or several that share a network, each in a work folder of its own, by one planner."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medseg3d.domain import Domain, domain_folder, domain_names, is_universal, read_domains, refuse_part_of_several, write_domains
from medseg3d.errors import InputError, PlanError
from medseg3d.events import Listener, silent
from medseg3d.options import PlanOptions
from medseg3d.plan import Plan
from medseg3d.planning import Planner, load_planner
from medseg3d.records import read_record, write_record
from medseg3d.work_folder import WorkFolder, work_folder
from medseg3d.workflows.plan import PlanResult, plan, plan_by
from medseg3d.workflows.taking_turns import planning_lock

logger = logging.getLogger(__name__)
PLANNER = "universal"


def share_a_network(datasets: Sequence[Path], work: Path | None, planner: str | Path | None) -> bool:
    """Several datasets share a network: they are named, the planner is universal, or the work folder is."""
    return len(datasets) > 1 or planner == PLANNER or (work is not None and is_universal(WorkFolder(work)))


def plan_domains(datasets: Sequence[Path], work: Path | None, options: PlanOptions, on: Listener = silent) -> dict[str | None, PlanResult]:
    """Plan a dataset, the current folder where none is named, or several by the same planner; the results by domain.

    Each of several has a work folder of its own within ``work``. They join those that are trained together already, which are planned
    again. Without ``planner`` the numbers of the work folder are kept, ``universal`` in a new one. All train ``3d_fullres`` where all have
    it, otherwise ``2d``. Raises :class:`PlanError` where the planner's family cannot be shared, and :class:`InputError` for a work folder
    of one dataset or a dataset that was added to a trained network.
    """
    refuse_part_of_several(work_folder(datasets[0] if datasets else Path(), work))
    if not share_a_network(datasets, work, options.planner):
        return {None: plan(datasets[0] if datasets else Path(), work, options, on)}
    folder = _common_folder(work, options)
    before = read_domains(folder) if is_universal(folder) else ()
    rules = rules_of(folder, options.planner)
    options = replace(options, gpu_memory_gb=options.gpu_memory_gb or planned_memory(before))
    domains = _joined(folder, before, datasets)
    results = {domain: plan_by(rules, domain.dataset, domain.folder.root, options, on, num_datasets=len(domains)) for domain in domains}
    configuration = _common_configuration({domain: result.plan for domain, result in results.items()})
    results = {domain: replace(result, plan=recommending(result.plan, configuration, domain)) for domain, result in results.items()}
    with planning_lock(folder, on):
        write_record(folder.planner, rules, "planner")
        write_domains(folder, configuration, [*domains, *(domain for domain in before if domain.is_added)])
    return {domain.name: result for domain, result in results.items()}


def _common_folder(work: Path | None, options: PlanOptions) -> WorkFolder:
    """The work folder of several datasets; raises :class:`InputError` for one that cannot be, and for what belongs to one dataset."""
    if work is None:
        raise InputError("Several datasets need a work folder of their own: name one with -w WORK.")
    if any((options.inherit_plan, options.channels, options.label_names, options.group_pattern, options.groups, options.no_groups)):
        raise InputError(
            "--inherit-plan, --channels, --labels, --group-pattern, --groups and --no-groups belong to one dataset; write names and "
            "folds into each dataset."
        )
    if options.hours is not None:
        raise InputError("plan --hours and --minutes are for one dataset; the network of several stays as the planner has it.")
    if (folder := WorkFolder(work)).plan.exists():
        raise InputError(f"{work}: holds the plan of a single dataset. Name another work folder for several of them.")
    return folder


def _joined(folder: WorkFolder, before: Sequence[Domain], datasets: Sequence[Path]) -> list[Domain]:
    """The domains that are trained together, and a new one for each other dataset."""
    added = [str(domain.name) for domain in before if domain.is_added and any(domain.is_at(dataset) for dataset in datasets)]
    if added:
        raise InputError(f"{folder.root}: {', '.join(added)} joined the trained network. Go on with train --add-domain.")
    fresh = [dataset.resolve() for dataset in datasets if not any(domain.is_at(dataset) for domain in before)]
    names = domain_names(fresh, [str(domain.name) for domain in before])
    new = [Domain(name=name, dataset=dataset, folder=domain_folder(folder, name)) for name, dataset in zip(names, fresh, strict=True)]
    return [*(domain for domain in before if not domain.is_added), *new]


def rules_of(folder: WorkFolder, planner: str | Path | None) -> Planner:
    """The named planner, or the numbers of the work folder; raises :class:`PlanError` where its network cannot be shared."""
    from medseg3d.networks.build import NETWORKS  # torch takes seconds

    if planner is None and folder.planner.exists():
        rules = read_record(folder.planner, Planner, "planner")
    else:
        rules = load_planner(planner or PLANNER)
    if NETWORKS[rules.network.family].sharing is None:
        raise PlanError(
            f"The planner {rules.name} plans {rules.network.family}, and only u2net serves several datasets. Use --planner universal."
        )
    return rules


def planned_memory(domains: Sequence[Domain]) -> float | None:
    """The GPU memory that the domains were planned for."""
    return domains[0].folder.read_plan().gpu_memory_gb if domains and domains[0].folder.plan.exists() else None


def _common_configuration(plans: Mapping[Domain, Plan]) -> str:
    lacking = [str(domain.name) for domain, made in plans.items() if "3d_fullres" not in made.configurations]
    if not lacking:
        return "3d_fullres"
    logger.warning("%s: single slices; all datasets are trained as 2d.", ", ".join(lacking))
    return "2d"


def recommending(made: Plan, configuration: str, domain: Domain) -> Plan:
    """The plan, written again with the common configuration recommended."""
    if configuration not in made.configurations:
        raise PlanError(
            f"{domain.folder.root}: the other datasets train {configuration}, which this one cannot: its cases are single slices."
        )
    changed = replace(made, recommended=configuration, recommended_reason="All datasets of the universal network train it.")
    write_record(domain.folder.plan, changed, "plan")
    return changed
