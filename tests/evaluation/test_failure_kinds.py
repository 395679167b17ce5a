"""Each kind of mistake, made on purpose, is called by its name."""

from __future__ import annotations

import numpy as np
import pytest

from medseg3d.evaluation.failure_kinds import KINDS, Failure, failures_of
from medseg3d.labels import Labels

LABELS = Labels(names=("background", "left", "right", "middle"), values=(0, 5, 6, 9), pairs=((1, 2),))
SPACING = (2.0, 1.0, 1.0)


def reference() -> np.ndarray:
    """A left and a right block, and one off the middle; axes S, A, R."""
    labels = np.zeros((20, 40, 60), np.uint8)
    labels[4:14, 8:20, 5:17] = 5
    labels[4:14, 8:20, 43:55] = 6
    labels[5:15, 24:36, 22:34] = 9
    return labels


def kinds(prediction: np.ndarray, labels: Labels = LABELS) -> dict[str, Failure]:
    found = failures_of(prediction, reference(), labels, spacing=SPACING, tolerance_mm=1.0)
    return {failure.label: failure for failure in found}


def changed(label: int, to: np.ndarray) -> np.ndarray:
    """The reference with the mask ``to`` in the place of a label."""
    predicted = reference()
    predicted[predicted == label] = 0
    predicted[to] = label
    return predicted


def test_a_perfect_prediction_has_no_failure() -> None:
    assert kinds(reference()) == {}


def test_a_label_that_is_nowhere_is_missed_and_one_too_many_is_extra() -> None:
    gone = reference()
    gone[gone == 9] = 0
    assert kinds(gone)["middle"].kind == "missed"
    assert kinds(gone)["middle"].detail == "2.88 ml"
    swapped = failures_of(reference(), gone, LABELS, spacing=SPACING, tolerance_mm=1.0)
    assert [(failure.label, failure.kind) for failure in swapped] == [("middle", "extra")]


def test_sides_that_are_exchanged_are_left_for_right_with_and_without_pairs() -> None:
    exchanged = reference()
    exchanged[reference() == 5], exchanged[reference() == 6] = 6, 5
    assert {failure.kind for failure in kinds(exchanged).values()} == {"left for right"}
    assert kinds(exchanged)["left"].detail == "predicted as right"
    alone = Labels(names=("background", "left"), values=(0, 5))
    one = np.where(reference() == 5, 5, 0)
    (failure,) = failures_of(one[:, :, ::-1], one, alone, spacing=SPACING, tolerance_mm=1.0)
    assert (failure.kind, failure.detail) == ("left for right", "Dice 1.00 when mirrored")


def test_a_label_predicted_as_another_is_told_with_that_label() -> None:
    taken = reference()
    taken[(taken == 9) & (np.arange(20)[:, None, None] < 12)] = 5
    assert kinds(taken)["middle"].kind == "another label"
    assert kinds(taken)["middle"].detail == "predicted as left"


@pytest.mark.parametrize(
    ("step", "axis", "detail"), [(3, 0, "6 mm, mostly to superior"), (-4, 1, "4 mm, mostly to posterior"), (5, 2, "5 mm, mostly to right")]
)
def test_a_shifted_label_is_told_with_its_way(step: int, axis: int, detail: str) -> None:
    found = kinds(changed(9, np.roll(reference() == 9, step, axis)))["middle"]
    assert (found.kind, found.detail) == ("shifted", detail)


def test_a_rim_too_many_is_an_error_of_the_border() -> None:
    from scipy.ndimage import binary_dilation

    assert kinds(changed(9, binary_dilation(reference() == 9)))["middle"].kind == "border"


def test_stray_and_lost_pieces_are_told_from_a_label_that_is_too_large_or_too_small() -> None:
    mask = reference() == 9
    stray = mask.copy()
    stray[0:4, 0:8, 20:40] = True
    assert kinds(changed(9, stray))["middle"].kind == "stray"
    large = mask.copy()
    large[5:15, 24:36, 17:42] = True
    assert kinds(changed(9, large))["middle"].kind == "too large"
    small = mask.copy()
    small[:, :, 22:26] = False
    small[:, 24:29] = False
    assert kinds(changed(9, small))["middle"].kind == "too small"
    two = np.zeros((20, 40, 60), np.uint8)
    two[4:8, 4:8, 4:8] = 9
    two[14:18, 30:36, 40:46] = 9
    (lost,) = failures_of(np.where(np.arange(60) < 20, two, 0), two, LABELS, spacing=SPACING, tolerance_mm=1.0)
    assert lost.kind == "part missed"


def test_the_worst_label_comes_first_and_every_kind_is_described() -> None:
    predicted = reference()
    predicted[predicted == 5] = 0
    predicted[:, 24:29][predicted[:, 24:29] == 9] = 0
    assert [failure.label for failure in kinds(predicted).values()] == ["left", "middle"]
    assert all(failure.kind in KINDS for failure in kinds(predicted).values())
