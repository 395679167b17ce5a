"""Steps that clean label maps, and the choice of them by validation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg3d.errors import InputError
from medseg3d.labels import Labels
from medseg3d.records import read_record, write_record
from medseg3d.validation.postprocessing import (
    NO_POSTPROCESSING,
    Postprocessing,
    Step,
    apply_postprocessing,
)
from medseg3d.validation.postprocessing_choice import choose_postprocessing
from medseg3d.validation.postprocessing_evidence import ValidatedCase

LABELS = Labels(names=("background", "organ", "tumor"), values=(0, 1, 2))


def steps(*found: tuple[str, int | None]) -> Postprocessing:
    return Postprocessing(steps=tuple(Step(operation=operation, index=index) for operation, index in found))


def random_map(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(3, (5, 7, 8), p=(0.6, 0.25, 0.15)).astype(np.uint8)


def largest_by_scipy(mask: np.ndarray) -> np.ndarray:
    numbers, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    return mask & (numbers == sizes.argmax())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), index=st.sampled_from([1, 2]))
def test_the_largest_object_of_a_label_stays_and_other_labels_are_untouched(seed, index):
    indices = random_map(seed)
    result = apply_postprocessing(indices, steps(("keep_largest", index)))
    expected = indices.copy()
    expected[(indices == index) & ~largest_by_scipy(indices == index)] = 0
    np.testing.assert_array_equal(result, expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_largest_object_of_the_foreground_keeps_its_labels(seed):
    indices = random_map(seed)
    result = apply_postprocessing(indices, steps(("keep_largest_foreground", None)))
    np.testing.assert_array_equal(result, np.where(largest_by_scipy(indices > 0), indices, 0))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), index=st.sampled_from([1, 2]))
def test_holes_are_filled_as_scipy_does_but_only_where_there_is_background(seed, index):
    indices = random_map(seed)
    result = apply_postprocessing(indices, steps(("fill_holes", index)))
    filled = ndimage.binary_fill_holes(indices == index)
    np.testing.assert_array_equal(result, np.where(filled & (indices == 0), index, indices))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), operation=st.sampled_from(["keep_largest_foreground", "keep_largest", "fill_holes"]))
def test_a_step_done_twice_is_done_once_and_the_input_is_not_modified(seed, operation):
    indices = random_map(seed)
    before = indices.copy()
    step = steps((operation, None if operation == "keep_largest_foreground" else 1))
    once = apply_postprocessing(indices, step)
    np.testing.assert_array_equal(apply_postprocessing(once, step), once)
    np.testing.assert_array_equal(indices, before)
    assert once.dtype == indices.dtype


def test_a_hole_in_a_single_slice_is_filled():
    indices = np.ones((1, 5, 5), np.uint8)
    indices[0, 2, 2] = 0
    assert apply_postprocessing(indices, steps(("fill_holes", 1))).all()


def test_a_bay_at_the_border_of_the_image_is_no_hole():
    indices = np.ones((5, 5, 5), np.uint8)
    indices[2, 2, :3] = 0
    assert (apply_postprocessing(indices, steps(("fill_holes", 1))) == 0).sum() == 3


def test_an_empty_map_and_no_steps_are_left_alone():
    empty = np.zeros((3, 3, 3), np.uint8)
    every = steps(("keep_largest_foreground", None), ("keep_largest", 2), ("fill_holes", 1))
    assert not apply_postprocessing(empty, every).any()
    assert apply_postprocessing(empty, NO_POSTPROCESSING) is empty


def organ_and_tumor() -> np.ndarray:
    """A tumor inside an organ, and a smaller tumor apart."""
    reference = np.zeros((8, 12, 20), np.uint8)
    reference[1:7, 1:10, 1:10] = 1
    reference[3:5, 3:6, 3:6] = 2
    reference[3:5, 3:5, 14:16] = 2
    return reference


def case(name: str, prediction: np.ndarray, reference: np.ndarray) -> ValidatedCase:
    return ValidatedCase(name=name, load=lambda: (prediction.copy(), reference))


def five(prediction: np.ndarray, reference: np.ndarray) -> list[ValidatedCase]:
    """As many cases as a step needs."""
    return [case(f"c{i}", prediction, reference) for i in range(5)]


def operations(chosen: Postprocessing) -> list[tuple[str, int | None]]:
    return [(step.operation, step.index) for step in chosen.steps]


def test_stray_organs_are_removed_but_not_at_the_cost_of_the_tumor():
    reference = organ_and_tumor()
    prediction = reference.copy()
    prediction[0:2, 10:12, 17:20] = 1
    chosen = choose_postprocessing(five(prediction, reference), LABELS, num_workers=1)
    assert operations(chosen) == [("keep_largest", 1)]
    np.testing.assert_array_equal(apply_postprocessing(prediction, chosen), reference)
    foreground = chosen.decisions[0]
    assert not foreground.accepted
    assert "tumor would fall" in foreground.reason


def test_the_whole_foreground_is_tried_first_and_then_nothing_is_left_to_gain():
    reference = organ_and_tumor()
    reference[3:5, 3:5, 14:16] = 0
    prediction = reference.copy()
    prediction[0:2, 10:12, 17:20] = 1
    prediction[7, 11, 0] = 2
    chosen = choose_postprocessing(five(prediction, reference), LABELS, num_workers=1)
    assert operations(chosen) == [("keep_largest_foreground", None)]
    assert [d.accepted for d in chosen.decisions] == [True, False, False, False, False]
    assert chosen.decisions[0].dice_after == 1.0


def test_holes_are_filled_where_the_reference_has_none():
    reference = organ_and_tumor()
    prediction = reference.copy()
    prediction[5, 7:9, 7:9] = 0
    chosen = choose_postprocessing(five(prediction, reference), LABELS, num_workers=1)
    assert operations(chosen) == [("fill_holes", 1)]
    np.testing.assert_array_equal(apply_postprocessing(prediction, chosen), reference)


def test_a_perfect_prediction_needs_nothing_and_every_decision_is_explained():
    reference = organ_and_tumor()
    chosen = choose_postprocessing([case("c", reference, reference)], LABELS, num_workers=1)
    assert chosen.steps == ()
    assert len(chosen.decisions) == 5
    assert all(decision.reason and decision.num_cases == 1 for decision in chosen.decisions)


def stray_organ() -> tuple[np.ndarray, np.ndarray]:
    """A prediction that is wrong by one object apart from the organ, and its reference with one object."""
    reference = np.where(organ_and_tumor() == 1, 1, 0).astype(np.uint8)
    prediction = reference.copy()
    prediction[0:2, 10:12, 17:20] = 1
    return prediction, reference


ORGAN = Labels(names=("background", "organ"), values=(0, 1))


@pytest.mark.fault("A8", "postprocessing that fewer than five cases speak for", "not chosen, and selection.json says why")
@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_step_needs_five_cases_with_the_label(number):
    prediction, reference = stray_organ()
    empty = np.zeros_like(reference)
    cases = [*five(prediction, reference)[:number], *(case(f"empty_{i}", empty, empty) for i in range(6))]
    chosen = choose_postprocessing(cases, ORGAN, num_workers=1)
    assert chosen.steps == ()
    assert f"only {number} case" in chosen.decisions[0].reason
    assert operations(choose_postprocessing(five(prediction, reference), ORGAN, num_workers=1)) == [("keep_largest_foreground", None)]


@pytest.mark.fault("A8", "keep-largest for a label that has several objects in a reference", "never chosen, and selection.json says why")
@pytest.mark.parametrize("labels", [ORGAN, LABELS])
def test_the_largest_object_is_not_kept_alone_where_any_reference_has_several(labels):
    prediction, reference = stray_organ()
    two = reference.copy()
    two[1:7, 1:10, 14:19] = 1
    chosen = choose_postprocessing([*five(prediction, reference) * 4, case("two_kidneys", two, two)], labels, num_workers=1)
    assert chosen.steps == ()
    gains = [case(f"g{i}", prediction, reference) for i in range(30)]
    small = reference.copy()
    small[7, 11, 19] = 1  # a second object so small that losing it costs less than the strays of the others
    chosen = choose_postprocessing([*gains, case("small", small, small)], labels, num_workers=1)
    assert chosen.steps == ()
    assert any("1 reference has several objects" in decision.reason for decision in chosen.decisions)


@pytest.mark.fault("A8", "keep-largest where only a case outside validation has several objects", "never chosen: the fingerprint knows")
@pytest.mark.parametrize("labels", [ORGAN, LABELS])
def test_cases_that_were_not_validated_count_as_well(labels):
    prediction, reference = stray_organ()
    assert choose_postprocessing(five(prediction, reference), labels, num_workers=1).steps
    chosen = choose_postprocessing(five(prediction, reference), labels, num_split={1: 2}, num_workers=1)
    assert ("keep_largest", 1) not in operations(chosen)
    if labels is ORGAN:
        assert chosen.steps == ()
        assert "2 references have several objects" in chosen.decisions[0].reason


@pytest.mark.fault("A8", "postprocessing that helps one case of many", "not chosen, as the interval of its gain reaches 0")
def test_a_step_that_helps_one_case_of_many_is_not_chosen():
    prediction, reference = stray_organ()
    cases = [case("stray", prediction, reference), *(case(f"good_{i}", reference, reference) for i in range(9))]
    chosen = choose_postprocessing(cases, ORGAN, num_workers=1)
    assert chosen.steps == ()
    assert "but not clearly (95 % interval" in chosen.decisions[0].reason


def test_a_gain_in_one_case_is_weighed_against_the_loss_in_another():
    reference = organ_and_tumor()
    stray = reference.copy()
    stray[7, 11, 19] = 2  # one voxel to gain here, a whole second tumor to lose in the others
    chosen = choose_postprocessing([case("a", stray, reference), case("b", reference, reference)], LABELS, num_workers=1)
    assert chosen.steps == ()


def test_fillings_that_take_the_same_voxels_are_measured_together():
    # The organ is a shell, inside it a shell of tumor, inside that a cavity: in the reference of one case the cavity is tumor,
    # in another, where the inner shell is missing, a cavity of the organ is organ.
    reference, prediction = np.zeros((2, 9, 9, 9), np.uint8)
    reference[1:8, 1:8, 1:8], reference[3:6, 3:6, 3:6] = 1, 2
    prediction[:] = reference
    prediction[4, 4, 4] = 0
    other_reference = np.zeros((9, 9, 9), np.uint8)
    other_reference[1:8, 1:8, 1:8] = 1
    other_prediction = other_reference.copy()
    other_prediction[3:6, 3:6, 3:6] = 0
    chosen = choose_postprocessing([case("a", prediction, reference), case("b", other_prediction, other_reference)], LABELS, num_workers=1)
    before = [prediction, other_prediction]
    after = [apply_postprocessing(p, chosen) for p in before]
    for index in (1, 2):
        gains = [
            2 * ((p == index) & (r == index)).sum() / max(1, (p == index).sum() + (r == index).sum())
            for maps in (before, after)
            for p, r in zip(maps, (reference, other_reference), strict=True)
        ]
        assert sum(gains[2:]) >= sum(gains[:2])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_what_is_chosen_never_lowers_the_mean_dice_of_any_label(seed):
    references = [random_map(seed + i) for i in range(2)]
    generator = np.random.default_rng(seed)
    predictions = [np.where(generator.random(r.shape) < 0.3, generator.integers(0, 3, r.shape), r).astype(np.uint8) for r in references]
    pairs = list(zip(predictions, references, strict=True))
    chosen = choose_postprocessing([case(str(i), p, r) for i, (p, r) in enumerate(pairs)], LABELS, num_workers=1)

    def dice(index: int, apply: bool) -> float:
        scores = []
        for prediction, reference in pairs:
            p = (apply_postprocessing(prediction, chosen) if apply else prediction) == index
            scores.append(2 * (p & (reference == index)).sum() / (p.sum() + (reference == index).sum()))
        return float(np.mean(scores))

    assert all(dice(index, apply=True) >= dice(index, apply=False) - 1e-9 for index in (1, 2))


def test_a_case_that_cannot_be_loaded_is_listed_and_the_others_decide():
    def broken() -> tuple[np.ndarray, np.ndarray]:
        raise InputError("b: cut off")

    reference = organ_and_tumor()
    cases = [case("a", reference, reference), ValidatedCase(name="b", load=broken)]
    chosen = choose_postprocessing(cases, LABELS, num_workers=1)
    assert [failure.case for failure in chosen.failures] == ["b"]
    assert chosen.decisions[0].num_cases == 1


def test_no_cases_choose_nothing():
    assert choose_postprocessing([], LABELS).steps == ()


def test_a_choice_survives_a_file(tmp_path):
    reference = organ_and_tumor()
    prediction = reference.copy()
    prediction[0:2, 10:12, 17:20] = 1
    chosen = choose_postprocessing([case("c", prediction, reference)], LABELS, num_workers=1)
    path = write_record(tmp_path / "postprocessing.json", chosen, "postprocessing")
    assert read_record(path, Postprocessing, "postprocessing") == chosen


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_index_types_are_kept(dtype):
    result = apply_postprocessing(random_map(0).astype(dtype), steps(("keep_largest_foreground", None), ("fill_holes", 1)))
    assert result.dtype == dtype


def test_images_of_one_patient_are_no_evidence_for_a_step():
    reference = organ_and_tumor()
    prediction = reference.copy()
    prediction[0:2, 10:12, 17:20] = 1
    cases = five(prediction, reference)
    assert operations(choose_postprocessing(cases, LABELS, num_workers=1)) == [("keep_largest", 1)]
    of_two = [replace(each, patient=f"p{number % 2}") for number, each in enumerate(cases)]
    chosen = choose_postprocessing(of_two, LABELS, num_workers=1)
    assert chosen.steps == ()
    assert any("only 2 patients with it in the reference" in decision.reason for decision in chosen.decisions)
