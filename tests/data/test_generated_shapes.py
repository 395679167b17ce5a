"""Generated shapes: a function of seed and number, with every kind, in contrasts that say nothing of the kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg3d.data.generated_shapes import KINDS, make_shapes, make_shapes_dataset
from medseg3d.data.open_dataset import open_dataset


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    return [make_shapes(number, edge=24, seed=1) for number in range(12)]


def test_a_case_depends_on_seed_and_number_alone(cases: list[tuple[np.ndarray, np.ndarray]]) -> None:
    image, labels = make_shapes(3, edge=24, seed=1)
    assert np.array_equal(image, cases[3][0])
    assert np.array_equal(labels, cases[3][1])
    assert not np.array_equal(make_shapes(3, edge=24, seed=2)[1], labels)


def test_every_kind_is_there_and_most_voxels_are_background(cases: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found = [set(np.unique(labels)) for _, labels in cases]
    assert all(sum(value in case for case in found) >= 8 for value in range(len(KINDS) + 1))
    assert 0.3 < np.mean([np.mean(labels == 0) for _, labels in cases]) < 0.95
    assert all(np.isfinite(image).all() and np.ptp(image) > 0.1 for image, _ in cases)


def test_the_grey_value_says_nothing_of_the_kind(cases: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """A kind differs from case to case by more than the kinds differ from each other."""
    means = [[image[labels == value].mean() for image, labels in cases if (labels == value).any()] for value in range(1, len(KINDS) + 1)]
    assert np.ptp([np.mean(of_kind) for of_kind in means]) < np.mean([np.std(of_kind) for of_kind in means])


def test_the_dataset_opens(tmp_path: Path) -> None:
    dataset = open_dataset(make_shapes_dataset(tmp_path / "Shapes", num_cases=2, edge=16))
    assert (len(dataset.training), dataset.failures) == (2, ())
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", *KINDS)
