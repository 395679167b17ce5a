"""The scores of a report: an evaluation goes in, per label and metric the mean with its interval, spread and number comes out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg3d.evaluation.compare import Interval, intervals_of_columns
from medseg3d.evaluation.measures import METRICS
from medseg3d.reporting.charts import strip

if TYPE_CHECKING:
    from medseg3d.evaluation.metrics import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well one label of one case was found: metrics by name, None where a value is not defined.

    A label that neither side holds has no value at all. One that only the reference holds is a false negative, one that only
    the prediction holds a false positive: both have a Dice of 0 and no distance, so a mean distance alone would hide them.
    ``volume_ml`` is that of the reference, ``spacing_mm`` that of the image.
    """

    case: str
    label: str
    values: Mapping[str, float | None] = field(default_factory=dict)
    is_false_negative: bool = False
    is_false_positive: bool = False
    volume_ml: float | None = None
    spacing_mm: tuple[float, ...] = ()

    @property
    def dice(self) -> float | None:
        """The metric that cases are ordered by."""
        return self.values.get("dice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A metric of the tables: its name in ``metrics.json``, its title and its decimals."""

    name: str
    title: str
    digits: int


def scores_of(evaluation: Evaluation) -> tuple[Score, ...]:
    """The report's scores of an evaluation; labels that neither side holds stay, without values."""
    from medseg3d.evaluation.metrics import OWN_FIELDS

    return tuple(
        Score(
            case=case.case,
            label=label.name,
            values={name: label.value_of(name) for name in (*OWN_FIELDS, *label.further)},
            is_false_negative=label.presence == "only_reference",
            is_false_positive=label.presence == "only_prediction",
            volume_ml=label.volume_reference_ml or None,
            spacing_mm=case.spacing_mm,
        )
        for case in evaluation.cases
        for label in case.labels
    )


def one_per_case(scores: Iterable[Score]) -> list[Score]:
    """Scores of networks that were validated on the same cases as one for each case and label: the means of what is defined.

    A label counts as missed, or as found where it is not, where half of the networks say so or more.
    """
    found: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        found.setdefault((score.case, score.label), []).append(score)
    return [each[0] if len(each) == 1 else _mean_score(each) for each in found.values()]


def _mean_score(scores: Sequence[Score]) -> Score:
    values: dict[str, float | None] = {}
    for name in dict.fromkeys(name for score in scores for name in score.values):
        known = defined(score.values.get(name) for score in scores)
        values[name] = statistics.fmean(known) if known else None
    return replace(
        scores[0],
        values=values,
        is_false_negative=2 * sum(score.is_false_negative for score in scores) >= len(scores),
        is_false_positive=2 * sum(score.is_false_positive for score in scores) >= len(scores),
    )


def columns_of(scores: Iterable[Score]) -> tuple[Column, ...]:
    """The metrics that scores have, ours in the order of the terminal's table, then those that nobody here knows."""
    found = dict.fromkeys(name for score in scores for name in score.values)
    known = [name for name in METRICS if name in found]
    return (
        *(Column(name=name, title=METRICS[name].title, digits=METRICS[name].digits) for name in known),
        *(Column(name=name, title=name, digits=3) for name in found if name not in known),
    )


def label_rows(scores: Sequence[Score], patients: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Per label: each metric's :func:`summary` with the 95 % interval of its mean, false positives and negatives, and dots of its Dice."""
    scores = one_per_case(scores)
    columns = columns_of(scores)
    labels = list(dict.fromkeys(score.label for score in scores))
    intervals = {column.name: _intervals(scores, labels, column.name, patients)[0] for column in columns}
    rows = []
    for place, name in enumerate(labels):
        mine = [score for score in scores if score.label == name]
        dice = defined(score.dice for score in mine)
        rows.append(
            {
                "name": name,
                "num": len(mine),
                "values": {
                    column.name: summary(defined(score.values.get(column.name) for score in mine), intervals[column.name][place])
                    for column in columns
                },
                "num_false_negatives": sum(score.is_false_negative for score in mine),
                "num_false_positives": sum(score.is_false_positive for score in mine),
                "dots": strip(dice),
                "mean_at": strip([statistics.fmean(dice)])[0] if dice else None,
            }
        )
    return rows


def mean_of_labels(scores: Sequence[Score], patients: Mapping[str, str] | None = None) -> dict[str, Interval]:
    """By metric the mean of the labels' means, every label counting once; labels without any defined value do not count."""
    scores = one_per_case(scores)
    labels = list(dict.fromkeys(score.label for score in scores))
    return {column.name: _intervals(scores, labels, column.name, patients)[1] for column in columns_of(scores)}


def _intervals(
    scores: Sequence[Score], labels: Sequence[str], metric: str, patients: Mapping[str, str] | None
) -> tuple[tuple[Interval, ...], Interval]:
    cases = list(dict.fromkeys(score.case for score in scores))
    rows, columns = ({name: place for place, name in enumerate(names)} for names in (cases, labels))
    table = np.full((len(cases), len(labels)), np.nan)
    for score in scores:
        value = score.values.get(metric)
        if value is not None and math.isfinite(value):
            table[rows[score.case], columns[score.label]] = value
    groups = [(patients or {}).get(case, f"case {case}") for case in cases]
    return intervals_of_columns(table, groups=groups)


def summary(values: Sequence[float], interval: Interval | None = None) -> dict[str, Any]:
    """Mean, standard deviation (of a sample, None below two values), smallest, median, largest, count, and the mean's interval."""
    ends = {"from": interval.low if interval else None, "to": interval.high if interval else None}
    if not values:
        return {"mean": None, "std": None, "low": None, "median": None, "high": None, "num": 0, "from": None, "to": None}
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "low": min(values),
        "median": statistics.median(values),
        "high": max(values),
        "num": len(values),
        **ends,
    }


def defined(values: Any) -> list[float]:
    """The finite numbers among values."""
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
