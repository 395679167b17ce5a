"""Before and after on the same cases: what is paired, and what counts once."""

from __future__ import annotations

import numpy as np
import pytest

from medseg3d.evaluation.evaluate_case import evaluate_case
from medseg3d.evaluation.metrics import Evaluation, summarize_cases
from medseg3d.labels import Labels
from medseg3d.validation.corrected import change_of

LABELS = Labels(names=("background", "ball", "cube"), values=(0, 1, 2))


def evaluation(dice: dict[str, float]) -> Evaluation:
    """Cases whose ball has about this Dice, and no cube."""
    cases = []
    for name, value in dice.items():
        reference, predicted = np.zeros((1, 1, 100), np.uint8), np.zeros((1, 1, 100), np.uint8)
        reference[..., :50] = 1
        predicted[..., round(50 * (1 - value)) : round(50 * (1 - value)) + 50] = 1
        cases.append(evaluate_case(predicted, reference, spacing=(1, 1, 1), labels=LABELS, name=name))
    return summarize_cases(cases, tolerance_mm=1.0)


def test_folds_are_put_together_and_only_common_cases_count() -> None:
    before = {"0": evaluation({"a": 0.6, "b": 0.8}), "1": evaluation({"c": 0.5})}
    after = {"0": evaluation({"a": 0.8, "b": 0.7, "new": 0.1}), "1": evaluation({"c": 0.9})}
    change = change_of("3d", before, after)
    assert change.cases == ("a", "b", "c")
    assert change.difference.mean == pytest.approx((0.2 - 0.1 + 0.4) / 3)
    assert change.labels == {"ball": pytest.approx(change.difference.mean), "cube": None}
    assert [case for case, _ in change.worst] == ["b"]
    assert change.verdict == "too few cases"


def test_networks_that_share_their_cases_make_no_further_cases() -> None:
    cases = {f"case_{number}": 0.5 for number in range(6)}
    before = {"0": evaluation(cases), "1": evaluation(dict.fromkeys(cases, 0.7))}
    after = {"0": evaluation(dict.fromkeys(cases, 0.7)), "1": evaluation(dict.fromkeys(cases, 0.9))}
    change = change_of("3d", before, after)
    assert (change.before.n, change.before.mean, change.after.mean) == (6, pytest.approx(0.6), pytest.approx(0.8))
    assert (change.difference.low, change.difference.high) == (pytest.approx(0.2), pytest.approx(0.2))
    assert change.verdict == "better"


def test_many_images_of_few_patients_allow_no_verdict() -> None:
    before = {"0": evaluation({f"case_{number}": 0.5 for number in range(8)})}
    after = {"0": evaluation({f"case_{number}": 0.7 for number in range(8)})}
    assert change_of("3d", before, after).verdict == "better"
    patients = {f"case_{number}": f"p{number % 2}" for number in range(8)}
    assert change_of("3d", before, after, patients=patients).verdict == "too few cases"
