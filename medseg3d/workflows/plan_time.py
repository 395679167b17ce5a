"""The rules of a plan for a training of so many hours on the machine at hand: those that there are go in, and come out with what they are
multiplied by."""

from __future__ import annotations

import logging
from dataclasses import replace

from medseg3d.data.dataset import Dataset
from medseg3d.options import RunOptions
from medseg3d.planning import DatasetSummary, Planner
from medseg3d.planning.fit_to_time import fitted_to_time
from medseg3d.planning.fitting import in_words
from medseg3d.planning.memory import FEATURE_MAPS
from medseg3d.planning.planner import Fitted
from medseg3d.records import read_record
from medseg3d.work_folder import WorkFolder, fold_names
from medseg3d.workflows.choose_folds import count_folds
from medseg3d.workflows.estimate import measured_speed

logger = logging.getLogger(__name__)


def rules_for_time(
    rules: Planner,
    folder: WorkFolder | None,
    summary: DatasetSummary,
    *,
    hours: float | None,
    gpu_memory_gb: float | None,
    device: str = "auto",
) -> Planner:
    """The rules, fitted to the hours of one training.

    What was fitted before by the same rules in a work ``folder`` stays where the hours are the same, for the same kind of device, or not
    said, and where a network is trained already: a training that is prolonged goes on with its network.
    """
    kept, is_trained = (None, False) if folder is None else (_kept(rules, folder), folder.has_trainings)
    if kept is not None and kept.fitted is not None and (is_trained or hours is None or _is_for(kept.fitted, hours, device)):
        if hours not in {None, kept.fitted.hours}:
            logger.info(
                "The network stays as it was planned for %.3g minutes, as it is trained. Another work folder (-w) plans it for %.3g.",
                kept.fitted.hours * 60,
                hours * 60,
            )
        return kept
    if hours is None or not rules.time.least_steps or is_trained:
        return rules
    fitted = fitted_to_time(replace(rules, fitted=None), summary, hours=hours, speed=measured_speed(device), gpu_memory_gb=gpu_memory_gb)
    if fitted.fitted is not None and (changed := ", ".join(in_words(fitted.fitted))):
        logger.info(
            "Planned for trainings of %.3g minutes on %s: %s, so that about %d steps fit. This work folder keeps it until plan is given "
            "another time.",
            hours * 60,
            fitted.fitted.device,
            changed,
            fitted.fitted.steps,
        )
    return fitted


def _is_for(fitted: Fitted, hours: float, device: str) -> bool:
    """Whether it was decided for the same hours on a device of the same kind."""
    from medseg3d.devices import choose_device

    return fitted.hours == hours and fitted.device.partition(":")[0] == choose_device(device).device.type


def tell_of_unplanned_time(folder: WorkFolder, hours: float) -> None:
    """Say to whoever trains for some hours a network that was planned without a time that there may be a better one."""
    if not (folder.planner.exists() and folder.plan.exists()) or folder.read_plan().inherits:
        return
    rules = read_record(folder.planner, Planner, "planner")
    if rules.fitted is None and rules.time.least_steps and rules.network.family in FEATURE_MAPS:
        logger.info(
            "The network was planned without a time. plan --minutes %.3g, where nothing is trained yet, gives one that makes enough steps "
            "in it on this machine.",
            hours * 60,
        )


def hours_of_one(options: RunOptions, dataset: Dataset, folder: WorkFolder) -> float | None:
    """The share of one training in the hours of a run."""
    if options.hours is None:
        return None
    names, folds = options.configurations, fold_names(options.folds)
    num_folds = len(folds) if folds else options.members or count_folds(dataset, folder.splits)
    return options.hours / (num_folds * (1 if names is None or isinstance(names, str) else max(1, len(names))))


def _kept(rules: Planner, folder: WorkFolder) -> Planner | None:
    """The rules in the work folder where they are the same ones, but for what was fitted.

    Where a network is trained, but for how it was fitted as well, which may have been other rules then.
    """
    if not folder.planner.exists():
        return None
    kept = read_record(folder.planner, Planner, "planner")
    asked = replace(rules, time=kept.time) if folder.has_trainings else rules
    return kept if replace(kept, fitted=None) == replace(asked, fitted=None) else None
