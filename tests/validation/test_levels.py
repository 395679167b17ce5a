"""Which level of a network predicts: the smallest that loses little, and the whole network where little is known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.errors import InputError
from medseg3d.records import from_plain, to_plain
from medseg3d.validation.levels import MIN_CASES, MIRRORED, PLAIN, TOLERANCE, FoldLevels, LevelChoice, LevelScore, choose_level


def fold(*dice: list[float | None], way: str = MIRRORED, first: int = 0) -> FoldLevels:
    """A fold whose levels have these Dice per case, each taking twice the time of the one before."""
    scores = [
        LevelScore(
            level=level,
            dice={way: {f"case_{first + number}": value for number, value in enumerate(values)}},
            seconds_per_window=2.0**level,
        )
        for level, values in enumerate(dice, start=1)
    ]
    return FoldLevels(scores=tuple(scores), device="cpu", precision="float32")


def chosen(*folds: FoldLevels, is_mirrored: bool = True) -> LevelChoice:
    found = choose_level(folds, is_mirrored=is_mirrored)
    assert found is not None
    return found


dice_of_levels = st.integers(2, 5).flatmap(
    lambda count: st.lists(st.lists(st.floats(0, 1), min_size=count, max_size=count), min_size=MIN_CASES, max_size=8)
)


@given(dice_of_levels)
def test_the_chosen_level_is_the_smallest_within_the_tolerance_of_the_best(cases: list[list[float]]) -> None:
    levels = [list(each) for each in zip(*cases, strict=True)]
    choice = chosen(fold(*levels))
    means = [sum(values) / len(values) for values in levels]
    assert [row.dice for row in choice.rows] == pytest.approx(means)
    fitting = [level for level, mean in enumerate(means, start=1) if mean >= max(means) - TOLERANCE]
    assert choice.level == fitting[0]


def test_with_few_cases_the_whole_network_predicts() -> None:
    values = [0.9] * (MIN_CASES - 1)
    choice = chosen(fold(values, values))
    assert choice.level == choice.deepest == 2
    assert "cases are validated" in choice.reason


def test_cases_of_all_folds_count_alike() -> None:
    worse, better = fold([0.5] * 5, [0.6] * 5), fold([0.9] * 20, [0.9] * 20, first=5)
    assert chosen(worse).level == 2
    assert chosen(worse, better).rows[0].dice == pytest.approx((5 * 0.5 + 20 * 0.9) / 25)


def test_a_case_that_is_empty_for_both_counts_as_right() -> None:
    choice = chosen(fold([None] * 5, [1.0] * 5))
    assert choice.rows[0].dice == 1.0
    assert choice.level == 1


def test_the_speed_up_is_that_of_a_window() -> None:
    choice = chosen(fold([0.9] * 5, [0.9] * 5, [0.9] * 5))
    assert choice.level == 1
    assert choice.speed_up == pytest.approx(4.0)
    assert "4.0 times as fast as L3" in choice.reason


def test_levels_count_in_the_way_that_is_used_where_both_are_known() -> None:
    both = fold([0.9] * 5, [0.9] * 5)
    plain = fold([0.1] * 5, [0.9] * 5, way=PLAIN)
    scores = tuple(replace(one, dice={**one.dice, **other.dice}) for one, other in zip(both.scores, plain.scores, strict=True))
    folds = replace(both, scores=scores)
    assert chosen(folds, is_mirrored=True).level == 1
    assert chosen(folds, is_mirrored=False).level == 2
    assert chosen(both, is_mirrored=False).level == 1  # evaluated one way only


def test_nothing_is_chosen_where_a_fold_is_not_known() -> None:
    assert choose_level([fold([0.9] * 5, [0.9] * 5), None], is_mirrored=True) is None
    assert choose_level([fold([0.9] * 5, [0.9] * 5), fold([0.9] * 5, [0.9] * 5, [0.9] * 5)], is_mirrored=True) is None
    assert choose_level([], is_mirrored=True) is None


def test_a_choice_is_read_as_it_was_written_and_one_that_cannot_be_is_refused() -> None:
    choice = chosen(fold([0.9] * 5, [0.9] * 5))
    plain = to_plain(choice)
    assert from_plain(plain, LevelChoice, "x") == choice
    with pytest.raises(InputError, match=r"level is 7, expected one of \[1, 2\]"):
        from_plain({**plain, "level": 7}, LevelChoice, "x")


def test_intervals_of_patients_are_those_of_their_images_together() -> None:
    generator = random.Random(0)
    levels = [[generator.random() for _ in range(10)] for _ in range(2)]
    found = fold(*levels)
    patients = {f"case_{number}": f"p{number // 2}" for number in range(10)}
    by_case, by_patient = (choose_level([found], is_mirrored=True, patients=each) for each in ({}, patients))
    assert by_case is not None
    assert by_patient is not None
    one, other = (next(row.loss for row in each.rows if row.loss is not None) for each in (by_case, by_patient))
    assert one.mean == pytest.approx(other.mean)
    assert (one.low, one.high) != (other.low, other.high)
