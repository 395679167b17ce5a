"""Options of losses are checked before anything is trained, and a loss is suggested for what a dataset is like."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.errors import PlanError
from medseg3d.plan import LossName
from medseg3d.planning.loss_rules import (
    ELONGATED,
    LOSS_OPTIONS,
    OFTEN_ABSENT,
    SMALL_FOREGROUND,
    TINY_FOREGROUND,
    UNEVEN_LABELS,
    LossFacts,
    check_loss,
    suggest_loss,
)

ORGAN = LossFacts(foreground_share=0.05, label_volume_ratio=4, absent_share=0.0, elongation=2.5)


def test_every_name_of_a_plan_has_its_options():
    assert set(LOSS_OPTIONS) == set(get_args(LossName))


@pytest.mark.parametrize("name", LOSS_OPTIONS)
def test_defaults_are_allowed_and_complete_what_is_given(name):
    defaults = check_loss(name, {})
    assert set(defaults) == set(LOSS_OPTIONS[name])
    assert check_loss(name, defaults) == defaults


def test_a_given_option_stays_beside_the_default_of_the_other():
    assert check_loss("tversky", {"beta": 0.9}) == {"alpha": 0.3, "beta": 0.9}


@given(st.sampled_from([(n, o) for n, table in LOSS_OPTIONS.items() for o in table]), st.floats())
def test_a_value_is_taken_if_and_only_if_it_lies_in_the_range(which, value):
    name, option = which
    rule = LOSS_OPTIONS[name][option]
    if rule.minimum <= value <= rule.maximum and (not rule.is_whole or value.is_integer()):
        assert check_loss(name, {option: value})[option] == value
    else:
        with pytest.raises(PlanError, match=f"Loss {name}: {option} is .* from {rule.minimum:g} to {rule.maximum:g}"):
            check_loss(name, {option: value})


def test_the_message_names_all_findings_and_what_is_allowed():
    with pytest.raises(PlanError) as caught:
        check_loss("tversky", {"alpha": 7.0, "gamma": 2.0})
    assert "alpha is 7.0, must be a number from 0.01 to 1 (weight of false positives)" in str(caught.value)
    assert "no option 'gamma'; it has alpha, beta" in str(caught.value)
    with pytest.raises(PlanError, match="no option 'alpha'; it has none"):
        check_loss("dice_ce", {"alpha": 0.5})
    with pytest.raises(PlanError, match=r"There is no loss 'hinge'\. The losses are dice_ce, "):
        check_loss("hinge", {})


def test_skeletons_take_whole_iterations():
    with pytest.raises(PlanError, match=r"iterations is 2\.5, must be a whole number from 1 to 50"):
        check_loss("cldice", {"iterations": 2.5})


def test_rules_are_read_without_torch():
    code = "import sys, medseg3d.planning.loss_rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "dice_ce"),
        ({"elongation": None}, "dice_ce"),
        ({"elongation": ELONGATED}, "cldice"),
        ({"elongation": 0.99 * ELONGATED}, "dice_ce"),
        ({"foreground_share": TINY_FOREGROUND}, "dice_focal"),
        ({"foreground_share": 1.01 * TINY_FOREGROUND}, "dice_ce"),
        ({"label_volume_ratio": UNEVEN_LABELS}, "dice_focal"),
        ({"label_volume_ratio": 0.99 * UNEVEN_LABELS}, "dice_ce"),
        ({"absent_share": OFTEN_ABSENT}, "dice_ce"),
        ({"absent_share": OFTEN_ABSENT, "foreground_share": SMALL_FOREGROUND}, "dice_focal"),
        ({"absent_share": 0.99 * OFTEN_ABSENT, "foreground_share": SMALL_FOREGROUND}, "dice_ce"),
        ({"elongation": ELONGATED, "foreground_share": TINY_FOREGROUND}, "cldice"),
    ],
)
def test_a_loss_is_suggested_from_its_threshold_on(changed, expected):
    assert suggest_loss(replace(ORGAN, **changed))[0] == expected


@pytest.mark.parametrize(
    ("changed", "numbers"),
    [
        ({}, ("5 %", "4 times", "0 %", "2.5")),
        ({"elongation": 8.25}, ("8.2", "from 6 on")),
        ({"foreground_share": 0.00042}, ("0.042 %", "at most 0.1 %")),
        ({"absent_share": 0.6, "foreground_share": 0.004}, ("60 %", "from 50 % on", "0.4 %", "at most 1 %")),
        ({"label_volume_ratio": 2345.6}, ("2346 times", "from 1000 on")),
    ],
)
def test_the_reason_names_the_numbers_and_the_threshold(changed, numbers):
    reason = suggest_loss(replace(ORGAN, **changed))[1]
    assert [number for number in numbers if number not in reason] == []
    assert reason.endswith(".")


@given(
    st.builds(
        LossFacts,
        foreground_share=st.floats(0, 1),
        label_volume_ratio=st.floats(1, 1e9),
        absent_share=st.floats(0, 1),
        elongation=st.none() | st.floats(1, 100),
    )
)
def test_what_is_suggested_can_be_trained_with(facts):
    name, reason = suggest_loss(facts)
    assert check_loss(name, {}) is not None
    assert reason
