"""Histograms of intensities: quantiles, moments, and merging."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg3d.fingerprint.intensities import describe_values, keys_of, merge_intensities, values_of

floats = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32))


def error_bound(value: float, std: float) -> float:
    """What the documentation promises for a quantile."""
    return max(abs(value) * 2.0**-11, std * 2.0**-8) + 1e-30


@settings(max_examples=200, deadline=None)
@given(floats, st.sampled_from([1e-4, 1.0, 1e4]))
def test_quantiles_keep_the_stated_error_on_any_scale(values: np.ndarray, scale: float) -> None:
    values = (values * scale).astype(np.float32)
    _, statistics = describe_values(values)
    assert statistics is not None
    exact = np.percentile(values.astype(np.float64), (0.5, 50, 99.5))
    found = (statistics.percentile_00_5, statistics.median, statistics.percentile_99_5)
    largest = float(np.abs(values).max())  # interpolation may lie between a far value and a near one
    for truth, estimate in zip(exact, found, strict=True):
        assert abs(truth - estimate) <= error_bound(largest, statistics.std)


@settings(deadline=None)
@given(floats)
def test_moments_and_range_are_exact(values: np.ndarray) -> None:
    _, statistics = describe_values(values)
    assert statistics is not None
    wide = values.astype(np.float64)
    assert statistics.count == values.size
    assert statistics.minimum == wide.min()
    assert statistics.maximum == wide.max()
    assert math.isclose(statistics.mean, wide.mean(), rel_tol=1e-12, abs_tol=1e-9)
    assert math.isclose(statistics.std, wide.std(), rel_tol=1e-9, abs_tol=1e-9)


def test_hounsfield_units_have_exact_quantiles() -> None:
    values = np.random.default_rng(0).normal(40, 300, 20_000).clip(-1024, 3071).round()
    _, statistics = describe_values(values)
    assert statistics is not None
    found = (statistics.percentile_00_5, statistics.median, statistics.percentile_99_5)
    assert found == pytest.approx(tuple(np.percentile(values, (0.5, 50, 99.5))), abs=1e-9)


@settings(deadline=None)
@given(floats, st.floats(0, 1e5))
def test_keys_grow_with_the_values(values: np.ndarray, std: float) -> None:
    ordered = np.sort(values)
    assert (np.diff(keys_of(ordered, std)) >= 0).all()


@settings(deadline=None)
@given(floats)
def test_a_bin_is_never_further_from_zero_than_its_values(values: np.ndarray) -> None:
    back = values_of(keys_of(values, 0.0))
    assert (np.abs(back) <= np.abs(values)).all()
    np.testing.assert_allclose(back, values, rtol=2.0**-11, atol=1e-37)
    np.testing.assert_array_equal(keys_of(back.astype(np.float32), 0.0), keys_of(values, 0.0))


@settings(deadline=None)
@given(floats)
def test_a_histogram_counts_every_value_once(values: np.ndarray) -> None:
    histogram, statistics = describe_values(values)
    assert statistics is not None
    keys, counts = histogram.arrays()
    expected, expected_counts = np.unique(keys_of(values, statistics.std), return_counts=True)
    np.testing.assert_array_equal(keys, expected)
    np.testing.assert_array_equal(counts, expected_counts)


def test_merging_gives_the_statistics_of_all_values_together() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 4000, n).astype(np.float32) for n in (10, 5000, 300)]
    merged = merge_intensities([describe_values(part) for part in parts] + [describe_values(np.empty(0, np.float32))])
    values = np.concatenate(parts).astype(np.float64)
    assert merged is not None
    assert merged.count == values.size
    assert merged.mean == pytest.approx(values.mean(), rel=1e-12)
    assert merged.std == pytest.approx(values.std(), rel=1e-12)
    assert (merged.minimum, merged.maximum) == (values.min(), values.max())
    np.testing.assert_allclose(
        (merged.percentile_00_5, merged.median, merged.percentile_99_5),
        np.percentile(values, (0.5, 50, 99.5)),
        atol=values.std() / 256,
    )


def test_scales_that_differ_by_a_thousand_do_not_spoil_each_other() -> None:
    rng = np.random.default_rng(1)
    small, large = rng.normal(100, 10, 3000).astype(np.float32), rng.normal(1e6, 1e5, 1000).astype(np.float32)
    merged = merge_intensities([describe_values(small), describe_values(large)])
    assert merged is not None
    assert merged.median == pytest.approx(np.median(np.concatenate([small, large])), abs=0.1)


def test_a_histogram_of_floats_stays_small() -> None:
    values = np.random.default_rng(0).normal(0, 1, 1_000_000).astype(np.float32)
    histogram, _ = describe_values(values)
    assert len(histogram.bins) < 20_000
