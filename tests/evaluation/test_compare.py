"""Means with their confidence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.evaluation.compare import interval_of, paired_difference


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
