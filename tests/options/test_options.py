"""Records of options: ranges, what excludes each other, and one record from another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from medseg3d import options
from medseg3d.errors import InputError
from medseg3d.options import FindLrOptions, Options, OutputOptions, PlanOptions, PredictOptions, RunOptions, TrainOptions, fields_of

RECORDS = [record for name in options.__all__ if isinstance(record := getattr(options, name), type) and issubclass(record, Options)]


@pytest.mark.parametrize(
    ("record", "wrong", "message"),
    [
        (TrainOptions, {"hours": 0}, "--hours 0: expected a number above 0, without a unit"),
        (TrainOptions, {"hours": float("nan")}, "--hours nan: expected a number above 0"),
        (TrainOptions, {"hours": "2"}, "--hours 2: expected a number"),
        (TrainOptions, {"epochs": 2.5}, "--epochs 2.5: expected a whole number of at least 1"),
        (TrainOptions, {"epochs": True}, "--epochs True: expected a whole number"),
        (TrainOptions, {"seed": -1}, "--seed -1: expected a whole number of at least 0"),
        (TrainOptions, {"tta": "maybe"}, "--tta maybe: expected auto, on or off"),
        (TrainOptions, {"restart": "yes"}, "--restart yes: expected True or False"),
        (PredictOptions, {"step": 1.5}, "--step-size 1.5: expected a number above 0 and up to 1"),
        (PredictOptions, {"part": (3, 2)}, "--part 3/2: expected two numbers such as 2/8, the first from 1 to the second"),
        (PredictOptions, {"flips": ("R",), "tta": "off"}, "--flips and --tta off: give at most one of them"),
        (PredictOptions, {"whole_image": True, "step": 0.3}, "--whole-image and --step-size: without windows"),
        (PredictOptions, {"whole_image": True, "skip_empty": True}, "--whole-image and --skip-empty: without windows"),
        (PredictOptions, {"scales": (1.0, 1.0)}, "--scales 1 1: each size once"),
        (PredictOptions, {"folds": ["0", 1.5]}, "--fold 1.5: expected a text"),
        (RunOptions, {"jobs": 0}, "--jobs 0: expected a whole number of at least 1"),
        (RunOptions, {"no_groups": True, "groups": "groups.csv"}, "--groups and --no-groups: give at most one of them"),
        (OutputOptions, {"extensions": (3,)}, "--extension 3: expected a path"),
    ],
)
def test_a_record_refuses_what_cannot_be(record: type[Options], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        record(**wrong)


def test_values_in_their_range_stay_as_they_are() -> None:
    chosen = RunOptions(hours=2, channels="CT", folds=[0, "all"], groups=Path("groups.csv"), device="cuda:1")
    assert (chosen.hours, chosen.channels, chosen.folds, chosen.groups) == (2, "CT", [0, "all"], Path("groups.csv"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_option_says_what_it_means_and_has_a_default_in_its_range(record: type[Options]) -> None:
    record()
    flags = [flag for field in fields_of(record) for flag in field.option.flags.split()]
    assert len(flags) == len(set(flags))
    for field in fields_of(record):
        assert field.option.help
        assert field.default == getattr(record(), field.name)


def test_the_chain_takes_every_option_of_planning_and_training() -> None:
    names = {field.name for field in fields_of(RunOptions)}
    assert {field.name for field in fields_of(PlanOptions)} - {"with_candidates", "real_time"} <= names
    assert {field.name for field in fields_of(options.TrainingOptions)} <= names


def test_a_record_is_made_from_the_fields_of_another() -> None:
    run = RunOptions(hours=6, seed=3, restart=True, batch_size=4, device="cpu")
    assert TrainOptions.of(run, fold="1", hours=2) == TrainOptions(hours=2, seed=3, restart=True, batch_size=4, device="cpu", fold="1")
    assert FindLrOptions.of(run) == FindLrOptions(seed=3, batch_size=4, device="cpu")


def test_a_fold_may_be_written_as_a_number() -> None:
    assert TrainOptions(fold=0) == TrainOptions(fold="0")  # type: ignore[arg-type]
