"""How long work will go on, from what a listener hears."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.events import Event
from medseg3d.pace import MOST_MARKS, Meter, Pace


@given(total=st.integers(3, 400), pace=st.floats(0.7, 50.0), share=st.floats(0.2, 0.99))
def test_even_work_ends_when_it_is_said_to(total: int, pace: float, share: float) -> None:
    meter, done = Meter(), max(2, int(share * total))
    for number in range(done + 1):
        meter.note(number * pace, number / total)
    left = meter.left(done * pace)
    if done * pace < 2:
        assert left is None
    else:
        assert left == pytest.approx((total - done) * pace, rel=1e-6, abs=1e-6)


def test_a_slow_beginning_is_forgotten() -> None:
    meter = Meter()
    meter.note(0, 0)
    meter.note(100, 0.01)  # the first step of a hundred took as long as all others will
    for number in range(2, 60):
        meter.note(100 + 10 * number, number / 100)
    assert meter.left(690) == pytest.approx(410, rel=0.05)


def test_nothing_is_said_before_there_is_something_to_go_by() -> None:
    meter = Meter()
    assert meter.left(5) is None
    meter.note(0, 0.3)
    meter.note(60, 0.3)
    assert meter.left(60) is None


def test_while_nothing_is_heard_the_time_goes_on_to_zero() -> None:
    meter = Meter()
    for number in range(11):
        meter.note(number, number / 20)
    assert [meter.left(now) for now in (10, 14, 40)] == [10, 6, 0]


def test_a_long_work_is_remembered_in_few_marks() -> None:
    meter = Meter()
    for number in range(10_000):
        meter.note(number, number / 20_000)
    assert len(meter._marks) <= MOST_MARKS
    assert meter.left(9_999) == pytest.approx(10_001, rel=0.01)


def test_a_stage_and_the_whole_have_paces_of_their_own() -> None:
    now = 0.0
    pace = Pace(clock=lambda: now)
    for step in range(101):  # an epoch of 100 steps, of two epochs, of one of two folds
        pace.listen(Event(stage="train 2d fold 0, epoch 0", done=step, total=100, overall=step / 400))
        now += 1
    now -= 1
    assert (pace.stage_left, pace.all_left) == (pytest.approx(0), pytest.approx(300))
    pace.listen(Event(stage="train", message="epoch 0"))
    assert pace.overall == 0.25
    pace.listen(Event(stage="validate", total=5))
    assert (pace.overall, pace.all_left) == (None, None)
