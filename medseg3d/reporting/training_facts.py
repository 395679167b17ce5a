"""What a fold was trained with, by ``run.json`` and ``training.json``, and which cases belong together, by ``splits.json``: for a paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg3d.errors import InputError
from medseg3d.plan import TrainingPlan
from medseg3d.records import from_plain, read_json


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFacts:
    """One trained fold. What no file says is None or empty; ``hours`` is the time budget that it was given."""

    configuration: str
    fold: str
    versions: Mapping[str, str] = field(default_factory=dict)
    system: str = ""
    cpu: str = ""
    device: str = ""
    processes: int = 1
    seed: int | None = None
    epochs: int | None = None
    iterations_per_epoch: int | None = None
    hours: float | None = None
    precision: str = ""
    recipe: TrainingPlan | None = None
    """The training numbers that it followed in the place of the plan's; None for the plan's."""
    batch_size: int | None = None
    learning_rate: float | None = None
    """That the user gave; None for that of the recipe, or of the plan."""
    frozen: tuple[str, ...] = ()
    """Patterns of the names of parameters that kept their weights."""
    init: str = ""
    init_from: str = ""
    """What the user named to begin from."""
    begun: str = ""
    command: str = ""


def training_facts(folder: Path) -> TrainingFacts:
    """The facts of a fold by its folder; files that are missing or cannot be read leave gaps."""
    run, state = _contents(folder / "run.json"), _contents(folder / "training.json")
    environments = run.get("environments")
    environment = environments[-1] if isinstance(environments, list) and environments and isinstance(environments[-1], dict) else {}
    versions = environment.get("versions")
    batch_sizes, tuning = state.get("batch_sizes"), state.get("tuning")
    tuned = tuning if isinstance(tuning, dict) else {}
    asked = run.get("options")
    options = asked if isinstance(asked, dict) else {}
    return TrainingFacts(
        configuration=folder.parent.name,
        fold=folder.name.removeprefix("fold_"),
        versions={str(name): str(version) for name, version in versions.items()} if isinstance(versions, dict) else {},
        system=_text(environment.get("system")),
        cpu=_text(environment.get("cpu")),
        device=_text(environment.get("device")),
        processes=_whole(environment.get("processes")) or 1,
        seed=_whole(run.get("seed")),
        epochs=_whole(state.get("epoch")),
        iterations_per_epoch=_whole(state.get("iterations_per_epoch")),
        hours=float(state["hours"]) if isinstance(state.get("hours"), int | float) else None,
        precision=_text(state.get("precision")),
        recipe=_recipe(state.get("recipe"), folder / "training.json"),
        batch_size=_whole(batch_sizes[0]) if isinstance(batch_sizes, list) and len(batch_sizes) == 1 else None,
        learning_rate=float(tuned["learning_rate"]) if isinstance(tuned.get("learning_rate"), int | float) else None,
        frozen=tuple(map(str, tuned.get("freeze") or ())),
        init=_text(state.get("init")),
        init_from=_text(options.get("init")),
        begun=_text(run.get("begun")),
        command=_text(run.get("command")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """What ``splits.json`` says: the patients of cases (those of the names where an older file is silent), how they were kept together,
    and the number of folds; ``members`` where all folds are the same, for so many networks with other seeds. ``sizes`` are the training and
    validation cases of each fold, ``left_out`` the cases that the user's own folds do not name."""

    patients: Mapping[str, str] = field(default_factory=dict)
    grouping: str = ""
    num_folds: int = 0
    members: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    left_out: tuple[str, ...] = ()


def partition_of(splits: Path) -> Partition:
    """The partition by its file; patients only where one of them has several images."""
    from medseg3d.data.grouping import recorded_patients

    stored = _contents(splits)
    folds = [fold for fold in stored.get("folds") or [] if isinstance(fold, dict)]
    return Partition(
        patients=recorded_patients(splits),
        grouping=_text(stored.get("grouping")),
        num_folds=len(folds),
        members=_whole(stored.get("members")) or 0,
        sizes=tuple((len(fold.get("train") or []), len(fold.get("validation") or [])) for fold in folds),
        left_out=tuple(map(str, stored.get("left_out") or [])),
    )


def _contents(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


def _recipe(stored: object, path: Path) -> TrainingPlan | None:
    if not isinstance(stored, dict):
        return None
    try:
        return from_plain(stored, TrainingPlan, str(path))
    except InputError:
        return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
