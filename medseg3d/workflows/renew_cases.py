"""Before training: preprocessed cases that are damaged, or whose files have changed since, are made again."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg3d.data.dataset import Case, Dataset
from medseg3d.data.digests import digest_of, stamp_of
from medseg3d.data.open_dataset import open_dataset
from medseg3d.errors import CaseFailure, DamagedCaseError, DiskReadError, InputError, MedsegError
from medseg3d.events import Event, Listener, silent
from medseg3d.plan import Configuration, Plan
from medseg3d.preprocessing.preprocess_case import data_digest
from medseg3d.preprocessing.store import Store
from medseg3d.wording import counted
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.preprocess import preprocess_cases, warn_of_other_labels

logger = logging.getLogger(__name__)
SILENT_SECONDS = 3.0
"""So long nothing is said of the check, which reads the store once: a large one on a slow disk takes minutes."""


def renew_cases(
    root: Path, folder: WorkFolder, plan: Plan, configuration: Configuration, names: Sequence[str], *, on: Listener = silent
) -> tuple[CaseFailure, ...]:
    """Check the named cases of a store, make again what is not as it should be, and give those for which that failed.

    Cases that are not in the store are left out. Where the dataset is not there, nothing can be made again, and only damage is found.
    """
    store = Store(folder.store(configuration.data))
    dataset, raw = _raw_cases(root, plan)
    if dataset is not None:
        warn_of_other_labels(dataset, plan)
    part = data_digest(plan, configuration)
    stored = set(store.names())
    checked = sorted(stored.intersection(names))
    outdated: dict[str, str] = {}
    began = time.monotonic()
    for number, name in enumerate(checked, 1):
        why = _why_outdated(store, name, raw.get(name), part)
        if why is not None:
            outdated[name] = why
        if time.monotonic() - began > SILENT_SECONDS:
            on(Event(stage="check stored cases", done=number, total=len(checked)))
    lost = [name for name in outdated if name not in raw]
    failures = [
        CaseFailure(case=name, stage="train", reason=f"{outdated[name]} Its images are not there to make it again.") for name in lost
    ]
    again = {name: why for name, why in outdated.items() if name not in lost}
    if again and dataset is not None:
        on(Event(stage="preprocess", message=f"Preprocessing {counted(len(again), 'case')} again:"))
        for why in again.values():
            on(Event(stage="preprocess", message=f"  {why}"))
        cases = replace(dataset, training=tuple(raw[name] for name in again))
        for done in preprocess_cases(cases, plan, [configuration], folder):
            if done.failure is not None:
                failures.append(done.failure)
    return tuple(failures)


def _raw_cases(root: Path, plan: Plan) -> tuple[Dataset | None, dict[str, Case]]:
    """The dataset where it can be opened: on a machine that only trains it need not be there."""
    try:
        dataset = open_dataset(root, channels=plan.channels)
    except MedsegError as error:
        logger.info("Cases are not compared with their images: %s", error)
        return None, {}
    return dataset, {case.name: case for case in dataset.training}


def _why_outdated(store: Store, name: str, raw: Case | None, part: str) -> str | None:
    """What is wrong with a stored case, in a sentence; None where it may be used."""
    try:
        record = store.checked(name)
    except DamagedCaseError as error:
        return str(error).partition(" Run medseg3d")[0]
    if not record.digest.endswith(f"-{part}"):
        return f"{name}: was preprocessed by another plan." if raw is not None else None
    stamp = "" if raw is None else stamp_of(raw)
    if raw is None or not stamp or record.stamp == stamp:
        return None
    try:
        files = digest_of(raw)
    except (InputError, DiskReadError, OSError) as error:  # reading it will say what is wrong with it
        logger.info("%s", error)
        return None
    if record.digest != f"{files}-{part}":
        return f"{name}: its files have changed since it was preprocessed."
    store.set_stamp(name, stamp)
    return None
