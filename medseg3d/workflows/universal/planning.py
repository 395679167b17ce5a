"""Plan and preprocess each dataset of a universal network, in a work folder of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medseg3d.errors import InputError, PlanError
from medseg3d.events import Listener, silent
from medseg3d.networks.build import NETWORKS
from medseg3d.options import PlanOptions, PreprocessOptions
from medseg3d.plan import Plan
from medseg3d.planning import Planner, load_planner
from medseg3d.records import read_record, write_record
from medseg3d.universal import Universal, domain_folder, domain_names, is_universal, read_universal, write_universal
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.plan import PlanResult, plan_by
from medseg3d.workflows.preprocess import PreprocessResult, preprocess

logger = logging.getLogger(__name__)
PLANNER = "universal"


def plan_universal(datasets: Sequence[Path], work: Path, options: PlanOptions, on: Listener = silent) -> dict[str, PlanResult]:
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
    rules = rules_of(folder, options.planner)
    if options.gpu_memory_gb is None and before is not None:
        options = replace(options, gpu_memory_gb=planned_memory(folder, before))
    paths = {name: Path(before.domains[name]) for name in before.joint} if before else {}
    added = [before.domain_at(dataset) for dataset in datasets if before and before.domain_at(dataset) in before.added] if before else []
    if added:
        raise InputError(f"{work}: {', '.join(map(str, added))} joined the trained network. Go on with train --add-domain.")
    known = {path.resolve() for path in paths.values()}
    fresh = [dataset for dataset in datasets if dataset.resolve() not in known]
    paths |= dict(zip(domain_names(fresh, tuple(before.domains) if before else ()), (d.resolve() for d in fresh), strict=True))
    results = {
        name: plan_by(rules, dataset, domain_folder(folder, name).root, options, on, num_datasets=len(paths))
        for name, dataset in paths.items()
    }
    configuration = _common_configuration({name: result.plan for name, result in results.items()})
    for name, result in results.items():
        results[name] = replace(result, plan=recommending(result.plan, configuration, domain_folder(folder, name)))
    kept = {name: before.domains[name] for name in before.added} if before else {}
    write_record(folder.planner, rules, "planner")
    domains = {name: str(path) for name, path in paths.items()} | kept
    write_universal(folder, Universal(configuration=configuration, domains=domains, added=tuple(kept)))
    return results


def preprocess_universal(work: Path, options: PreprocessOptions, on: Listener = silent) -> dict[str, PreprocessResult]:
    """Preprocess every domain for the configuration that they train; the results by domain."""
    folder = WorkFolder(work)
    universal = read_universal(folder)
    options = replace(options, configurations=universal.configuration)
    return {
        name: preprocess(Path(dataset), domain_folder(folder, name).root, options, on)
        for name, dataset in universal.domains.items()
        if name in universal.joint
    }


def domains_of(work: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, dataset and work folder of every domain."""
    universal = read_universal(WorkFolder(work))
    for name, dataset in universal.domains.items():
        yield name, Path(dataset), domain_folder(WorkFolder(work), name).root


def rules_of(folder: WorkFolder, planner: str | None) -> Planner:
    """The named planner, or the numbers of the work folder; raises :class:`PlanError` where its network cannot be shared."""
    if planner is None and folder.planner.exists():
        rules = read_record(folder.planner, Planner, "planner")
    else:
        rules = load_planner(planner or PLANNER)
    if NETWORKS[rules.network.family].sharing is None:
        raise PlanError(
            f"The planner {rules.name} plans {rules.network.family}, and only u2net serves several datasets. Use --planner universal."
        )
    return rules


def planned_memory(folder: WorkFolder, universal: Universal) -> float | None:
    """The GPU memory that the domains were planned for."""
    home = domain_folder(folder, universal.joint[0])
    return home.read_plan().gpu_memory_gb if home.plan.exists() else None


def _common_configuration(plans: dict[str, Plan]) -> str:
    lacking = [name for name, made in plans.items() if "3d_fullres" not in made.configurations]
    if not lacking:
        return "3d_fullres"
    logger.warning("%s: single slices; all datasets are trained as 2d.", ", ".join(lacking))
    return "2d"


def recommending(made: Plan, configuration: str, home: WorkFolder) -> Plan:
    """The plan, written again with the common configuration recommended."""
    if configuration not in made.configurations:
        raise PlanError(f"{home.root}: the other datasets train {configuration}, which this one cannot: its cases are single slices.")
    changed = replace(made, recommended=configuration, recommended_reason="All datasets of the universal network train it.")
    write_record(home.plan, changed, "plan")
    return changed
