"""What a validation is made from, and whether it still is: with the dataset at hand, images included."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from medseg3d.data.dataset import Case
from medseg3d.data.digests import digest_of, stamp_of
from medseg3d.data.open_dataset import open_dataset
from medseg3d.errors import DamagedCaseError, DiskReadError, InputError, MedsegError, PlanMismatchError
from medseg3d.plan import Plan
from medseg3d.preprocessing.store import Store
from medseg3d.provenance import (
    METRICS,
    CaseMark,
    Origin,
    changed_cases,
    changed_first_stage,
    changes_since,
    mark_file,
    names_digest,
    read_origin,
    split_key,
    weights_digest,
    write_origin,
)
from medseg3d.training.state import LAST
from medseg3d.wording import listed
from medseg3d.work_folder import WorkFolder

logger = logging.getLogger(__name__)


def origin_of_validation(root: Path, folder: WorkFolder, plan: Plan, names: Sequence[str], fold: str, cases: Sequence[str]) -> Origin:
    """What the validation of configurations on the cases of a fold is made from, now."""
    raw = {name: case for name, case in raw_cases(root, plan).items() if name in cases}
    stages = dict.fromkeys(stage for name in names for stage in plan.stages_of(name))
    return Origin(
        weights={f"{name}/{fold}": weights_digest(folder.weights(name, fold)) for name in stages},
        folds={fold: names_digest(cases)},
        labels={name: mark_file(case.label, folder) for name, case in raw.items() if case.label is not None and case.label.is_file()},
        cases=marks_of(raw, _stored_marks(folder, plan, names[0], raw)),
    )


def _stored_marks(folder: WorkFolder, plan: Plan, configuration: str, cases: Iterable[str]) -> dict[str, CaseMark]:
    """As preprocessing saw the files, so that they need not be read again."""
    store = Store(folder.store(plan.configuration(configuration).data))
    marks = {}
    for name in {name for name in cases if name in store}:
        with suppress(DamagedCaseError):
            record = store.checked(name)
            marks[name] = CaseMark(digest=record.files_digest, stamp=record.stamp)
    return marks


def validation_age(root: Path, folder: WorkFolder, plan: Plan, names: Sequence[str], fold: str) -> str | None:
    """Why a validation does not belong to the weights, label maps and images of today; None where it does, or nothing can be said.

    A validation of older versions, which does not say what it was made from, belongs to weights that are older than it.
    """
    target = folder.validation("+".join(names), fold)
    origin = read_origin(target)
    if origin is None:
        files = [folder.weights(name, fold) for name in names]
        is_younger = all((target / METRICS).stat().st_mtime >= file.stat().st_mtime for file in files)
        return None if is_younger else "other weights"
    changes = changes_since(origin, folder)
    if changes is not None:
        return changes
    raw = raw_cases(root, plan)
    known = {name: case for name, case in raw.items() if name in origin.cases}
    changed = changed_cases(origin.cases, marks_of(known, origin.cases))
    return f"other images of {listed(changed, most=5)}" if changed else None


def raw_cases(root: Path, plan: Plan) -> dict[str, Case]:
    """The training cases of a dataset by name; none where it cannot be opened."""
    try:
        return {case.name: case for case in open_dataset(root, channels=plan.channels).training}
    except MedsegError as error:
        logger.info("Files of cases are not compared: %s", error)
        return {}


def marks_of(cases: Mapping[str, Case], known: Mapping[str, CaseMark]) -> dict[str, CaseMark]:
    """The cases as they are now; those whose stamp is that of a known mark are not read. Unreadable ones are left out."""
    marks = {}
    for name, case in cases.items():
        stamp, before = stamp_of(case), known.get(name)
        try:
            is_same = before is not None and bool(stamp) and before.stamp == stamp
            marks[name] = before if before is not None and is_same else CaseMark(digest=digest_of(case), stamp=stamp)
        except (InputError, DiskReadError, OSError) as error:
            logger.info("%s", error)
    return marks


def stale_second_stage(target: Path, keys: Sequence[str]) -> str:
    """What to say of a trained fold whose first stage has other weights (``CONFIGURATION/FOLD``) now."""
    stages = listed([f"{name} fold {fold}" for name, fold in map(split_key, keys)])
    return (
        f"{target}: was trained on label maps of other weights of {stages}, which was trained again since. Give --restart to train it anew."
    )


def check_first_stage(folder: WorkFolder, configuration: str, fold: str) -> None:
    """Raise :class:`PlanMismatchError` where a fold of a cascade was trained on label maps of other weights than its first stage has."""
    keys = changed_first_stage(folder, configuration, fold)
    if keys:
        raise PlanMismatchError(stale_second_stage(folder.fold(configuration, fold), keys))


def note_training_data(target: Path, digests: Mapping[str, str], *, is_restart: bool, weights: Mapping[str, str] | None = None) -> None:
    """Write down what a run is trained with, when it begins; later say what has changed since. ``digests`` are those of stored cases.

    ``weights`` are those of the first stage of a cascade. Raises :class:`PlanMismatchError` where a run was begun with others.
    """
    now = {name: CaseMark(digest=digest.partition("-")[0]) for name, digest in digests.items()}
    if is_restart or not (target / LAST).exists():
        write_origin(target, Origin(cases=now, weights=dict(weights or {})))
        return
    before = read_origin(target)
    others = [] if before is None else sorted(key for key, digest in before.weights.items() if (weights or {}).get(key) != digest)
    if others:
        raise PlanMismatchError(stale_second_stage(target, others))
    changed = changed_cases(before.cases, now) if before is not None else []
    if changed:
        logger.warning(
            "%s: was begun with other files of %s, which have changed since. To train it with those of today, give --restart; until then "
            "its weights go on being used.",
            target,
            listed(changed, most=5),
        )
