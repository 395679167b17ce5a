"""Runs of changed recipes in, tables of their paired differences out.

A difference is that of one case's Dice, the mean over its labels, with the same seed. Cases of one patient count as one. The 95 % interval
is that of the mean over datasets, by a bootstrap that draws the seeds and, within each dataset, the patients anew: each dataset counts the
same, however many cases it has.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
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


Differences = dict[str, dict[int, np.ndarray]]
"""By dataset and seed, a difference per patient."""


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
    return {
        "recipes runs": runs_table(runs),
        "recipes differences": differences_table(runs, bases),
        "recipes averaged": averaged_table(runs),
    }


def runs_table(runs: Sequence[Run]) -> str:
    """A row per training: the weights that it kept, and both kinds of which it kept the better."""
    place = {_key(run): run for run in runs}
    rows = []
    for run in sorted((run for run in runs if ":" not in run.change), key=lambda run: (run.dataset, run.budget, run.change, run.seed)):
        both = [place.get(_key(run, variant)) for variant in VARIANTS]
        dice = ["–" if other is None else f"{other.dice:.4f}" for other in both]
        halfway = ["–" if (value := run.halfway.get(variant)) is None else f"{value:.3f}" for variant in VARIANTS]
        kept = (f"{run.dice:.4f}", *dice, *halfway, f"{run.cpu_seconds / 60:.1f}")
        rows.append((run.dataset, run.change, run.budget, run.seed, run.steps, *kept))
    halfways = [f"half-way, {variant}" for variant in VARIANTS]
    return markdown_table(("dataset", "change", "budget", "seed", "steps", "Dice", *VARIANTS, *halfways, "CPU minutes"), rows)


def differences_table(runs: Sequence[Run], bases: Mapping[str, str | None]) -> str:
    """A row per change and budget: its difference to what it extends, in Dice points, over all datasets and in each.

    The last weights of both are compared as well: what was kept may have been a lucky epoch.
    """
    rows = []
    pairs = [(change, base) for change in _changes(runs) if (base := bases.get(change)) is not None]
    for change, base in (*pairs, *ALSO):
        for budget, found in _by_budget(runs, change, base):
            last = paired(runs, f"{change}:last", f"{base}:last", budget)
            rows.append((change, base, budget, *_counted(found), *_judged(found), " ".join(_judged(last)[:2]) if last else "–"))
    for change, budget, usual in _other_batches(runs):
        found = paired(runs, change, change, budget, usual)
        last = paired(runs, f"{change}:last", f"{change}:last", budget, usual)
        batch = budget.removeprefix(usual).strip()
        rows.append((f"{change}, {batch}", change, usual, *_counted(found), *_judged(found), " ".join(_judged(last)[:2])))
    header = ("change", "against", "budget", "points by dataset", "patients × seeds", "mean", "95 % interval", "verdict", "last weights")
    return markdown_table(header, rows)


def averaged_table(runs: Sequence[Run]) -> str:
    """A row per change and budget: the averaged weights against the last ones of the same training."""
    rows = []
    for change in _changes(runs):
        for budget, found in _by_budget(runs, f"{change}:averaged", f"{change}:last"):
            rows.append((change, budget, *_counted(found), *_judged(found)))
    return markdown_table(("change", "budget", "points by dataset", "patients × seeds", "mean", "95 % interval", "verdict"), rows)


ALSO = (("thin_ends_muon", "summed_muon"),)
"""Changes that differ from each other in one thing, though neither extends the other."""
VARIANTS = ("last", "averaged")
"""The two kinds of weights of a training, measured apart under the name of the change with a colon."""


def _key(run: Run, variant: str = "") -> tuple[str, str, int, str, str]:
    return run.dataset, f"{run.change}:{variant}" if variant else run.change, run.seed, run.budget, run.fold


def _changes(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.change for run in runs if ":" not in run.change))


def _other_batches(runs: Sequence[Run]) -> Iterator[tuple[str, str, str]]:
    """Changes that were trained with another batch than the usual one as well: name, budget, and the budget of the usual batch."""
    known = {(run.change, run.budget) for run in runs}
    for change, budget in sorted(known):
        usual = re.sub(r" batch \d+$", "", budget)
        if usual != budget and ":" not in change and (change, usual) in known:
            yield change, budget, usual


def _by_budget(runs: Sequence[Run], change: str, base: str) -> Iterator[tuple[str, Differences]]:
    """Budgets for which both are there."""
    for budget in sorted({run.budget for run in runs if run.change == change}):
        if found := paired(runs, change, base, budget):
            yield budget, found


def _counted(found: Differences) -> tuple[str, str]:
    """The difference in each dataset, and of how many patients and seeds it is."""
    means = {name: 100 * np.mean([np.mean(patients) for patients in seeds.values()]) for name, seeds in found.items()}
    count = "; ".join(f"{name} {len(next(iter(seeds.values())))} × {len(seeds)}" for name, seeds in found.items())
    return ", ".join(f"{name} {value:+.2f}" for name, value in means.items()), count


def _judged(found: Differences) -> tuple[str, str, str]:
    """Mean, interval and verdict."""
    mean, low, high = (100 * value for value in interval(found))
    verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
    return f"{mean:+.2f}", f"{low:+.2f} … {high:+.2f}", verdict


def paired(runs: Sequence[Run], change: str, base: str, budget: str, budget_of_base: str | None = None) -> Differences:
    """Of the seeds and cases that both have."""
    found: Differences = defaultdict(dict)
    place = {_key(run): run for run in runs}
    for run in runs:
        other = place.get((run.dataset, base, run.seed, budget_of_base or budget, run.fold))
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
