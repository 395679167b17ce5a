"""Sizes, places, components, elongation and thickness of labels, against plain computations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.fingerprint.describe_labels import describe_labels
from medseg3d.fingerprint.records import LabelStatistics

SPACING = (3.0, 1.0, 0.5)


def plain_label_statistics(labels: np.ndarray, spacing: tuple[float, float, float]) -> dict[int, LabelStatistics]:
    """Label by label with scipy, as one would write it down."""
    from scipy.ndimage import find_objects, label

    result = {}
    voxel = math.prod(spacing)
    for value in np.unique(labels[labels != 0]):
        mask = labels == value
        components, count = label(mask, np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel())[1:]
        places = np.argwhere(mask)
        center = (places.mean(0) + 0.5) / labels.shape
        extents = [[(s.stop - s.start) * mm for s, mm in zip(box, spacing, strict=True)] for box in find_objects(components)]
        longest = max(math.hypot(*extent) for extent, size in zip(extents, sizes, strict=True) if size == sizes.max())
        result[int(value)] = LabelStatistics(
            voxels=int(mask.sum()),
            volume_mm3=mask.sum() * voxel,
            components=count,
            largest_mm3=sizes.max() * voxel,
            smallest_mm3=sizes.min() * voxel,
            touches_border=bool((places == 0).any() or (places == np.array(labels.shape) - 1).any()),
            center=tuple(center),
            elongation=longest / (sizes.max() * voxel) ** (1 / 3),
            thickness_mm=min((row_length(mask, a) * spacing[a] for a in range(3) if mask.shape[a] > 1), default=None),
        )
    return result


def row_length(mask: np.ndarray, axis: int) -> float:
    """The mean number of voxels in a row along an axis."""
    rows = [list(row) for row in np.moveaxis(mask, axis, -1).reshape(-1, mask.shape[axis])]
    return float(mask.sum() / sum(is_set and not before for row in rows for before, is_set in zip([False, *row], row, strict=False)))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(0, 1, 2), (0, 7, -3, 300), (0, 0, 0, 0, 2_000_000, 5), (0, 0, 0, 0, 0, 0, 1)]))
def test_label_statistics_are_those_of_scipy(seed: int, values: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(values, tuple(rng.integers(1, 8, 3))).astype(np.int32)
    found, expected = describe_labels(labels, SPACING), plain_label_statistics(labels, SPACING)
    assert found.keys() == expected.keys()
    for value, statistics in expected.items():
        assert found[value].center == pytest.approx(statistics.center, abs=1e-6)
        assert found[value].elongation == pytest.approx(statistics.elongation)
        assert found[value].thickness_mm == pytest.approx(statistics.thickness_mm)
        same = {"center": statistics.center, "elongation": statistics.elongation, "thickness_mm": statistics.thickness_mm}
        assert replace(found[value], **same) == statistics


def test_another_background_value_is_respected() -> None:
    labels = np.full((3, 4, 5), 9, np.int16)
    labels[1, 1, 1] = 0
    found = describe_labels(labels, SPACING, background=9)
    assert set(found) == {0}
    assert found[0].voxels == 1


def ellipsoid(spacing: tuple[float, float, float], *half_axes: float) -> np.ndarray:
    """Half axes in mm along (S, A, R), in a volume that ends one voxel beyond them."""
    axes = [np.arange(-math.ceil(half / mm) - 1, math.ceil(half / mm) + 2) * mm / half for half, mm in zip(half_axes, spacing, strict=True)]
    return (sum(np.square(np.meshgrid(*axes, indexing="ij"))) <= 1).astype(np.uint8)


def tube(spacing: tuple[float, float, float], direction: tuple[float, float, float], diameter: float, length: float) -> np.ndarray:
    """Diameter and length in mm, with flat ends."""
    along = np.array(direction) / math.hypot(*direction)
    ends = [abs(a) * length / 2 + diameter for a in along]
    grid = np.meshgrid(*(np.arange(-end, end + mm, mm) for end, mm in zip(ends, spacing, strict=True)), indexing="ij")
    place = sum(a * x for a, x in zip(along, grid, strict=True))
    distance = sum(x**2 for x in grid) - place**2
    return ((np.abs(place) <= length / 2) & (distance <= diameter**2 / 4)).astype(np.uint8)


def elongation_of(labels: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> float:
    elongation = describe_labels(labels, spacing)[1].elongation
    assert elongation is not None
    return elongation


GRIDS = [(1.0, 1.0, 1.0), (0.5, 0.8, 0.6), (2.0, 0.7, 0.7), (0.8, 0.8, 1.9)]


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("half_axes", [(16.0, 16.0, 16.0), (12.0, 20.0, 40.0), (40.0, 14.0, 12.0)])
def test_an_ellipsoid_has_the_elongation_of_its_formula_on_every_grid(
    spacing: tuple[float, float, float], half_axes: tuple[float, float, float]
) -> None:
    expected = 2 * math.hypot(*half_axes) / math.cbrt(4 / 3 * math.pi * math.prod(half_axes))
    assert elongation_of(ellipsoid(spacing, *half_axes), spacing) == pytest.approx(expected, rel=0.05)


def test_thickness_tells_sheets_from_balls() -> None:
    radius = sum(np.square(np.meshgrid(*[np.arange(-40, 41)] * 3, indexing="ij"))) ** 0.5
    sheet = np.zeros((100, 100, 8), np.uint8)
    sheet[..., 3:5] = 1
    shell = ((radius > 36) & (radius <= 38)).astype(np.uint8)
    found = [describe_labels(labels, (1, 1, 1))[1].thickness_mm for labels in (sheet, shell, (radius <= 38).astype(np.uint8))]
    assert found == pytest.approx([2, 4, 2 / 3 * 76], rel=0.03)


def test_labels_of_large_volumes_are_measured_in_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (9, 8, 7)).astype(np.uint8)
    whole = describe_labels(labels, SPACING)
    monkeypatch.setattr("medseg3d.fingerprint.describe_labels.CHUNK", 150)
    assert describe_labels(labels, SPACING) == whole


def test_a_ball_has_2_1_and_a_cube_1_7() -> None:
    assert elongation_of(ellipsoid((0.5, 0.5, 0.5), 20, 20, 20), (0.5, 0.5, 0.5)) == pytest.approx(2.15, abs=0.05)
    assert elongation_of(np.ones((6, 6, 6), np.uint8)) == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize(("direction", "expected"), [((1, 0, 0), 8.0), ((0, 0, 1), 8.0), ((0, 1, 1), 8.4), ((1, 1, 1), 8.5)])
def test_a_tube_of_twenty_diameters_has_eight(
    spacing: tuple[float, float, float], direction: tuple[float, float, float], expected: float
) -> None:
    assert elongation_of(tube(spacing, direction, 8, 160), spacing) == pytest.approx(expected, rel=0.07)  # 2 mm voxels blur 8 mm


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 2), st.integers(1, 3), st.permutations(range(3)))
def test_elongation_depends_on_the_shape_in_mm_only(seed: int, axis: int, factor: int, order: list[int]) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random(tuple(rng.integers(2, 8, 3))) < 0.2).astype(np.uint8)
    labels[0, 0, 0] = 1
    finer = [mm / factor if a == axis else mm for a, mm in enumerate(SPACING)]
    turned = np.repeat(labels, factor, axis).transpose(order)
    assert elongation_of(turned, (finer[order[0]], finer[order[1]], finer[order[2]])) == pytest.approx(elongation_of(labels, SPACING))


def test_the_largest_component_counts_and_of_equal_ones_the_longest() -> None:
    labels = np.zeros((20, 8, 8), np.uint8)
    labels[:16, 0, 0] = 1
    assert elongation_of(labels) == pytest.approx(math.hypot(16, 1, 1) / math.cbrt(16))
    labels[:4, 4:, 4:] = 1
    assert elongation_of(labels) == pytest.approx(math.sqrt(3))
    labels[4:, 4:, 4:] = 0
    labels[:4, 4:, 4:] = np.arange(64).reshape(4, 4, 4) < 16  # one slice of 16 voxels beside the line of 16
    assert elongation_of(labels) == elongation_of(labels[:, ::-1]) == pytest.approx(math.hypot(16, 1, 1) / math.cbrt(16))


def test_a_single_voxel_has_the_elongation_of_its_box() -> None:
    for shape in ((1, 1, 1), (3, 4, 5)):
        labels = np.zeros(shape, np.uint8)
        labels[-1, -1, -1] = 1
        assert elongation_of(labels, SPACING) == pytest.approx(math.hypot(*SPACING) / math.cbrt(math.prod(SPACING)))
