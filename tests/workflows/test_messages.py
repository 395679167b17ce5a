"""Wrong input: one message that names what was found and what to do, exit code 2 or 3, nothing lost."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medseg3d import load_model
from medseg3d.commandline.cli import main
from medseg3d.errors import ChannelCountError


def message_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def rewrite(path: Path, *, change: object = None, affine: np.ndarray | None = None) -> None:
    image = nibabel.load(path)
    array = np.asarray(image.dataobj).astype(np.float32)
    if change is not None:
        array = change(array)  # type: ignore[operator]
    nibabel.save(nibabel.Nifti1Image(array, image.affine if affine is None else affine), path)


def with_nan(array: np.ndarray) -> np.ndarray:
    array[0, 0, 0] = np.nan
    return array


def deny(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No file of this name can be opened; root, who runs tests in containers, may read files of every mode."""
    usual = Path.open

    def opened(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return usual(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", opened)


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path / "nothing")]) == 2
    assert "nothing" in message_of(capsys)


def test_a_folder_without_images_says_what_is_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path)]) == 2
    assert "imagesTr" in message_of(capsys)


def test_images_without_labels_are_all_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny / "labelsTr/ball_0.nii.gz").unlink()
    (tiny / "labelsTr/ball_3.nii.gz").unlink()
    assert main(["plan", str(tiny)]) == 3
    message = message_of(capsys)
    assert "ball_0 (files): image without a label" in message
    assert "ball_3 (files): image without a label" in message


def test_label_values_outside_the_list_are_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(tiny / "labelsTr/ball_1.nii.gz", change=lambda a: np.where(a == 7, 9, a))
    assert main(["plan", str(tiny)]) == 3
    message = message_of(capsys)
    assert "ball_1" in message
    assert "9" in message


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: rewrite(root / "imagesTr/ball_2_0000.nii.gz", change=with_nan), "NaN"),
        (lambda root: rewrite(root / "labelsTr/ball_2.nii.gz", affine=np.diag([1, 1, 2.5, 1])), "mm"),
        (
            lambda root: (root / "imagesTr/ball_2_0000.nii.gz").write_bytes((root / "imagesTr/ball_2_0000.nii.gz").read_bytes()[:900]),
            "cut off",
        ),
    ],
    ids=["nan voxels", "another grid", "truncated gzip"],
)
def test_a_broken_case_is_listed_and_the_others_go_on(
    tiny: Path, capsys: pytest.CaptureFixture[str], damage: object, expected: str
) -> None:
    damage(tiny)  # type: ignore[operator]
    code = main(["plan", str(tiny), "--planner", str(tiny / "tiny.toml"), "--json"])
    out = capsys.readouterr()
    assert code == 3
    assert "ball_2" in out.out + out.err
    assert expected in out.out + out.err
    assert main(["preprocess", str(tiny), "-q"]) == 3
    message = message_of(capsys)
    assert "ball_2" in message
    stored = {path.name for path in (tiny / "medseg3d-work/preprocessed").glob("*/ball_*")}
    assert stored == {f"ball_{k}" for k in (0, 1, 3, 4, 5)}


def test_a_4d_image_is_refused_where_3d_is_expected(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 18, 12, 4), np.int16), np.eye(4)), tiny / "imagesTr/ball_1_0000.nii.gz")
    assert main(["plan", str(tiny)]) in (2, 3)
    message = message_of(capsys)
    assert "4 volumes" in message
    assert "ball_1" in message
    assert "Split the file" in message, "no option names a volume"


def test_training_before_planning_says_what_to_run(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny), "--fold", "0"]) == 2
    assert "medseg3d plan" in message_of(capsys)


def test_training_before_preprocessing_says_what_to_run(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny), "-q"]) == 0
    assert main(["train", str(tiny), "--fold", "0"]) == 2
    assert "medseg3d preprocess" in message_of(capsys)


def test_predicting_before_training_says_what_to_run(tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["predict", str(tiny), "-i", str(tiny / "imagesTs"), "-o", str(tmp_path / "out")]) == 2
    assert message_of(capsys).strip()


