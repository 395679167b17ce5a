"""Runs of changed recipes in, tables of their paired differences out.

A difference is that of one case's Dice, the mean over its labels, with the same seed. Cases of one patient count as one. The 95 % interval
is that of the mean over datasets, by a bootstrap that draws the seeds and, within each dataset, the patients anew: each dataset counts the
same, however many cases it has.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from measuring import markdown_table

RESAMPLES = 10_000
PATIENTS = {"Hippocampus": lambda case: str((int(case.rsplit("_", 1)[1]) + 1) // 2), "ACDC": lambda case: re.sub(r"_E[DS]$", "", case)}
"""By dataset, the patient of a case where several cases are of one; see the README of the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training, measured: ``cases`` has the Dice of each validation case by label; NaN is null where neither side has the label."""

    dataset: str
    change: str
    seed: int
    budget: str
    fold: str
    dice: float
    cases: dict[str, dict[str, float]]
    steps: int
    best_epoch: int
    cpu_seconds: float
    halfway: dict[str, float | None] = field(default_factory=dict)
    """What training itself measured after half of its epochs: pseudo-Dice of the last weights, and of the averaged ones."""
    machine: dict[str, object] = field(default_factory=dict)


def read_runs(output: Path) -> list[Run]:
    """The newest of each kind; a line that a kill cut off is left out."""
    found: dict[tuple[str, ...], Run] = {}
    file = output / "recipes.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        run = Run(**{each.name: row[each.name] for each in fields(Run) if each.name in row})
        found[run.dataset, run.change, str(run.seed), run.budget, run.fold] = run
    return list(found.values())


def tables(runs: Sequence[Run], bases: Mapping[str, str | None]) -> dict[str, str]:
    """What each run reached, and what each change is worth, by the names of their places in the documentation."""
    return {"recipes runs": runs_table(runs), "recipes differences": differences_table(runs, bases)}


def runs_table(runs: Sequence[Run]) -> str:
    """A row per run."""
    rows = [
        (run.dataset, run.change, run.budget, run.seed, run.steps, f"{run.dice:.4f}", *_halfway(run), f"{run.cpu_seconds / 60:.1f}")
        for run in sorted(runs, key=lambda run: (run.dataset, run.budget, run.change, run.seed))
    ]
    return markdown_table(("dataset", "change", "budget", "seed", "steps", "Dice", "half-way", "half-way, averaged", "CPU minutes"), rows)


def _halfway(run: Run) -> tuple[str, str]:
    """Where the weights of a run are those that it kept."""
    values = () if ":" in run.change else (run.halfway.get("last"), run.halfway.get("averaged"))
    last, averaged = ("–" if value is None else f"{value:.3f}" for value in values or (None, None))
    return last, averaged


def differences_table(runs: Sequence[Run], bases: Mapping[str, str | None]) -> str:
    """A row per change and budget: its difference to what it extends, in Dice points, over all datasets and in each."""
    rows = []
    for change, base in _pairs(runs, bases):
        for budget in sorted({run.budget for run in runs if run.change == change}):
            found = paired(runs, change, base, budget)
            if found:
                mean, low, high = interval(found)
                means = {name: 100 * np.mean([np.mean(patients) for patients in seeds.values()]) for name, seeds in found.items()}
                each = ", ".join(f"{name} {value:+.2f}" for name, value in means.items())
                count = "; ".join(f"{name} {len(next(iter(seeds.values())))} × {len(seeds)}" for name, seeds in found.items())
                verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
                rows.append((change, base, budget, each, count, f"{100 * mean:+.2f}", f"{100 * low:+.2f} … {100 * high:+.2f}", verdict))
    return markdown_table(
        ("change", "against", "budget", "points by dataset", "patients × seeds", "mean", "95 % interval", "verdict"), rows
    )


def _pairs(runs: Sequence[Run], bases: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """What is compared with what: a change with what it extends, and of one run the averaged weights with the last ones.

    The last weights of both are compared as well: what is kept may be the averaged ones.
    """
    found: list[tuple[str, str]] = []
    for change in dict.fromkeys(run.change for run in runs):
        name, _, variant = change.partition(":")
        if (base := bases.get(name)) is not None:
            found.append((change, f"{base}:{variant}" if variant else base))
        if variant == "averaged":
            found.append((change, f"{name}:last"))
    return found


Differences = dict[str, dict[int, np.ndarray]]
"""By dataset and seed, a difference per patient."""


def paired(runs: Sequence[Run], change: str, base: str, budget: str) -> Differences:
    """Of the seeds and cases that both have."""
    found: Differences = defaultdict(dict)
    place = {(run.dataset, run.change, run.seed, run.budget, run.fold): run for run in runs}
    for run in runs:
        other = place.get((run.dataset, base, run.seed, budget, run.fold))
        if run.change == change and run.budget == budget and other is not None:
            patients: dict[str, list[float]] = defaultdict(list)
            for case in sorted(run.cases.keys() & other.cases.keys()):
                difference = _mean(run.cases[case]) - _mean(other.cases[case])
                patients[PATIENTS.get(run.dataset, str)(case)].append(difference)
            found[run.dataset][run.seed] = np.array([np.mean(values) for values in patients.values()])
    return dict(found)


def _mean(scores: Mapping[str, float]) -> float:
    return float(np.nanmean(list(scores.values())))


def interval(found: Differences, *, seed: int = 0) -> tuple[float, float, float]:
    """The mean over datasets, and the ends of its 95 % interval.

    >>> mean, low, high = interval({"a": {0: np.full(9, 0.01)}, "b": {0: np.full(3, 0.03)}})
    >>> round(mean, 4), round(low, 4), round(high, 4)
    (0.02, 0.02, 0.02)
    """
    rng = np.random.default_rng(seed)
    mean = float(np.mean([np.mean([np.mean(patients) for patients in seeds.values()]) for seeds in found.values()]))
    drawn = np.zeros(RESAMPLES)
    for seeds in found.values():
        values = np.stack(list(seeds.values()))  # (seed, patient)
        which = rng.integers(len(values), size=(RESAMPLES, len(values)))
        patients = rng.integers(values.shape[1], size=(RESAMPLES, values.shape[1]))
        drawn += values[which[:, :, None], patients[:, None, :]].mean((1, 2)) / len(found)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return mean, float(low), float(high)
