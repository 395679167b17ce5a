"""Dice per case of several networks on the same validation cases → who is better, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from medseg3d.evaluation.compare import Interval, groups_of, interval_of, paired_difference
from medseg3d.wording import counted

MIN_CASES = 5
"""With fewer cases an interval says little, and no verdict is given."""
Verdict = Literal["baseline", "better", "worse", "no clear difference", "too few cases"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A network after its training: what it is, what it took, and its Dice.

    ``dice`` is the mean foreground Dice per case, None where a case is empty in reference and prediction; ``labels`` the mean Dice per
    label. ``seconds_per_case`` is that of prediction, mirrored where its validation says so, None where it was not measured;
    ``training_seconds`` by the clock on the wall. ``weights`` is the digest of the weights that all of it belongs to.
    """

    name: str
    preset: str
    configuration: str
    family: str
    parameters: int
    multiply_adds: int
    patch: tuple[int, ...]
    batch: int
    steps: int
    training_seconds: float
    seconds_per_case: float | None
    dice: dict[str, float | None]
    labels: dict[str, float | None]
    weights: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network: its mean over the common cases, and its paired difference to the baseline's (None for the baseline)."""

    trained: Trained
    dice: Interval
    difference: Interval | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several presets on the same cases of one fold, in the order in which they were named; the first is the baseline.

    ``problems`` says by name why a preset has no row. ``length`` is how long each was trained, in words.
    """

    dataset: str
    fold: str
    length: str
    cases: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    problems: dict[str, str] = field(default_factory=dict)

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Titles, and a row of texts per preset, for people."""
        baseline = self.rows[0].trained.name if self.rows else ""
        header = (
            "preset",
            "Dice",
            "95 % interval",
            f"− {baseline}",
            "95 % interval",
            "verdict",
            "parameters",
            "steps",
            "training",
            "s per case",
        )
        return header, [_cells(row) for row in self.rows]


def compared(
    trained: Sequence[Trained],
    *,
    dataset: str,
    fold: str,
    length: str,
    problems: Mapping[str, str] | None = None,
    seed: int = 0,
    patients: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare by the mean foreground Dice over the cases that all have.

    A case whose reference is empty counts as 1 for those that predict nothing there; one that is empty for all is left out. Intervals
    resample whole ``patients`` (by case).
    """
    cases = _common_cases(trained)
    groups = groups_of(cases, patients or {})
    values = [_values(each, cases) for each in trained]
    rows = []
    for number, each in enumerate(trained):
        difference = paired_difference(values[number], values[0], seed=seed, groups=groups) if number and cases else None
        rows.append(
            Row(
                trained=each,
                dice=interval_of(values[number], seed=seed, groups=groups),
                difference=difference,
                verdict=verdict_of(difference, num_patients=len(set(groups))) if number else "baseline",
            )
        )
    return Comparison(
        dataset=dataset,
        fold=fold,
        length=length,
        cases=cases,
        rows=tuple(rows),
        notes=tuple(_notes(trained, cases)),
        problems=dict(problems or {}),
    )


def _common_cases(trained: Sequence[Trained]) -> tuple[str, ...]:
    if not trained:
        return ()
    common = set.intersection(*(set(each.dice) for each in trained))
    return tuple(sorted(case for case in common if any(each.dice[case] is not None for each in trained)))


def _values(trained: Trained, cases: Sequence[str]) -> list[float]:
    return [1.0 if (value := trained.dice[case]) is None else value for case in cases]


def verdict_of(difference: Interval | None, *, num_patients: int) -> Verdict:
    """What a paired difference over so many patients (or cases, where each is one) says of the second network."""
    if difference is None or difference.low is None or difference.high is None or num_patients < MIN_CASES:
        return "too few cases"
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "no clear difference"


def _notes(trained: Sequence[Trained], cases: Sequence[str]) -> list[str]:
    notes = []
    most = max((len(each.dice) for each in trained), default=0)
    if len(cases) < most:
        notes.append(f"Compared on {counted(len(cases), 'case')} that all have; {most} are validated.")
    if len(trained) > 2:
        notes.append(
            f"{len(trained) - 1} differences are shown: of twenty between equally good networks, one interval leaves 0 out by chance."
        )
    notes.append("One fold and one seed: another seed moves the Dice of a network too, by what only another training can tell.")
    if len({each.steps for each in trained}) > 1:
        notes.append(
            "Trained for equal times, not for equal steps: other work on the machine counts against those that were trained beside it."
        )
    return notes


def _cells(row: Row) -> tuple[str, ...]:
    trained, difference = row.trained, row.difference
    return (
        trained.name,
        _number(row.dice.mean),
        _interval(row.dice),
        "" if difference is None else _number(difference.mean, signed=True),
        "" if difference is None else _interval(difference, signed=True),
        row.verdict,
        f"{trained.parameters / 1e6:.2f} M",
        str(trained.steps),
        f"{trained.training_seconds / 60:.1f} min",
        "–" if trained.seconds_per_case is None else f"{trained.seconds_per_case:.2f}",
    )


def _number(value: float | None, *, signed: bool = False) -> str:
    return "–" if value is None else f"{value:+.4f}" if signed else f"{value:.4f}"


def _interval(interval: Interval, *, signed: bool = False) -> str:
    if interval.low is None or interval.high is None:
        return "–"
    return f"{_number(interval.low, signed=signed)} to {_number(interval.high, signed=signed)}"
