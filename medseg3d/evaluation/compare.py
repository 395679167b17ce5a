"""Values per case → a mean with its confidence, and whether one model's values are above another's on the same cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
"""Enough that the ends of a 95 % interval move by less than a tenth of its width from seed to seed."""
CONFIDENCE = 0.95
MIN_VALUES = 2
"""A bootstrap of one value has no width, which would look like certainty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Mean and median of ``n`` values, and the 95 % percentile bootstrap interval of the mean (None below two values)."""

    mean: float | None
    median: float | None
    low: float | None
    high: float | None
    n: int


def interval_of(values: Sequence[float], *, seed: int = 0, groups: Sequence[str] | None = None) -> Interval:
    """Mean, median and interval; the same values and seed give the same interval.

    With ``groups``, one name per value, whole groups (patients) are drawn: the images of one patient are no independent cases.

    >>> interval_of([0.5])
    Interval(mean=0.5, median=0.5, low=None, high=None, n=1)
    """
    data = np.asarray(values, np.float64)
    if groups is not None and len(set(groups)) < len(groups):
        return intervals_of_columns(data[:, None], groups=groups, seed=seed)[0][0]
    if data.size == 0:
        return Interval(mean=None, median=None, low=None, high=None, n=0)
    low: float | None = None
    high: float | None = None
    if data.size >= MIN_VALUES:
        generator = np.random.default_rng(seed)
        means = data[generator.integers(0, data.size, (NUM_RESAMPLES, data.size))].mean(1)
        tail = (1 - CONFIDENCE) / 2
        low, high = (float(q) for q in np.quantile(means, (tail, 1 - tail)))
    return Interval(mean=float(data.mean()), median=float(np.median(data)), low=low, high=high, n=int(data.size))


def paired_difference(first: Sequence[float], second: Sequence[float], *, seed: int = 0, groups: Sequence[str] | None = None) -> Interval:
    """``first - second`` per case, in the same order of cases: cases (or whole ``groups``) are drawn, so that what is hard for both cancels
    out."""
    return interval_of([a - b for a, b in zip(first, second, strict=True)], seed=seed, groups=groups)


def groups_of(cases: Sequence[str], patients: Mapping[str, str]) -> tuple[str, ...]:
    """The group of each case that is drawn as a whole: its patient, or the case itself where no patient is known.

    >>> groups_of(["a_ED", "a_ES", "b"], {"a_ED": "a", "a_ES": "a"})
    ('patient a', 'patient a', 'case b')
    """
    return tuple(f"patient {patients[case]}" if case in patients else f"case {case}" for case in cases)


def intervals_of_columns(table: np.ndarray, *, groups: Sequence[str], seed: int = 0) -> tuple[tuple[Interval, ...], Interval]:
    """Of each column (label) of values per case (rows, NaN where not defined) the mean with its interval, and of the mean of these means.

    Whole groups (patients) are drawn, one entry of ``groups`` per row: the images of one patient are no independent cases. The median of
    the whole is that of the columns' means.
    """
    names = list(dict.fromkeys(groups))
    place = {name: number for number, name in enumerate(names)}
    rows = np.array([place[name] for name in groups], int)
    is_there = np.isfinite(table)
    sums, counts = (np.zeros((len(names), table.shape[1])) for _ in range(2))
    np.add.at(sums, rows, np.where(is_there, table, 0.0))
    np.add.at(counts, rows, is_there)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums.sum(0) / counts.sum(0)
        weights = _draws(len(names), seed)
        drawn = (weights @ sums) / (weights @ counts)
        drawn_means = _row_means(drawn)
    columns = tuple(
        _with_interval(means[column], table[is_there[:, column], column], drawn[:, column], int(np.count_nonzero(counts[:, column])))
        for column in range(table.shape[1])
    )
    defined = means[np.isfinite(means)]
    whole = _with_interval(float(defined.mean()) if defined.size else math.nan, defined, drawn_means, len(names))
    return columns, whole


def _draws(num_groups: int, seed: int) -> np.ndarray:
    """How often each group is drawn, (resample, group)."""
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, max(1, num_groups), (NUM_RESAMPLES, num_groups))
    weights = np.zeros((NUM_RESAMPLES, num_groups))
    np.add.at(weights, (np.arange(NUM_RESAMPLES)[:, None], picks), 1.0)
    return weights


def _row_means(drawn: np.ndarray) -> np.ndarray:
    is_there = np.isfinite(drawn)
    means: np.ndarray = np.where(is_there, drawn, 0.0).sum(1) / is_there.sum(1)
    return means


def _with_interval(mean: float, values: np.ndarray, drawn: np.ndarray, num_groups: int) -> Interval:
    if not values.size:
        return Interval(mean=None, median=None, low=None, high=None, n=0)
    low: float | None = None
    high: float | None = None
    if num_groups >= MIN_VALUES:
        tail = (1 - CONFIDENCE) / 2
        low, high = (float(q) for q in np.quantile(drawn[np.isfinite(drawn)], (tail, 1 - tail)))
    return Interval(mean=float(mean), median=float(np.median(values)), low=low, high=high, n=int(values.size))
