"""The verbs end to end, through the command line, on a tiny dataset."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medseg3d import load_model
from medseg3d.commandline.cli import main
from medseg3d.models.checkpoints import load_tensors
from medseg3d.planning import load_planner
from medseg3d.records import read_record, write_record
from medseg3d.training.state import TrainingState
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.plan import earlier_choices


def test_a_prediction_has_the_grid_and_the_label_values_of_its_dataset(trained: Path, tmp_path: Path) -> None:
    assert main(["predict", str(trained), "-i", str(trained / "imagesTs"), "-o", str(tmp_path / "out"), "-q"]) == 0
    for image_file in sorted((trained / "imagesTs").iterdir()):
        image = nibabel.load(image_file)
        predicted = nibabel.load(tmp_path / "out" / image_file.name.replace("_0000", ""))
        assert predicted.shape == image.shape
        assert np.array_equal(predicted.affine, image.affine)
        assert predicted.header["sform_code"] == image.header["sform_code"]
        assert predicted.header["qform_code"] == image.header["qform_code"]
        assert set(np.unique(predicted.dataobj)) <= {0, 3, 7}


def test_the_python_interface_gives_the_same_voxels_as_the_command_line(trained: Path, tmp_path: Path) -> None:
    image_file = next(iter(sorted((trained / "imagesTs").iterdir())))
    assert main(["predict", str(trained), "-i", str(image_file), "-o", str(tmp_path / "one.nii.gz"), "-q"]) == 0
    image = nibabel.load(image_file)
    array = np.asarray(image.dataobj)
    before = array.copy()
    model = load_model(trained)
    labels = model.predict(array, image.affine)
    assert np.array_equal(labels, np.asarray(nibabel.load(tmp_path / "one.nii.gz").dataobj))
    assert np.array_equal(array, before), "the input is never modified"


def test_predictions_of_the_same_model_are_kept_and_foreign_files_are_not_overwritten(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["predict", str(trained), "-i", str(trained / "imagesTs"), "-o", str(out), "--json"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["written"] == []
    assert len(again["kept"]) == 2
    (out / "predictions.json").unlink()
    assert main(command) == 2
    assert "--overwrite" in json.loads(capsys.readouterr().out)["message"]
    assert main([*command, "--overwrite"]) == 0


def test_probabilities_sum_to_one_and_agree_with_the_label_map(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["predict", str(trained), "-i", str(trained / "imagesTs"), "-o", str(out), "--probabilities", "-q"]) == 0
    with np.load(out / "ball_6.npz") as file:
        probabilities, values = file["probabilities"].astype(np.float32), file["values"]
    labels = np.asarray(nibabel.load(out / "ball_6.nii.gz").dataobj)
    assert probabilities.shape == (3, *labels.shape)
    assert np.allclose(probabilities.sum(0), 1, atol=5e-3)
    top_two = np.sort(probabilities, 0)[-2:]
    clear = top_two[1] - top_two[0] > 2e-3  # float16 rounds closer ones together
    assert clear.mean() > 0.5
    assert np.array_equal(values[probabilities.argmax(0)][clear], labels[clear])


def test_the_validation_of_a_fold_measures_its_cases(trained: Path) -> None:
    folder = trained / "medseg3d-work/models/3d_fullres/fold_0"
    splits = json.loads((trained / "medseg3d-work/splits.json").read_text(encoding="utf-8"))
    metrics = json.loads((folder / "validation/metrics.json").read_text(encoding="utf-8"))
    assert sorted(case["case"] for case in metrics["cases"]) == sorted(splits["folds"][0]["validation"])
    assert (folder / "progress.png").stat().st_size > 1000
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["epoch"] for line in history] == [0, 1]
    assert history[1]["learning_rate"] < history[0]["learning_rate"]


def test_a_stopped_run_continues_to_the_same_bits(tiny: Path, trained: Path) -> None:
    """SIGTERM in the middle of an epoch; the continued run ends with the weights of the uninterrupted one."""
    work = tiny / "medseg3d-work"
    shutil.copytree(trained / "medseg3d-work", work)
    shutil.rmtree(work / "models")
    words = ["--fold", "0", "--device", "cpu", "--iterations", "20"]
    whole = Path(shutil.copytree(tiny, tiny.parent / "whole"))
    assert main(["train", str(whole), *words, "-q"]) == 0
    command = [sys.executable, "-m", "medseg3d", "train", str(tiny), *words, "--json"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}  # bits depend on threads
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    fold = work / "models/3d_fullres/fold_0"
    deadline = time.monotonic() + 120
    while not (fold / "history.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == json.loads(printed)["exit_code"] == 128 + signal.SIGTERM
    assert (fold / "weights.safetensors").exists(), "there is a usable model at any stop"
    assert main(["train", str(tiny), *words, "-q"]) == 0
    expected, _ = load_tensors(whole / "medseg3d-work/models/3d_fullres/fold_0/last.safetensors")
    found, _ = load_tensors(fold / "last.safetensors")
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)


def test_run_ends_with_a_report_and_repeats_nothing(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(tiny), "--planner", str(tiny / "tiny.toml"), "--folds", "0", "--device", "cpu", "--json"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    page = Path(result["report"])
    assert "Balls" in page.read_text(encoding="utf-8")
    assert "data:image/png" in page.read_text(encoding="utf-8")
    assert result["test"]["num_cases"] == 2
    weights = tiny / "medseg3d-work/models/3d_fullres/fold_0/weights.safetensors"
    stamps = weights.stat().st_mtime_ns, (tiny / "medseg3d-work/predictions/ball_6.nii.gz").stat().st_mtime_ns
    assert main(command) == 0
    assert stamps == (weights.stat().st_mtime_ns, (tiny / "medseg3d-work/predictions/ball_6.nii.gz").stat().st_mtime_ns)


def test_two_configurations_are_selected_from_with_their_pair(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "run",
        str(tiny),
        "--planner",
        str(tiny / "tiny.toml"),
        "--folds",
        "0",
        "--device",
        "cpu",
        "-c",
        "2d",
        "3d_fullres",
        "--json",
    ]
    assert main(command) == 0
    selection = json.loads(capsys.readouterr().out)["selection"]
    assert {tuple(candidate["configurations"]) for candidate in selection["candidates"]} == {
        ("2d",),
        ("3d_fullres",),
        ("2d", "3d_fullres"),
    }


def test_evaluate_of_the_references_with_themselves_is_perfect(
    tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = str(tiny_source / "labelsTr")
    assert main(["evaluate", labels, labels, "-o", str(tmp_path / "metrics.json"), "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out)
    assert evaluation["foreground_dice"]["mean"] == 1.0
    assert (tmp_path / "metrics.csv").exists()


def test_all_cases_can_be_trained_on_without_validation(trained: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "Balls"))
    assert main(["train", str(root), "--fold", "all", "--device", "cpu", "-q"]) == 0
    assert main(["predict", str(root), "-i", str(root / "imagesTs"), "-o", str(tmp_path / "out"), "--fold", "all", "-q"]) == 0


def retrained(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def test_changed_folds_are_not_mixed_with_an_older_training(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = retrained(trained, tmp_path)
    file = root / "medseg3d-work/splits.json"
    splits = json.loads(file.read_text(encoding="utf-8"))
    splits["folds"][0], splits["folds"][1] = splits["folds"][1], splits["folds"][0]
    file.write_text(json.dumps(splits), encoding="utf-8")
    assert main(["train", str(root), "--fold", "0", "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert "cases of the fold changed" in message
    assert "--restart" in message
    assert main(["select", str(root), "--device", "cpu"]) == 2, "measures of an older fold must not be chosen by"
    assert "--restart" in capsys.readouterr().err


def test_a_new_case_joins_the_folds_and_a_removed_one_leaves_them(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = retrained(trained, tmp_path)
    for kind in ("imagesTr/ball_{}_0000.nii.gz", "labelsTr/ball_{}.nii.gz"):
        shutil.copy(root / kind.format(1), root / kind.format(9))
        (root / kind.format(0)).unlink()
    assert main(["plan", str(root), "--planner", str(root / "tiny.toml")]) == 0
    printed = capsys.readouterr()
    assert "ball_9" in printed.out + printed.err
    splits = json.loads((root / "medseg3d-work/splits.json").read_text(encoding="utf-8"))["folds"]
    assert {name for split in splits for name in split["validation"]} == {f"ball_{k}" for k in (1, 2, 3, 4, 5, 9)}


def test_a_fold_that_was_stopped_is_left_out_of_the_ensemble(trained: Path, tmp_path: Path) -> None:
    root = retrained(trained, tmp_path)
    folder = root / "medseg3d-work/models/3d_fullres"
    shutil.copytree(folder / "fold_0", folder / "fold_1")
    state = read_record(folder / "fold_1/training.json", TrainingState, "training")
    write_record(folder / "fold_1/training.json", replace(state, is_finished=False), "training", is_sealed=True)
    assert len(load_model(root).members[0].networks) == 1
    assert len(load_model(root, folds=["0", "1"]).members[0].networks) == 2
    (folder / "fold_0/weights.safetensors").unlink()
    assert len(load_model(root).members[0].networks) == 1, "better an unfinished one than none"


def test_a_validation_case_that_cannot_be_read_does_not_stop_the_others(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = retrained(trained, tmp_path)
    splits = json.loads((root / "medseg3d-work/splits.json").read_text(encoding="utf-8"))["folds"]
    bad, *others = splits[0]["validation"]
    (root / f"imagesTr/{bad}_0000.nii.gz").write_bytes(b"no image")
    assert main(["train", str(root), "--fold", "0", "--device", "cpu", "--validate"]) == 3
    assert bad in capsys.readouterr().err
    metrics = json.loads((root / "medseg3d-work/models/3d_fullres/fold_0/validation/metrics.json").read_text(encoding="utf-8"))
    assert [case["case"] for case in metrics["cases"]] == sorted(others)
    shutil.copy(trained / f"imagesTr/{bad}_0000.nii.gz", root / f"imagesTr/{bad}_0000.nii.gz")
    assert main(["train", str(root), "--fold", "0", "--device", "cpu", "-q"]) == 0, "a repaired case is validated without being asked"
    metrics = json.loads((root / "medseg3d-work/models/3d_fullres/fold_0/validation/metrics.json").read_text(encoding="utf-8"))
    assert [case["case"] for case in metrics["cases"]] == sorted([bad, *others])


def test_single_outputs_in_one_folder_are_told_apart_by_their_file(trained: Path, tmp_path: Path) -> None:
    images = sorted((trained / "imagesTs").iterdir())
    for folder, image in zip(("A", "B"), images, strict=True):
        (tmp_path / folder).mkdir()
        shutil.copy(image, tmp_path / folder / "ct.nii.gz")
        command = ["predict", str(trained), "-i", str(tmp_path / folder / "ct.nii.gz"), "-o", str(tmp_path / f"out/{folder}.nii.gz"), "-q"]
        assert main([*command, "--probabilities"]) == 0
    record = json.loads((tmp_path / "out/predictions.json").read_text(encoding="utf-8"))
    assert sorted(record["cases"]) == ["A.nii.gz", "B.nii.gz"]
    assert main([*command, "--overwrite", "--step", "1"]) == 0
    assert not (tmp_path / "out/B.npz").exists(), "probabilities of an earlier call must not stay beside new labels"
    assert (tmp_path / "out/A.npz").exists()


def test_run_keeps_the_choices_of_an_earlier_plan(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny), "--planner", "small", "--gpu-memory", "3", "-q"]) == 0
    rules, memory, channels = earlier_choices(WorkFolder(tiny / "medseg3d-work"), None, None)
    assert (rules, memory, channels) == (load_planner("small"), 3.0, ("MRI",))
    file = tiny / "tiny.toml"
    assert main(["plan", str(tiny), "--planner", str(file), "-q"]) == 0
    kept = load_planner(str(file))
    file.unlink()  # its numbers stand in the work folder
    assert main(["plan", str(tiny), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["planner"] == "tiny"
    assert earlier_choices(WorkFolder(tiny / "medseg3d-work"), None, None)[0] == kept


def test_a_finished_fold_is_not_trained_on_by_a_call_that_names_no_length(trained: Path, tmp_path: Path) -> None:
    root = retrained(trained, tmp_path)
    file = root / "medseg3d-work/plan.json"
    fold = root / "medseg3d-work/models/3d_fullres/fold_0"
    assert main(["train", str(root), "--fold", "0", "--device", "cpu", "--epochs", "3", "-q"]) == 0
    stamp = (fold / "last.safetensors").stat().st_mtime_ns
    assert json.loads(file.read_text(encoding="utf-8"))["configurations"]["3d_fullres"]["training"]["epochs"] == 2
    assert main(["train", str(root), "--fold", "0", "--device", "cpu", "-q"]) == 0
    assert (fold / "last.safetensors").stat().st_mtime_ns == stamp
    assert len((fold / "history.jsonl").read_text(encoding="utf-8").splitlines()) == 3
