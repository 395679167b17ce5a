"""True positives, false negatives and false positives among objects."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.evaluation.lesions import LesionCounts, components, count_lesions


def line(*intervals: tuple[int, int]) -> np.ndarray:
    """Objects on a line of 40 voxels."""
    mask = np.zeros((1, 1, 40), bool)
    for start, stop in intervals:
        mask[..., start:stop] = True
    return mask


def counts(prediction: np.ndarray, reference: np.ndarray) -> tuple[int, int, int]:
    found = count_lesions(prediction, reference)
    return found.true_positives, found.false_positives, found.false_negatives


def test_found_and_false_objects_are_counted():
    assert counts(line((0, 5), (20, 22)), line((1, 5), (30, 35))) == (1, 1, 1)


def test_touching_by_a_voxel_is_not_finding():
    assert counts(line((0, 10)), line((9, 19))) == (0, 1, 1)


def test_the_threshold_itself_is_not_enough():
    assert counts(line((0, 1)), line((0, 10))) == (0, 1, 1)
    assert counts(line((0, 2)), line((0, 10))) == (1, 0, 0)


def test_two_predictions_of_one_object_are_one_found_and_one_false_positive():
    assert counts(line((0, 4), (5, 10)), line((0, 10))) == (1, 1, 0)


def test_one_prediction_over_two_objects_finds_one():
    assert counts(line((0, 10)), line((0, 4), (6, 10))) == (1, 0, 1)


def test_empty_masks():
    assert counts(line(), line()) == (0, 0, 0)
    assert counts(line((1, 2)), line()) == (0, 1, 0)
    assert counts(line(), line((1, 2), (4, 5))) == (0, 0, 2)
    assert LesionCounts(true_positives=0, false_positives=0, false_negatives=0).f1 is None


def test_corners_connect():
    mask = np.zeros((2, 2, 2), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert components(mask)[1] == 1
    assert components(mask, connectivity=6)[1] == 2


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_object_is_counted_once_and_swapping_exchanges_false_negatives_and_positives(seed):
    generator = np.random.default_rng(seed)
    prediction, reference = (generator.random((4, 6, 6)) < 0.15 for _ in range(2))
    found, turned = count_lesions(prediction, reference), count_lesions(reference, prediction)
    assert found.true_positives + found.false_negatives == components(reference)[1]
    assert found.true_positives + found.false_positives == components(prediction)[1]
    assert count_lesions(reference, reference).f1 in (1.0, None)
    assert turned.false_positives + turned.true_positives == found.false_negatives + found.true_positives
