"""Means with their confidence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.evaluation.compare import interval_of, intervals_of_columns, paired_difference


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=30), seed=st.integers(0, 5))
def test_the_interval_lies_within_the_values_and_repeats_with_its_seed(values, seed):
    interval = interval_of(values, seed=seed)
    assert min(values) - 1e-12 <= interval.low <= interval.high <= max(values) + 1e-12
    assert interval == interval_of(values, seed=seed)
    assert (interval.mean, interval.median, interval.n) == (
        pytest.approx(np.mean(values)),
        pytest.approx(np.median(values)),
        len(values),
    )


def test_no_values_have_no_mean():
    assert interval_of([]).mean is None


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    samples = generator.normal(0.8, 0.1, (150, 30))
    covered = sum(i.low <= 0.8 <= i.high for i in (interval_of(list(sample)) for sample in samples))
    assert 0.86 < covered / len(samples) <= 1.0


def test_a_constant_advantage_is_certain_although_cases_differ():
    hard = [0.1, 0.5, 0.9]
    difference = paired_difference([h + 0.05 for h in hard], hard)
    assert difference.low == pytest.approx(0.05)
    assert difference.high == pytest.approx(0.05)


def test_patients_are_drawn_whole_and_a_patient_per_case_changes_nothing():
    generator = np.random.default_rng(1)
    patients = np.repeat(generator.normal(0.7, 0.1, 12), 5)
    values = list(patients + generator.normal(0, 0.001, 60))
    alone, together = interval_of(values), interval_of(values, groups=[f"p{n // 5}" for n in range(60)])
    assert together.high - together.low > 1.8 * (alone.high - alone.low)  # about the square root of five
    assert (together.mean, together.median, together.n) == (pytest.approx(alone.mean), pytest.approx(alone.median), 60)
    assert interval_of(values, groups=[f"p{n}" for n in range(60)]) == alone
    assert interval_of(values, groups=["p"] * 60).low is None


def test_columns_with_gaps_have_intervals_of_what_is_there_and_of_the_mean_of_their_means():
    table = np.array([[0.2, 1.0], [0.4, np.nan], [0.6, np.nan], [np.nan, np.nan]])
    (first, second), whole = intervals_of_columns(table, groups=["a", "b", "c", "d"])
    assert (first.mean, first.n, second.mean, second.n) == (pytest.approx(0.4), 3, 1.0, 1)
    assert (second.low, second.high) == (None, None)
    assert 0.2 <= first.low <= 0.4 <= first.high <= 0.6
    assert whole.mean == pytest.approx(0.7)
    assert intervals_of_columns(np.full((2, 1), np.nan), groups=["a", "b"])[1].mean is None
