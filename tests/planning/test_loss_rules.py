"""A loss is suggested for what a dataset is like."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.losses import check_loss
from medseg3d.planning.loss_rules import (
    ELONGATED,
    MANY_COMPONENTS,
    OFTEN_ABSENT,
    SMALL_FOREGROUND,
    TINY_FOREGROUND,
    UNEVEN_LABELS,
    LossFacts,
    suggest_loss,
)

ORGAN = LossFacts(foreground_share=0.05, label_volume_ratio=4, absent_share=0.0, elongation=2.5)


def test_rules_are_read_without_torch():
    code = "import sys, medseg3d.planning.loss_rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "dice_ce"),
        ({"elongation": None}, "dice_ce"),
        ({"elongation": ELONGATED}, "skeleton_recall"),
        ({"components": MANY_COMPONENTS}, "cc_dice_ce"),
        ({"elongation": 0.99 * ELONGATED}, "dice_ce"),
        ({"foreground_share": TINY_FOREGROUND}, "dice_focal"),
        ({"foreground_share": 1.01 * TINY_FOREGROUND}, "dice_ce"),
        ({"label_volume_ratio": UNEVEN_LABELS}, "dice_focal"),
        ({"label_volume_ratio": 0.99 * UNEVEN_LABELS}, "dice_ce"),
        ({"absent_share": OFTEN_ABSENT}, "dice_ce"),
        ({"absent_share": OFTEN_ABSENT, "foreground_share": SMALL_FOREGROUND}, "dice_focal"),
        ({"absent_share": 0.99 * OFTEN_ABSENT, "foreground_share": SMALL_FOREGROUND}, "dice_ce"),
        ({"elongation": ELONGATED, "foreground_share": TINY_FOREGROUND}, "skeleton_recall"),
        ({"components": MANY_COMPONENTS, "foreground_share": TINY_FOREGROUND}, "cc_dice_ce"),
    ],
)
def test_a_loss_is_suggested_from_its_threshold_on(changed, expected):
    assert suggest_loss(replace(ORGAN, **changed))[0] == expected


@pytest.mark.parametrize(
    ("changed", "numbers"),
    [
        ({}, ("5 %", "4 times", "0 %", "2.5")),
        ({"elongation": 8.25}, ("8.2", "from 6 on")),
        ({"components": 31.0}, ("in 31 pieces", "from 5 on")),
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
        components=st.floats(0, 1000),
    )
)
def test_what_is_suggested_can_be_trained_with(facts):
    name, reason = suggest_loss(facts)
    assert check_loss(name, {}) is not None
    assert reason
