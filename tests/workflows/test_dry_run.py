"""What a run would take, said beforehand: nothing is written, and the hours that are given are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medseg3d.commandline.cli import main
from medseg3d.options import RunOptions, TrainOptions
from medseg3d.planning.candidates import Speed
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows import dry_run as module
from medseg3d.workflows.dry_run import DryRun, advice, dry_run
from medseg3d.workflows.estimate import fold_estimate, in_words, prediction_seconds
from tests.test_plan import PLAN
from tests.workflows.test_initial_weights import with_folds

SPEED = Speed(device="cpu", multiply_adds=1e10, bytes=1e9, augmented_voxels=1e6)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is known, so that no second is spent on it."""
    monkeypatch.setattr(module, "measured_speed", lambda device: SPEED)


@pytest.fixture(scope="module")
def found(tiny_source: Path) -> DryRun:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "measured_speed", lambda device: SPEED)
        before = sorted(tiny_source.rglob("*"))
        made = dry_run(tiny_source, options=RunOptions(planner=tiny_source / "tiny.toml", hours=2, folds=["0", "1"]))
        assert sorted(tiny_source.rglob("*")) == before, "nothing is written into the dataset"
    return made


def test_the_steps_are_those_of_a_run(found: DryRun) -> None:
    assert [step.name for step in found.steps] == [
        "plan",
        "preprocess",
        "train 3d_fullres fold 0",
        "train 3d_fullres fold 1",
        "validate",
        "predict",
    ]
    assert (found.cases, found.sampled, found.plan.num_training) == (6, 6, 6)
    assert found.steps[-1].what == "2 test cases by 2 networks"
    assert all(step.seconds >= 0 for step in found.steps)
    assert found.steps[1].disk_bytes > 6 * 1000
    assert found.seconds == sum(step.seconds for step in found.steps)


def test_hours_are_the_most_that_training_takes(tiny: Path, found: DryRun, measured: None) -> None:
    assert sum(step.seconds for step in found.steps if step.name.startswith("train")) <= 2 * 3600
    endless = dry_run(tiny, options=RunOptions(planner=tiny / "tiny.toml", epochs=10**6, folds=0))
    assert any("--hours 8 makes all of it fit" in line for line in advice(endless, None))
    assert not any("--hours" in line for line in advice(found, 2))


def test_a_plan_that_is_inherited_is_the_one_that_is_estimated(tiny: Path, measured: None, tmp_path: Path) -> None:
    model = with_folds(tmp_path / "theirs")
    made = dry_run(tiny, options=RunOptions(planner=tiny / "tiny.toml", inherit_plan=model, folds=0)).plan
    assert made.inherits == str(model)
    assert made.configuration(None).patch_size == PLAN.configuration(None).patch_size


def test_members_take_the_place_of_folds(tiny: Path, measured: None) -> None:
    members = dry_run(tiny, options=RunOptions(planner=tiny / "tiny.toml", members=2, epochs=1))
    assert [step.name for step in members.steps if step.name.startswith("train")] == ["train 3d_fullres fold 0", "train 3d_fullres fold 1"]


def test_a_full_disk_is_told_before_the_run(found: DryRun) -> None:
    assert found.fits_disk
    assert not any("-w" in line for line in advice(found, 2))
    full = replace(found, free_bytes=10)
    assert not full.fits_disk
    assert advice(full, 2)[-1].endswith("Name another place with -w.")


def test_an_epoch_that_was_trained_is_the_better_measure(tiny: Path, found: DryRun, tmp_path: Path) -> None:
    configuration, folder = found.plan.configuration("3d_fullres"), WorkFolder(tmp_path)
    options = TrainOptions(fold="0", epochs=100)
    by_rule = fold_estimate(configuration, "0", folder, options, SPEED, hours=None)
    assert (by_rule.epochs, by_rule.epochs_done, by_rule.is_measured) == (100, 0, False)
    twice = fold_estimate(configuration, "0", folder, replace(options, epochs=200), SPEED, hours=None)
    assert twice.seconds == pytest.approx(2 * by_rule.seconds)
    cut = fold_estimate(configuration, "0", folder, replace(options, epochs=10**8), SPEED, hours=2)
    assert (cut.seconds, cut.ends_by_time, by_rule.ends_by_time) == (2 * 3600, True, False)
    assert in_words([cut], "cpu").startswith("1 training of as many epochs as fit on cpu: about 2 h")
    assert in_words([by_rule], "cpu").startswith("1 training of 100 epochs on cpu: about ")


def test_a_finished_fold_is_prolonged_by_a_length_that_is_named(trained: Path) -> None:
    work = WorkFolder(trained / "medseg3d-work")
    configuration = work.read_plan().configuration("3d_fullres")
    over = fold_estimate(configuration, "0", work, TrainOptions(fold="0"), SPEED, hours=None)
    assert (over.seconds, over.epochs_done) == (0, over.epochs)
    longer = fold_estimate(configuration, "0", work, TrainOptions(fold="0", epochs=100), SPEED, hours=None)
    assert longer.epochs_done < longer.epochs == 100
    assert longer.seconds > 0
    assert longer.is_measured


def test_more_cases_and_networks_take_longer(found: DryRun) -> None:
    plan = found.plan
    one = prediction_seconds(plan, plan.configuration("3d_fullres"), SPEED, num_cases=1, num_networks=1)
    assert prediction_seconds(plan, plan.configuration("3d_fullres"), SPEED, num_cases=3, num_networks=5) == pytest.approx(15 * one)


def test_it_is_printed_as_a_table_and_as_a_document(tiny: Path, measured: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", str(tiny), "--planner", str(tiny / "tiny.toml"), "--dry-run"]
    assert main([*words, "--folds", "4"]) == 0
    shown = capsys.readouterr().out
    assert "train 3d_fullres fold 4" in shown
    assert "Nothing was written." in shown
    assert main([*words, "--json", "--folds", "0"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fits_disk"] is True
    assert document["seconds"] == pytest.approx(sum(step["seconds"] for step in document["steps"]))


def test_a_dataset_that_run_would_refuse_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path), "--dry-run"]) == 2
    assert "not a dataset" in capsys.readouterr().err
    assert main(["run", "a", "b", "-w", str(tmp_path), "--dry-run"]) == 2
    assert "--dry-run is for a single dataset" in capsys.readouterr().err