def test_a_model_refuses_another_number_of_channels(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    nibabel.save(nibabel.Nifti1Image(np.ones((20, 18, 12, 2), np.int16), np.eye(4)), source / "two.nii.gz")
    assert main(["predict", str(trained), "-i", str(source), "-o", str(tmp_path / "out")]) == 3
    assert "2 volumes" in message_of(capsys)
    with pytest.raises(ChannelCountError, match="2 channels"):
        load_model(trained).predict(np.ones((2, 20, 18, 12)), np.eye(4))


def test_one_bad_image_does_not_stop_a_prediction(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(shutil.copytree(trained / "imagesTs", tmp_path / "in"))
    rewrite(source / "ball_6_0000.nii.gz", change=with_nan)
    assert main(["predict", str(trained), "-i", str(source), "-o", str(tmp_path / "out")]) == 3
    assert "ball_6" in message_of(capsys)
    assert (tmp_path / "out/ball_7.nii.gz").exists()


def test_an_unwritable_work_folder_is_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny / "medseg3d-work").write_text("a file where a folder should be", encoding="utf-8")
    assert main(["plan", str(tiny)]) == 2
    assert "medseg3d-work" in message_of(capsys)


def test_regions_are_refused_and_never_trained_as_something_else(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads((tiny / "dataset.json").read_text(encoding="utf-8"))
    document["labels"] = {"background": 0, "whole": [3, 7], "core": 7}
    (tiny / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    assert main(["plan", str(tiny)]) == 2
    assert "region" in message_of(capsys)


def test_a_run_with_other_settings_is_not_continued_silently(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "Balls"))
    assert main(["train", str(root), "--fold", "0", "--seed", "5", "--epochs", "3", "--device", "cpu"]) == 2
    assert "--restart" in message_of(capsys)


def test_a_file_or_a_misspelled_folder_is_named_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    assert main(["run", str(tmp_path / "scan.nii.gz")]) == 2
    assert "is a file" in message_of(capsys)
    assert main(["run", str(tmp_path / "typo")]) == 2
    assert "no such folder" in message_of(capsys)
    assert main(["report", str(tmp_path / "typo")]) == 2
    assert "nothing to report" in message_of(capsys)
    assert not (tmp_path / "typo").exists()


def test_a_wrong_device_is_refused_before_anything_is_measured(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tiny), "--device", "abacus"]) == 2
    assert "abacus" in message_of(capsys)
    assert not (tiny / "medseg3d-work").exists()


def test_a_damaged_image_beside_an_image_without_a_label_is_no_defect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "images/a.nii.gz").write_bytes(b"")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "images/b.nii.gz")
    assert main(["plan", str(tmp_path)]) == 2
    message = message_of(capsys)
    assert "a" in message
    assert "image without a label" in message


