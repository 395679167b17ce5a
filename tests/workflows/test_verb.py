"""Verbs take a record of options, or its fields by name."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import medseg3d
from medseg3d.errors import InputError
from medseg3d.events import Listener, silent
from medseg3d.options import RunOptions, TrainingOptions, TrainOptions, fields_of
from medseg3d.workflows.run import RunResult
from medseg3d.workflows.verb import verb

Call = tuple[Path, Path | None, TrainingOptions, Listener]


@verb(TrainingOptions)
def do(root: Path, work: Path | None, options: TrainingOptions, on: Listener) -> Call:
    """What it was called with."""
    return root, work, options, on


def test_a_verb_takes_a_record_or_its_fields() -> None:
    assert do("data") == (Path("data"), None, TrainingOptions(), silent)
    assert do("data", "work", TrainingOptions(hours=2)) == do(Path("data"), Path("work"), hours=2)


def test_fields_by_name_replace_those_of_the_record() -> None:
    assert do("data", options=TrainingOptions(hours=2, epochs=3), epochs=4)[2] == TrainingOptions(hours=2, epochs=4)


def test_fields_are_checked() -> None:
    with pytest.raises(InputError, match="--hours -1"):
        do("data", hours=-1)


def test_an_unknown_keyword_is_told_as_of_the_function_that_was_called() -> None:
    with pytest.raises(TypeError, match=r"^do\(\) got an unexpected keyword argument 'hour'\. Did you mean 'hours'\?$"):
        do("data", hour=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^do\(\) got an unexpected keyword argument 'zzz'; it takes seed, "):
        do("data", options=TrainingOptions(), zzz=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^do\(\) takes .* by place; give options by name$"):
        do("data", None, None, silent, 1)  # type: ignore[call-arg]


def test_help_shows_every_option_of_a_verb() -> None:
    parameters = inspect.signature(medseg3d.run).parameters
    assert list(parameters)[:4] == ["dataset", "work", "options", "on"]
    assert {field.name for field in fields_of(TrainingOptions)} <= parameters.keys()
    assert parameters["hours"].annotation == float | None
    assert parameters["options"].annotation == RunOptions | None
    assert parameters["seed"].default == 0
    assert inspect.signature(medseg3d.run).return_annotation is RunResult
    assert all(each.annotation is not inspect.Parameter.empty and not isinstance(each.annotation, str) for each in parameters.values())


def test_the_record_of_training_has_what_train_takes() -> None:
    assert {field.name for field in fields_of(TrainOptions)} > {field.name for field in fields_of(TrainingOptions)}
