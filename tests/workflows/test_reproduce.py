"""A run is made again from its record."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from medseg3d.commandline.cli import main
from medseg3d.errors import InputError
from medseg3d.models.checkpoints import load_tensors, save_tensors
from medseg3d.options import ReproduceOptions, TrainOptions
from medseg3d.records import write_record
from medseg3d.training.folds import read_folds
from medseg3d.training.state import read_summary, write_summary
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.reproduce import RecordedFold, differences, recorded_folds, reproduce
from medseg3d.workflows.run_record import note_run, read_run


@pytest.fixture
def fold(trained: Path) -> RecordedFold:
    (found,) = recorded_folds(WorkFolder(trained / "medseg3d-work"), None)
    return found


def test_the_record_of_a_fold_gives_the_options_that_train_it_again(trained: Path, fold: RecordedFold) -> None:
    assert fold.record is not None
    assert fold.record.dataset == str(trained)
    assert fold.record.command.startswith(f"medseg3d train {trained} ")
    assert (fold.options.configuration, fold.options.fold, fold.options.seed, fold.options.device) == ("3d_fullres", "0", 0, "cpu")
    assert (fold.options.epochs, fold.options.iterations, fold.options.batch_size) == (2, 4, fold.state.batch_sizes[0])
    assert sorted(fold.record.data) == ["ball_0", "ball_1", "ball_2", "ball_3"]
    assert fold.doubt == ""


def test_other_versions_and_machines_are_named_once(fold: RecordedFold) -> None:
    assert fold.record is not None
    (then,) = fold.record.environments
    assert list(differences([fold, fold], then)) == []
    now = replace(then, threads=then.threads + 6, versions={**then.versions, "torch": "9.9"})
    assert list(differences([fold, fold], now)) == [
        f"torch: {then.versions['torch']} then, 9.9 now",
        f"threads: {then.threads} then, {then.threads + 6} now",
    ]


def test_a_folder_of_another_run_and_a_missing_dataset_are_refused(trained: Path, tmp_path: Path) -> None:
    work = trained / "medseg3d-work"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/plan.json").write_text("{}", encoding="utf-8")
    for named in (work, trained):  # the dataset's folder stands for the work folder in it
        with pytest.raises(InputError, match="holds another run"):
            reproduce(named, ReproduceOptions(output=tmp_path / "other"))
    with pytest.raises(InputError, match="the dataset of this run is not there"):
        reproduce(work, ReproduceOptions(output=tmp_path / "new", dataset=tmp_path / "nowhere"))


@pytest.mark.slow
def test_a_run_is_the_same_bit_for_bit_and_what_was_changed_is_named(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", str(tiny), "--planner", str(tiny / "tiny.toml"), "-c", "3d_fullres", "--folds", "0", "1", "--device", "cpu", "-q"]
    assert main([*command, "--seed", "3"]) == 0
    work = tiny / "medseg3d-work"
    assert main(["reproduce", str(work), "-o", str(tmp_path / "again")]) == 0
    assert "Everything is the same bit for bit." in capsys.readouterr().out
    weights = WorkFolder(work).weights("3d_fullres", "0")
    tensors, metadata = load_tensors(weights)
    save_tensors(weights, {name: tensor + 1e-3 for name, tensor in tensors.items()}, metadata)
    shutil.rmtree(tmp_path / "again")
    assert main(["reproduce", str(work), "-o", str(tmp_path / "again"), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert [each["what"] for each in found["compared"] if not each["is_same"]] == ["weights of 3d_fullres fold 0"]


def test_a_training_that_goes_on_keeps_what_it_was_begun_with(fold: RecordedFold, tmp_path: Path) -> None:
    assert fold.record is not None
    (environment,) = fold.record.environments
    first = replace(fold.record, options=replace(fold.record.options, epochs=3, seed=5, learning_rate=0.1))
    note_run(tmp_path, first, environment, goes_on=False)
    later = replace(first, command="medseg3d train", options=TrainOptions(iterations=9))
    note_run(tmp_path, later, replace(environment, threads=64), goes_on=True)
    found = read_run(tmp_path)
    assert found is not None
    assert found.options == replace(first.options, iterations=9)
    assert (found.command, [each.threads for each in found.environments]) == (first.command, [environment.threads, 64])


def test_a_member_without_a_record_is_trained_with_the_seed_that_it_had(trained: Path, tmp_path: Path) -> None:
    work = WorkFolder(Path(shutil.copytree(trained / "medseg3d-work", tmp_path / "work")))
    own = work.fold("3d_fullres", "2")
    work.fold("3d_fullres", "0").rename(own)
    (own / "run.json").unlink()
    state = read_summary(own)
    assert state is not None
    write_summary(own, replace(state, seed=7))
    splits = read_folds(work.splits)
    for members, seed in ((3, 5), (0, 7)):  # training adds 2 for the third network
        write_record(work.splits, replace(splits, folds=splits.folds[:1] * 3, members=members), "splits")
        (found,) = recorded_folds(work, None)
        assert (found.record, found.state.seed, found.options.seed) == (None, 7, seed)
