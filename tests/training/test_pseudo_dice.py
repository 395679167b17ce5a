"""The smoothed pseudo-Dice follows the curve that it smooths, from the first epoch on."""

from __future__ import annotations

import numpy as np
import pytest

from medseg3d.devices import Precision
from medseg3d.records import from_plain, to_plain
from medseg3d.training.pseudo_dice import Smoothed, smoothed
from medseg3d.training.state import TrainingState


def over(values: list[float], start: Smoothed | None = None) -> list[float]:
    found, now = [], start
    for value in values:
        now = smoothed(now, value)
        found.append(now.value)
    return found


@pytest.mark.fault("E", "best pseudo-Dice far below the end of the curve", "the smoothed value is corrected for the bias of its start")
def test_the_first_epoch_does_not_weigh_more_than_the_others() -> None:
    curve = [0.1, *[0.845] * 9]
    naive = curve[0]
    for value in curve[1:]:
        naive = 0.9 * naive + 0.1 * value
    weights = 0.9 ** np.arange(len(curve))[::-1]
    expected = float(np.average(curve, weights=weights))
    assert over(curve)[-1] == pytest.approx(expected)
    assert naive < 0.6 < 0.79 < expected


def test_a_constant_curve_is_its_own_mean() -> None:
    assert over([0.5] * 20) == pytest.approx([0.5] * 20)


def test_a_run_of_before_the_correction_goes_on_with_the_same_bits() -> None:
    precision: Precision = "float32"
    state = TrainingState(
        configuration="c", fold="0", seed=0, epochs=9, iterations_per_epoch=1, hours=None, batch_sizes=(2,), precision=precision,
        plan_digest="", smoothed=0.3,
    )  # fmt: skip
    plain = to_plain(state)
    del plain["smoothed_weight"]
    old = from_plain(plain, TrainingState, "training.json")
    (value,) = over([0.7], old.smoothed_dice)
    assert value == 0.9 * 0.3 + (1 - 0.9) * 0.7
