"""Surface distances against an independent computation with scipy on the whole image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg3d.evaluation.surfaces import surface, surface_distances


def blobs(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """A few smooth random objects; never empty."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5, mode="constant")
    return noise > np.quantile(noise, 0.8)


def oracle(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> tuple[float, float, float]:
    """HD95, ASSD and NSD with scipy's erosion and distances, uncropped."""
    cross = ndimage.generate_binary_structure(3, 1)
    surfaces = [m & ~ndimage.binary_erosion(m, cross, border_value=0) for m in (prediction, reference)]
    to_other = [ndimage.distance_transform_edt(~there, sampling=spacing)[here] for here, there in (surfaces, surfaces[::-1])]
    both = np.concatenate(to_other)
    return max(np.percentile(d, 95) for d in to_other), float(both.mean()), float((both <= tolerance + 1e-6).mean())


# Squared distances are multiples of 1e-4 mm², squared tolerances lie between them: no distance is at the tolerance but for rounding.
spacings = st.tuples(*[st.integers(30, 500).map(lambda hundredths: hundredths / 100)] * 3)
tolerances = st.sampled_from([0.5035, 1.0335, 2.0335, 3.0335])


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(3, 12), st.integers(4, 14), st.integers(4, 14)),
    spacing=spacings,
    tolerance=tolerances,
)
def test_distances_are_those_of_scipy(seed, shape, spacing, tolerance):
    prediction, reference = blobs(seed, shape), blobs(seed + 1, shape)
    distances = surface_distances(prediction, reference, spacing=spacing)
    hd95, assd, nsd = oracle(prediction, reference, spacing, tolerance)
    assert distances.hd95_mm == pytest.approx(hd95, rel=1e-5)
    assert distances.assd_mm == pytest.approx(assd, rel=1e-5, abs=1e-6)
    assert distances.nsd(tolerance) == pytest.approx(nsd, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), spacing=spacings, num_points=st.integers(1, 400))
def test_distances_between_sparse_and_far_surfaces_are_those_of_scipy(seed, spacing, num_points):
    generator = np.random.default_rng(seed)
    shape = (24, 40, 40)
    prediction, reference = np.zeros(shape, bool), np.zeros(shape, bool)
    for mask, extent in ((prediction, shape), (reference, (5, 40, 20))):
        mask[tuple(generator.integers(0, extent, (num_points, 3)).T)] = True
    distances = surface_distances(prediction, reference, spacing=spacing)
    hd95, assd, nsd = oracle(prediction, reference, spacing, 2.0335)
    assert distances.hd95_mm == pytest.approx(hd95, rel=1e-5)
    assert distances.assd_mm == pytest.approx(assd, rel=1e-5, abs=1e-6)
    assert distances.nsd(2.0335) == pytest.approx(nsd, abs=1e-3)


def test_equal_masks_have_distance_zero():
    mask = blobs(1, (8, 9, 10))
    distances = surface_distances(mask, mask, spacing=(3.0, 1.0, 1.0))
    assert (distances.hd95_mm, distances.assd_mm, distances.nsd(0.0)) == (0.0, 0.0, 1.0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(0.01, 50))
def test_distances_scale_with_the_spacing(seed, factor):
    prediction, reference = blobs(seed, (6, 8, 8)), blobs(seed + 1, (6, 8, 8))
    once = surface_distances(prediction, reference, spacing=(2.0, 1.0, 1.0))
    scaled = surface_distances(prediction, reference, spacing=(2.0 * factor, factor, factor))
    assert scaled.hd95_mm == pytest.approx(factor * once.hd95_mm, rel=1e-5)
    assert scaled.assd_mm == pytest.approx(factor * once.assd_mm, rel=1e-5)


def test_two_points_are_as_far_apart_as_they_lie():
    prediction, reference = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    prediction[0, 1, 1] = reference[3, 1, 5] = True
    distances = surface_distances(prediction, reference, spacing=(2.0, 1.0, 2.0))
    assert distances.hd95_mm == pytest.approx(10.0)
    assert distances.nsd(10.0) == 1.0  # a distance of exactly the tolerance counts
    assert distances.nsd(9.9) == 0.0


def test_what_touches_the_border_of_the_image_is_surface_there():
    assert surface(np.ones((3, 3, 3), bool)).sum() == 26


def test_a_single_slice_has_a_contour_and_not_an_area():
    contour = surface(np.ones((1, 5, 5), bool), axes=(1, 2))
    assert contour.sum() == 16
    assert not contour[0, 1:4, 1:4].any()
