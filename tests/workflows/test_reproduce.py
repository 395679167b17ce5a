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
from medseg3d.workflows.reproduce import RecordedFold, compared_data, compared_stores, differences, recorded_folds, reproduce
from medseg3d.workflows.run_record import from_anywhere, note_run, read_run


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


@pytest.mark.fault("B", "reproduce: a raw image or a stored case that is damaged by now", "named as another; the rest is compared")
def test_damaged_files_are_named_and_the_rest_is_compared(trained: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "Balls"))
    folder, plan = WorkFolder(root / "medseg3d-work"), WorkFolder(trained / "medseg3d-work").read_plan()
    for compared in (compared_data(folder, root, plan), compared_stores(folder, folder, plan, "3d_fullres")):
        assert (compared.is_same, compared.detail) == (True, "")
    (root / "imagesTr/ball_1_0000.nii.gz").unlink()
    image = folder.store(plan.configuration("3d_fullres").data) / "ball_2/image.b2nd"
    image.write_bytes(image.read_bytes()[:-7])
    assert compared_data(folder, root, plan).detail == "other files of ball_1"
    assert compared_stores(folder, folder, plan, "3d_fullres").detail == "others are ball_2"


@pytest.mark.fault("D", "reproduce from another folder than the training, whose --init was a relative path", "the same weights")
def test_weights_to_begin_with_are_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_anywhere(TrainOptions(fold="0", init=Path("a.medseg3d"))).init == tmp_path / "a.medseg3d"
    for init in (None, Path("shapes")):
        assert from_anywhere(TrainOptions(fold="0", init=init)).init == init
    Path("shapes").mkdir()
    assert from_anywhere(TrainOptions(fold="0", init=Path("shapes"))).init == tmp_path / "shapes"


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
