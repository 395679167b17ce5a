"""Normalization equals its formulas, and never touches its input."""

from __future__ import annotations

import numpy as np
import pytest

from medseg3d.errors import PlanError
from medseg3d.plan import Normalization
from medseg3d.preprocessing.normalization import SCHEMES, normalize


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 30, (1, 5, 6, 7)).astype(np.float32)


CT = Normalization(scheme="ct", mean=90.0, std=20.0, lower=60.0, upper=130.0)


def test_ct_is_clipped_and_scaled_by_the_numbers_of_the_plan(image):
    np.testing.assert_allclose(normalize(image, [CT]), (image.astype(float).clip(60, 130) - 90) / 20, atol=1e-5)


def test_zscore_has_mean_0_and_standard_deviation_1(image):
    result = normalize(image + 10_000, [Normalization(scheme="zscore")])
    np.testing.assert_allclose([result.mean(), result.std()], [0, 1], atol=1e-3)


def test_zscore_with_a_mask_changes_nothing_outside(image):
    mask = np.zeros(image.shape[1:], bool)
    mask[1:4, 2:5, 1:6] = True
    image *= mask
    result = normalize(image, [Normalization(scheme="zscore", use_mask=True)], mask=mask)
    inside = image[0][mask].astype(float)
    np.testing.assert_allclose(result[0][mask], (inside - inside.mean()) / inside.std(), atol=1e-5)
    assert (result[0][~mask] == 0).all()


def test_rescaling_reaches_0_and_1(image):
    result = normalize(image, [Normalization(scheme="rescale_0_1")])
    assert (result.min(), result.max()) == (0, 1)


def test_rgb_is_divided_by_255(image):
    np.testing.assert_allclose(normalize(image, [Normalization(scheme="rgb_0_1")]), image / 255, rtol=1e-6)


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"ct"}))
def test_a_constant_image_stays_finite(scheme):
    result = normalize(np.full((1, 2, 3, 4), 7, np.float32), [Normalization(scheme=scheme)])
    assert np.isfinite(result).all()


def test_every_channel_has_its_own_rule_and_the_input_stays(image):
    both = np.concatenate([image, image])
    before = both.copy()
    result = normalize(both, [CT, Normalization(scheme="none")])
    np.testing.assert_array_equal(both, before)
    np.testing.assert_array_equal(result[1], image[0])
    assert not np.shares_memory(result, both)


def test_ct_without_numbers_is_refused(image):
    with pytest.raises(PlanError, match="mean and std"):
        normalize(image, [Normalization(scheme="ct")])
