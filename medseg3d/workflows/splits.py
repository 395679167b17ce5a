"""What a fold is trained on: its cases by the splits, and those of them in the store; the digest that tells when that changes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence

from medseg3d.data.dataset import Split
from medseg3d.domain import Domain
from medseg3d.errors import DamagedCaseError, InputError
from medseg3d.execution import memory_budget
from medseg3d.plan import Configuration, Plan
from medseg3d.preprocessing.boxed_case import BoxedCase
from medseg3d.preprocessing.store import Store, StoredCase
from medseg3d.records import to_plain
from medseg3d.training.folds import Splits, read_folds
from medseg3d.wording import counted
from medseg3d.work_folder import WorkFolder

logger = logging.getLogger(__name__)
ALL_CASES = "all"
"""The fold that trains on every case."""


def read_split(folder: WorkFolder, fold: str) -> Split:
    """The cases of a fold; ``all`` trains on every case and validates on none."""
    splits = _splits(folder)
    if fold == ALL_CASES:
        return Split(train=tuple(sorted({n for s in splits for n in (*s.train, *s.validation)})), validation=())
    _check_among(fold, len(splits))
    return splits[int(fold)]


def num_folds(folder: WorkFolder) -> int:
    """How many a work folder plans."""
    return len(_splits(folder))


def own_fold(domain: Domain, fold: str) -> str:
    """The fold with which a domain takes part in a fold of the network that it shares: modulo its number of folds."""
    if domain.name is None or not fold.isdigit():
        return fold
    return str(int(fold) % len(_splits(domain.folder)))


def trainings(plan: Plan, names: Sequence[str], folds: Sequence[str] | None, every: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Each configuration with each fold, those of ``every`` where none are named.

    The earlier stages of a cascade come before it, with all their folds: it learns from label maps of cases that they have not seen.
    """
    wanted: list[tuple[str, str]] = []
    for name in names:
        wanted += [(stage, fold) for stage in reversed(plan.stages_of(name)[1:]) for fold in every]
        wanted += [(name, fold) for fold in folds or every]
    return tuple(dict.fromkeys(wanted))


def check_fold(domains: Sequence[Domain], fold: str) -> None:
    """Raise :class:`InputError` for a fold that no domain has."""
    _check_among(fold, len(all_folds(domains)))


def all_folds(domains: Sequence[Domain]) -> tuple[str, ...]:
    """The numbers of the folds of the domain that has most."""
    return tuple(map(str, range(max(len(_splits(domain.folder)) for domain in domains))))


def seed_of(domains: Sequence[Domain], fold: str, seed: int) -> int:
    """The seed of a fold: the user's, and another one for each of the networks that share the cases of one fold."""
    return seed + member_offset([domain.folder for domain in domains], fold)


def member_offset(folders: Sequence[WorkFolder], fold: str) -> int:
    """What is added to the user's seed for a fold: its number where networks share the cases of one fold, otherwise nothing."""
    is_member = fold.isdigit() and any(_folds(folder).members for folder in folders)
    return int(fold) if is_member else 0


def check_cascade(domain: Domain, configuration: Configuration) -> None:
    """Raise :class:`InputError` for a later stage of a cascade where all networks share the cases of one fold."""
    if configuration.previous_stage is not None and _folds(domain.folder).members:
        raise InputError(
            f"{configuration.name} learns from label maps that {configuration.previous_stage} makes of cases which it has not seen: that "
            f"takes folds, and {domain.folder.splits} was planned with --members. Delete it and plan again, or name a configuration of one "
            "stage, such as -c 3d_fullres."
        )


def _splits(folder: WorkFolder) -> tuple[Split, ...]:
    return _folds(folder).folds


def _folds(folder: WorkFolder) -> Splits:
    if not folder.splits.exists():
        raise InputError(f"{folder.root}: there is no splits.json here. Run medseg3d plan first.")
    return read_folds(folder.splits)


def _check_among(fold: str, num_folds: int) -> None:
    if fold != ALL_CASES and (not fold.isdigit() or int(fold) >= num_folds):
        raise InputError(f"There is no fold {fold}; the folds are 0 to {num_folds - 1}, and all.")


def plan_digest(plan: Plan, configuration: Configuration, split: Split) -> str:
    """Changes when anything changes that makes another network or other data of a configuration: plan, labels, axes, the fold's cases.

    What plans did not have once is left out where it has the value that all had then: folds that were trained before stay valid. Where a
    part comes from is left out as well: its name says what it is; and whether short runs follow their budget.
    """
    described = to_plain(configuration)
    described["network"].pop("provider", None)
    described["training"].pop("providers", None)
    described["training"].pop("follows_budget", None)  # a run notes what it followed
    if not configuration.training.unit_gradients:
        del described["training"]["unit_gradients"]
    parts = {
        "configuration": described,
        "labels": to_plain(plan.labels),
        "axis_order": plan.axis_order,
        "split": to_plain(split),
    }
    if not plan.frame.is_canonical:
        parts["frame"] = to_plain(plan.frame)
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def stored_cases(
    folder: WorkFolder, configuration: Configuration, split: Split, boxes: Mapping[str, Sequence[tuple[int, int]]] | None = None
) -> tuple[list[StoredCase], list[StoredCase]]:
    """The preprocessed training and validation cases of a fold, in memory where they fit; raises :class:`InputError` for none.

    With ``boxes`` on the stored grid they are what lies in those.
    """
    store = Store(folder.store(configuration.data))
    available = {name for name in (*split.train, *split.validation) if name in store}
    missing = [name for name in (*split.train, *split.validation) if name not in available]
    usable = [name for name in split.train if name in available]
    if missing:
        some = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        message = f"{counted(len(missing), 'case')} not preprocessed for {configuration.name} ({some})"
        if not usable:
            raise InputError(f"{folder.root}: {message}. Run medseg3d preprocess -c {configuration.name} first.")
        logger.warning("%s; training without them.", message)
    training, validation = (
        _undamaged(store, usable),
        _undamaged(store, [name for name in split.validation if name in available]),
    )
    if not training:
        raise InputError(f"{folder.root}: every training case is damaged. Run medseg3d preprocess -c {configuration.name} first.")
    if boxes is not None:
        training = [BoxedCase(case, boxes[case.name]) for case in training]
        validation = [BoxedCase(case, boxes[case.name]) for case in validation]
    if sum(case.nbytes for case in (*training, *validation)) > memory_budget(None):
        return training, validation
    return [case.load() for case in training], [case.load() for case in validation]


def _undamaged(store: Store, names: Sequence[str]) -> list[StoredCase]:
    cases = []
    for name in names:
        try:
            cases.append(store.read(name))
        except DamagedCaseError as error:
            logger.error("%s Until then the training goes on without it.", error)
    return cases
