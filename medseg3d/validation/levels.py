"""Which level of a network predicts: the validations of its folds go in, the smallest level that loses little comes out.

Only networks that can be pruned after training have levels (:mod:`medseg3d.networks.levels`). Each validation predicts its cases with
all of them in one pass, and leaves ``levels.json`` and the label maps and metrics of each level below the deepest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg3d.evaluation.compare import Interval, groups_of, paired_difference
from medseg3d.records import Checked
from medseg3d.wording import counted

LEVELS = "levels.json"
"""Beside the metrics of a validation."""
TOLERANCE = 0.005
"""Mean Dice that a smaller level may lose: half a point, less than what two trainings of one network differ by."""
MIN_CASES = 5
"""With fewer cases the deepest level stays: the choice would hang on one of them."""
MIRRORED, PLAIN = "mirrored", "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelScore:
    """One level in the validation of a fold: the mean foreground Dice per case by way (``mirrored``, ``plain``), None where a case is
    empty in reference and prediction; and how long a window takes one network."""

    level: int
    dice: dict[str, dict[str, float | None]]
    seconds_per_window: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldLevels(Checked):
    """``levels.json`` of a validation, lowest level first; ``device`` and ``precision`` are those of the seconds."""

    scores: tuple[LevelScore, ...]
    device: str
    precision: str

    def problems(self) -> Iterator[str]:
        """Levels rise, and there are several."""
        found = [score.level for score in self.scores]
        if len(found) < 2 or found != sorted(set(found)):
            yield f"levels are {found}, expected several that rise"


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelRow:
    """A level over all validated cases; ``loss`` is the Dice of the best level minus its own, case by case (None for that one)."""

    level: int
    dice: float | None
    loss: Interval | None
    seconds_per_window: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelChoice(Checked):
    """The level that predicts, of those in ``rows``, lowest first; the last one is the whole network.

    ``tolerance`` is the mean Dice that it was allowed to lose against the best one. The seconds were measured on ``device``.
    """

    level: int
    rows: tuple[LevelRow, ...]
    tolerance: float
    device: str
    reason: str

    def problems(self) -> Iterator[str]:
        """The level is one of those."""
        known = [row.level for row in self.rows]
        if self.level not in known:
            yield f"level is {self.level}, expected one of {known}"

    @property
    def deepest(self) -> int:
        """The whole network."""
        return self.rows[-1].level

    @property
    def speed_up(self) -> float:
        """How many times as fast as the whole network a window is."""
        seconds = {row.level: row.seconds_per_window for row in self.rows}
        return seconds[self.deepest] / max(seconds[self.level], 1e-12)

    def table(self) -> str:
        """All levels, as a part of a sentence.

        >>> row = LevelRow(level=1, dice=0.8, loss=None, seconds_per_window=0.02)
        >>> LevelChoice(level=1, rows=(row,), tolerance=0.005, device="cpu", reason="").table()
        'L1 Dice 0.8000, 0.02 s per window'
        """
        return "; ".join(
            f"L{row.level} Dice {'–' if row.dice is None else f'{row.dice:.4f}'}, {row.seconds_per_window:.3g} s per window"
            for row in self.rows
        )


def level_folder(validation: Path, level: int, way: str) -> Path:
    """Label maps and metrics of a level below the deepest, whose own lie in the validation folder itself."""
    return validation / "levels" / f"{level}_{way}"


def choose_level(
    folds: Sequence[FoldLevels | None], *, is_mirrored: bool, seed: int = 0, patients: Mapping[str, str] | None = None
) -> LevelChoice | None:
    """The smallest level whose mean Dice over all cases is within ``TOLERANCE`` of the best one's; None where a fold has no levels.

    A case that is empty in reference and prediction counts as 1, as in the selection. Below ``MIN_CASES`` cases the deepest stays.
    Where the folds were not validated the wanted way (mirrored or not), the other way counts. Intervals resample whole ``patients`` (by
    case).
    """
    known = [fold for fold in folds if fold is not None]
    if not known or len(known) < len(folds) or len({tuple(score.level for score in fold.scores) for fold in known}) > 1:
        return None
    way = MIRRORED if is_mirrored else PLAIN
    values = [_values([fold.scores[place] for fold in known], way) for place in range(len(known[0].scores))]
    groups = groups_of(_cases([fold.scores[0] for fold in known], way), patients or {})
    num_cases = len(values[0])
    if any(len(each) != num_cases for each in values):
        return None
    means = [sum(each) / num_cases if num_cases else None for each in values]
    best = max(range(len(means)), key=lambda place: (means[place] or 0.0, -place))
    rows = tuple(
        LevelRow(
            level=score.level,
            dice=means[place],
            loss=None if place == best else paired_difference(values[best], values[place], seed=seed, groups=groups),
            seconds_per_window=sum(fold.scores[place].seconds_per_window for fold in known) / len(known),
        )
        for place, score in enumerate(known[0].scores)
    )
    chosen = next(row for row in rows if row.dice is None or row.dice >= (rows[best].dice or 0.0) - TOLERANCE)
    if num_cases < MIN_CASES:
        reason = f"{counted(num_cases, 'case')} are validated, and {MIN_CASES} are needed to leave a level out"
        chosen = rows[-1]
    elif chosen is rows[-1]:
        reason = f"no smaller level is within {TOLERANCE:g} mean Dice of the best one"
    else:
        lost = 0.0 if chosen.loss is None or chosen.loss.mean is None else chosen.loss.mean
        times = rows[-1].seconds_per_window / max(chosen.seconds_per_window, 1e-12)
        deepest = f"{times:.1f} times as fast as L{rows[-1].level}"
        reason = f"it loses {lost:.4f} mean Dice to the best level on {counted(num_cases, 'case')}, and is {deepest}"
    return LevelChoice(level=chosen.level, rows=rows, tolerance=TOLERANCE, device=known[0].device, reason=reason)


def _values(scores: Sequence[LevelScore], way: str) -> list[float]:
    """The Dice of a level over the cases of all folds, in one order for all levels."""
    return [1.0 if value is None else value for fold in _dice(scores, way) for _, value in sorted(fold.items())]


def _cases(scores: Sequence[LevelScore], way: str) -> list[str]:
    """Whose they are."""
    return [case for fold in _dice(scores, way) for case in sorted(fold)]


def _dice(scores: Sequence[LevelScore], way: str) -> list[Mapping[str, float | None]]:
    return [score.dice.get(way) or next(iter(score.dice.values()), {}) for score in scores]
