"""Wrong input: one message that names what was found and what to do, exit code 2 or 3, nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d import load_model
from medseg3d.cli import main
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


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path / "nothing")]) == 2
    assert "nothing" in message_of(capsys)


def test_a_folder_without_images_says_what_is_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path)]) == 2
    assert "imagesTr" in message_of(capsys)


def test_images_without_labels_are_all_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny / "labelsTr/ball_0.nii.gz").unlink()
    (tiny / "labelsTr/ball_3.nii.gz").unlink()
    assert main(["plan", str(tiny)]) == 2
    message = message_of(capsys)
    assert "ball_0" in message
    assert "ball_3" in message


def test_label_values_outside_the_list_are_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(tiny / "labelsTr/ball_1.nii.gz", change=lambda a: np.where(a == 7, 9, a))
    assert main(["plan", str(tiny)]) == 2
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
    assert "4" in message
    assert "ball_1" in message


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