def test_json_is_one_document_also_where_cases_fail(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(tiny / "imagesTr/ball_2_0000.nii.gz", change=with_nan)
    assert main(["plan", str(tiny), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert [failure["case"] for failure in document["failures"]] == ["ball_2"]


@pytest.mark.parametrize("words", [["--hours", "abc"], ["--gpu-memory", "8GB"], ["--hours", "-1"], ["--epochs", "0.5"]])
def test_options_that_are_no_numbers_say_what_is_expected(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *words])
    assert stopped.value.code == 2
    assert "expected a" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["imagesTr/ball_2_0000.nii.gz", "labelsTr/ball_2.nii.gz"])
def test_a_file_that_may_not_be_read_is_a_case_that_fails(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    deny(monkeypatch, Path(name).name)
    assert main(["doctor", str(tiny)]) == 2
    printed = " ".join(capsys.readouterr().out.split())  # lines are folded at the width of the terminal
    assert "error ball_2" in printed
    assert "Permission denied" in printed
    assert "8 cases read, 1 error." in printed
    assert main(["plan", str(tiny), "-q"]) == 3
    assert "Permission denied" in message_of(capsys)


def test_a_dataset_json_that_may_not_be_read_is_named(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(monkeypatch, "dataset.json")
    for command in ("doctor", "plan", "run"):
        assert main([command, str(tiny)]) == 2
        assert "dataset.json: cannot be read (Permission denied)" in message_of(capsys)


def test_an_image_that_may_not_be_read_does_not_stop_a_prediction(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(monkeypatch, "ball_6_0000.nii.gz")
    assert main(["predict", str(trained), "-i", str(trained / "imagesTs"), "-o", str(tmp_path / "out"), "-q"]) == 3
    assert "Permission denied" in message_of(capsys)
    assert (tmp_path / "out/ball_7.nii.gz").exists()
    assert main(["predict", str(trained), "-i", str(trained / "imagesTs/ball_6_0000.nii.gz"), "-o", str(tmp_path / "o"), "-q"]) == 2
    assert "Permission denied" in message_of(capsys)


@pytest.mark.parametrize("output", ["/proc/out", "slice.png/x", "/proc/x.nii.gz"])
def test_predict_tries_the_output_folder_before_the_first_case(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (tmp_path / "slice.png").write_bytes(b"")
    monkeypatch.setattr("medseg3d.models.model.read_to_predict", None)  # not reached
    image = trained / "imagesTs/ball_6_0000.nii.gz"
    assert main(["predict", str(trained), "-i", str(image), "-o", str(tmp_path / output)]) == 2
    message = message_of(capsys)
    assert "cannot be written" in message
    assert "Choose another folder" in message


@pytest.mark.parametrize("work", ["/proc/w", "slice.png"])
def test_run_tries_the_work_folder_before_anything_is_measured(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    (tmp_path / "slice.png").write_bytes(b"")
    monkeypatch.setattr("medseg3d.workflows.plan.make_fingerprint", None)  # not reached
    for command in ("run", "plan"):
        assert main([command, str(tiny), "-w", str(tmp_path / work)]) == 2
        assert "cannot be written" in message_of(capsys)


def test_evaluate_names_an_output_that_cannot_be_written(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = str(tiny / "labelsTr")
    assert main(["evaluate", labels, labels, "-o", "/proc/x.json"]) == 2
    assert "/proc: cannot be written" in message_of(capsys)


def test_a_permission_that_lacks_anywhere_is_the_users_to_mend(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(root: Path, **_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(root))

    monkeypatch.setattr("medseg3d.workflows.doctor.find_dataset", denied)
    assert main(["doctor", str(tiny), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert f"{tiny}: Permission denied" in document["message"]


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        ("run --epoch 2", "--epochs"),
        ("plan --explian", "--explain"),
        ("predict -i a -o b --probs", "--probabilities"),
        ("--vers", "--version"),
    ],
)
def test_options_are_taken_by_their_whole_names(words: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2
    assert f"Did you mean {nearest}?" in capsys.readouterr().err


def test_folds_that_are_not_there_are_refused_before_they_are_timed(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(tiny), "--planner", str(tiny / "tiny.toml"), "--folds"]
    assert main([*command, "x"]) == 2
    assert "Fold 'x'" in message_of(capsys)
    assert not (tiny / "medseg3d-work").exists()
    assert main([*command, "7"]) == 2
    assert "There is no fold 7; the folds are 0 to 4, and all." in message_of(capsys)
    timings = json.loads((tiny / "medseg3d-work/timings.json").read_text(encoding="utf-8"))
    assert list(timings["seconds"]) == ["plan"]


def test_label_maps_are_written_as_nifti_or_dicom_only(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = trained / "imagesTs/ball_6_0000.nii.gz"
    for name in ("x.nrrd", "x.mha", "x.png"):
        assert main(["predict", str(trained), "-i", str(image), "-o", str(tmp_path / name)]) == 2
        assert f"label maps are not written as .{name[2:]}. Name a file that ends with .nii.gz or .nii or .dcm, or a folder" in message_of(
            capsys
        )
        assert not (tmp_path / name).exists()
    (tmp_path / "set.nii.gz").mkdir()
    assert main(["predict", str(trained), "-i", str(image), "-o", str(tmp_path / "set.nii.gz")]) == 0
    assert f"Label map written: {tmp_path}/set.nii.gz/ball_6.nii.gz" in capsys.readouterr().out.replace("\n", "")


def test_of_many_missing_predictions_ten_are_named(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references, predictions = tmp_path / "references", tmp_path / "predictions"
    references.mkdir(), predictions.mkdir()
    for number in range(30):
        shutil.copy(tiny / "labelsTr/ball_0.nii.gz", references / f"case_{number:02d}.nii.gz")
    shutil.copy(tiny / "labelsTr/ball_0.nii.gz", predictions / "case_00.nii.gz")
    assert main(["evaluate", str(predictions), str(references), "-q"]) == 3
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("medseg3d: 29 references without a prediction")
    assert line.endswith("case_10 and 19 more.")


def test_quiet_prints_no_table_and_writes_the_files(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny), "-q"]) == 0
    assert main(["evaluate", str(tiny / "labelsTr"), str(tiny / "labelsTr"), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (tiny / "medseg3d-work/plan.json").exists()
    assert (tiny / "labelsTr/metrics.csv").exists()


def test_a_rare_label_without_dataset_json_is_a_warning_of_the_plan(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny / "dataset.json").unlink()
    for path in (tiny / "labelsTr").iterdir():
        if path.name != "ball_3.nii.gz":
            rewrite(path, change=lambda a: np.where(a == 7, 3, a))
    assert main(["plan", str(tiny), "--planner", str(tiny / "tiny.toml"), "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert any("label value 7 occurs in 1 of 6 cases (ball_3)" in warning and "dataset.json" in warning for warning in warnings)
    assert sum("label value 7 is only in ball_3" in warning for warning in warnings) == 1


def test_a_misspelled_option_is_answered_also_where_it_was_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--fol", "0"])
    assert "Did you mean --fold?" in capsys.readouterr().err


def test_a_wrong_call_gives_a_document_where_one_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "--json"])
    assert stopped.value.code == 2
    document = json.loads(capsys.readouterr().out)
    assert "required: -i/--input" in document["message"]
