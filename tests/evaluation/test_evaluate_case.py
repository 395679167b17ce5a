"""All metrics of a case: overlap by plain counting, the policy for what is empty, and independence of layout and crop."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg3d.errors import GeometryMismatchError, InputError, LabelValueError
from medseg3d.evaluation.evaluate_case import default_tolerance_mm, evaluate_case
from medseg3d.labels import Labels
from medseg3d.records import to_plain

LABELS = Labels(names=("background", "liver", "tumor", "cyst"), values=(0, 1, 5, 300))
SPACING = (2.0, 1.0, 1.5)


def maps(seed: int, shape: tuple[int, int, int] = (6, 8, 9)) -> tuple[np.ndarray, np.ndarray]:
    """A random prediction and reference of file values in blocks of 2×2×2."""
    generator = np.random.default_rng(seed)
    coarse = tuple((n + 1) // 2 for n in shape)
    both = []
    for _ in range(2):
        values = generator.choice(LABELS.values, coarse, p=(0.7, 0.15, 0.1, 0.05)).astype(np.int16)
        both.append(values.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(slice(0, n) for n in shape)])
    return both[0], both[1]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_overlap_and_volumes_are_those_of_plain_counting(seed):
    prediction, reference = maps(seed)
    case = evaluate_case(prediction, reference, spacing=SPACING, labels=LABELS)
    for label in case.labels:
        p, r = prediction == label.value, reference == label.value
        assert (label.voxels_prediction, label.voxels_reference, label.voxels_common) == (p.sum(), r.sum(), (p & r).sum())
        assert label.volume_difference_ml == pytest.approx((int(p.sum()) - int(r.sum())) * math.prod(SPACING) / 1000)
        if (p | r).any():
            assert label.dice == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()))
            assert label.iou == pytest.approx((p & r).sum() / (p | r).sum())
    defined = [label.dice for label in case.labels if label.dice is not None]
    assert case.num_labels_counted == len(defined)
    assert case.foreground_dice == (pytest.approx(np.mean(defined)) if defined else None)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations([0, 1, 2]), pad=st.integers(1, 4), threads=st.integers(1, 3))
def test_axis_order_memory_layout_background_and_threads_change_nothing(seed, order, pad, threads):
    prediction, reference = (np.pad(array, 1) for array in maps(seed))
    expected = evaluate_case(prediction, reference, spacing=SPACING, labels=LABELS, tolerance_mm=1.0)
    moved = [np.asfortranarray(np.pad(array, ((0, pad), (pad, 0), (1, 1)))).transpose(order) for array in (prediction, reference)]
    found = evaluate_case(*moved, spacing=[SPACING[axis] for axis in order], labels=LABELS, tolerance_mm=1.0, num_threads=threads)
    for a, b in zip(expected.labels, found.labels, strict=True):
        for name in ("dice", "iou", "nsd", "hd95_mm", "assd_mm", "lesion_f1", "volume_difference_ml"):
            assert getattr(b, name) == (pytest.approx(getattr(a, name), rel=1e-5) if getattr(a, name) is not None else None)


def only(value_p: int, value_r: int):
    """One case with a voxel of a value in each; the metrics of ``tumor``."""
    prediction, reference = np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 3), np.uint8)
    prediction[1, 1, 1], reference[1, 1, 1] = value_p, value_r
    case = evaluate_case(prediction, reference, spacing=SPACING, labels=LABELS)
    return case.labels[1]


def test_a_label_that_is_in_neither_is_not_counted():
    label = only(0, 1)
    assert label.presence == "neither"
    assert (label.dice, label.iou, label.nsd, label.hd95_mm, label.assd_mm, label.lesion_f1) == (None,) * 6


def test_a_label_only_in_the_prediction_scores_zero_without_distances():
    label = only(5, 0)
    assert label.presence == "only_prediction"
    assert (label.dice, label.iou, label.nsd, label.hd95_mm, label.assd_mm, label.lesion_f1) == (0, 0, 0, None, None, 0)
    assert label.lesion_false_positives == 1


def test_a_label_only_in_the_reference_scores_zero_without_distances():
    label = only(0, 5)
    assert label.presence == "only_reference"
    assert (label.dice, label.iou, label.nsd, label.hd95_mm, label.assd_mm, label.lesion_f1) == (0, 0, 0, None, None, 0)
    assert label.lesion_false_negatives == 1


def test_a_case_without_any_label_has_no_mean_and_is_valid_json():
    empty = np.zeros((3, 3, 3), np.uint8)
    case = evaluate_case(empty, empty, spacing=SPACING, labels=LABELS)
    assert (case.foreground_dice, case.num_labels_counted) == (None, 0)
    json.dumps(to_plain(case), allow_nan=False)


def test_a_perfect_prediction_scores_one():
    _, reference = maps(3)
    case = evaluate_case(reference.copy(), reference, spacing=SPACING, labels=LABELS)
    assert case.foreground_dice == 1.0
    assert all((label.nsd, label.hd95_mm, label.lesion_f1) == (1.0, 0.0, 1.0) for label in case.labels)


def test_inputs_are_not_modified():
    prediction, reference = maps(4)
    prediction.flags.writeable = reference.flags.writeable = False
    evaluate_case(prediction, reference, spacing=SPACING, labels=LABELS)


def test_unlike_shapes_are_refused():
    with pytest.raises(GeometryMismatchError, match=r"liver_3.*shape"):
        evaluate_case(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), spacing=SPACING, labels=LABELS, name="liver_3")


def test_unknown_values_are_refused():
    with pytest.raises(LabelValueError, match=r"liver_3 \(prediction\).*\[7\]"):
        evaluate_case(np.full((2, 2, 2), 7), np.zeros((2, 2, 2), int), spacing=SPACING, labels=LABELS, name="liver_3")


def test_a_spacing_of_zero_is_refused():
    with pytest.raises(InputError, match="spacing"):
        evaluate_case(np.zeros((2, 2, 2), int), np.zeros((2, 2, 2), int), spacing=(0, 1, 1), labels=LABELS)


def test_a_single_slice_is_measured_in_its_plane():
    prediction, reference = np.zeros((12, 12, 1), np.uint8), np.zeros((12, 12, 1), np.uint8)
    prediction[2:8, 2:8], reference[3:9, 2:8] = 1, 1
    label = evaluate_case(prediction, reference, spacing=(1, 1, 50), labels=LABELS, tolerance_mm=0.5).labels[0]
    assert label.hd95_mm == 1.0
    assert 0 < label.nsd < 1


def test_the_tolerance_ignores_the_axis_across_a_single_slice():
    assert default_tolerance_mm((0.01, 2.0, 2.0), (1, 64, 64)) == 2.0
