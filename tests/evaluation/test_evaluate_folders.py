"""Folders of files: matching, grids, labels, summaries, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from medseg3d import images
from medseg3d.errors import InputError
from medseg3d.evaluation.evaluate_folders import evaluate_folders
from medseg3d.evaluation.metrics import read_evaluation, table_header, table_rows
from medseg3d.workflows.evaluate import evaluate

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def cube(start: int = 1, value: int = 1) -> np.ndarray:
    """A cube of 4 voxels a side."""
    values = np.zeros((9, 8, 7), np.uint8)
    values[start : start + 4, 2:6, 1:5] = value
    return values


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    return images.write_image(path, values, affine)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases in both folders, the second shifted by a voxel."""
    predictions, references = tmp_path / "predictions", tmp_path / "labelsTr"
    for name, start in (("a", 1), ("b", 2)):
        write(predictions / f"{name}.nii.gz", cube(start))
        write(references / f"{name}.nii.gz", cube(1))
    return predictions, references


def test_cases_are_matched_by_name_and_summarized(folders):
    evaluation = evaluate_folders(*folders)
    assert evaluation.dice_per_case() == {"a": 1.0, "b": 0.75}
    assert evaluation.foreground_dice.mean == evaluation.mean_dice_over_labels.mean == 0.875
    assert evaluation.foreground_dice.n == evaluation.labels[0].dice.n == 2
    assert evaluation.tolerance_mm == 1.0
    assert not evaluation.failures


def test_missing_and_superfluous_predictions_are_listed_and_not_counted(folders):
    predictions, references = folders
    write(references / "c.nii.gz", cube())
    write(predictions / "d.nii.gz", cube())
    evaluation = evaluate_folders(predictions, references)
    assert (evaluation.missing_predictions, evaluation.extra_predictions, evaluation.num_cases) == (("c",), ("d",), 2)


def test_a_shifted_grid_fails_with_its_offset_and_the_others_go_on(folders):
    predictions, references = folders
    shifted = AFFINE.copy()
    shifted[0, 3] = 7.5
    write(predictions / "a.nii.gz", cube(), shifted)
    evaluation = evaluate_folders(predictions, references)
    assert list(evaluation.dice_per_case()) == ["b"]
    assert evaluation.failures[0].case == "a"
    assert "7.5 mm" in evaluation.failures[0].reason


def test_a_header_rounded_below_a_tenth_of_a_voxel_is_the_same_grid(folders):
    predictions, references = folders
    shifted = AFFINE.copy()
    shifted[0, 3] = 0.05
    write(predictions / "a.nii.gz", cube(), shifted)
    assert evaluate_folders(predictions, references).num_cases == 2


def test_the_same_voxels_stored_in_another_direction_are_compared_where_they_lie(folders):
    predictions, references = folders
    flipped = AFFINE @ np.array([[-1, 0, 0, 8], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write(predictions / "b.nii.gz", cube(2)[::-1], flipped)
    assert evaluate_folders(predictions, references).dice_per_case()["b"] == 0.75


def test_another_shape_and_a_cut_off_file_fail_alone(folders):
    predictions, references = folders
    write(predictions / "c.nii.gz", cube()[:-1])
    write(references / "c.nii.gz", cube())
    (predictions / "a.nii.gz").write_bytes((predictions / "a.nii.gz").read_bytes()[:60])
    evaluation = evaluate_folders(predictions, references)
    assert [failure.case for failure in evaluation.failures] == ["a", "c"]
    assert evaluation.num_cases == 1


def test_names_come_from_the_dataset_json_above_and_its_values_are_the_only_ones(folders):
    predictions, references = folders
    (references.parent / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumor": 2}}), encoding="utf-8"
    )
    write(predictions / "b.nii.gz", cube(1, value=9))
    evaluation = evaluate_folders(predictions, references)
    assert [label.name for label in evaluation.labels] == ["liver", "tumor"]
    assert evaluation.labels[1].dice.n == 0
    assert "9" in evaluation.failures[0].reason


def test_without_names_all_values_of_all_cases_are_labels(folders):
    predictions, references = folders
    write(references / "c.nii.gz", cube(value=4))
    write(predictions / "c.nii.gz", cube(value=7).astype(np.float32))
    evaluation = evaluate_folders(predictions, references)
    assert [label.value for label in evaluation.labels] == [1, 4, 7]
    tumor, false_positive = evaluation.labels[1], evaluation.labels[2]
    assert (tumor.missed_cases, tumor.dice.mean, tumor.dice.n, tumor.num_neither) == (("c",), 0.0, 1, 2)
    assert (false_positive.false_positive_cases, false_positive.hd95_mm.n, false_positive.num_distances_undefined) == (("c",), 0, 1)


@pytest.mark.parametrize("name", ["scores.json", "scores.csv"])
def test_json_and_csv_hold_every_case_and_label_and_can_be_read_again(folders, tmp_path, name):
    evaluation = evaluate(*folders, output=tmp_path / "out" / name)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scores.csv", "scores.json"]
    assert read_evaluation(tmp_path / "out" / "scores.json") == evaluation
    text = (tmp_path / "out" / "scores.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "scores.csv").read_text(encoding="utf-8"))))
    assert [(row["case"], row["label"], float(row["dice"])) for row in rows] == [("a", "label_1", 1.0), ("b", "label_1", 0.75)]


def test_the_table_states_n_beside_each_mean(folders):
    evaluation = evaluate_folders(*folders)
    rows = table_rows(evaluation)
    assert rows[0][:2] == ("label_1", "0.875 (2)")
    assert all(len(row) == len(table_header(evaluation)) for row in rows)
    assert "1 mm" in table_header(evaluation)[3]


def test_metrics_are_written_beside_the_predictions_by_default_and_do_not_disturb_a_second_run(folders):
    first = evaluate(*folders)
    assert evaluate(*folders) == first
    assert (folders[0] / "metrics.json").exists()


@pytest.mark.fault("D", "`evaluate -o` names a folder that is not there yet", "made, with `metrics.json` and `metrics.csv` in it")
@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_as_output_is_written_into(folders, tmp_path, is_there):
    if is_there:
        (tmp_path / "scores").mkdir()
    evaluate(*folders, output=tmp_path / "scores")
    assert sorted(path.name for path in (tmp_path / "scores").iterdir()) == ["metrics.csv", "metrics.json"]


def test_nothing_is_written_where_no_case_could_be_measured(folders):
    for prediction in folders[0].iterdir():
        prediction.write_bytes(b"no image")
    assert len(evaluate(*folders).failures) == 2
    assert not (folders[0] / "metrics.json").exists()


def test_two_single_files_are_a_pair_whatever_they_are_called(folders):
    predictions, references = folders
    evaluation = evaluate_folders(predictions / "b.nii.gz", references / "a.nii.gz")
    assert evaluation.dice_per_case() == {"a": 0.75}


def test_folders_that_do_not_match_are_refused(folders, tmp_path):
    predictions, references = folders
    write(tmp_path / "other" / "z.nii.gz", cube())
    with pytest.raises(InputError, match="No prediction"):
        evaluate_folders(tmp_path / "other", references)
    with pytest.raises(InputError, match="no such folder of references"):
        evaluate_folders(predictions, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no label maps"):
        evaluate_folders(tmp_path / "empty", references)


def test_one_tolerance_holds_for_all_cases(folders):
    predictions, references = folders
    for folder in folders:
        write(folder / "c.nii.gz", cube(), np.diag([4.0, 4.0, 4.0, 1.0]))
    assert {case.tolerance_mm for case in evaluate_folders(predictions, references).cases} == {1.0}


@pytest.mark.fault("B", "two predictions of one case, or a name that is no UTF-8", "is listed; the others are measured")
def test_two_files_of_a_case_cost_that_case(folders) -> None:
    predictions, references = folders
    write(predictions / "b.nii", cube(1))
    os.rename(write(predictions / "m.nii.gz", cube(1)), os.fsencode(predictions) + b"/M\xfcller.nii.gz")
    evaluation = evaluate_folders(predictions, references)
    assert [case.case for case in evaluation.cases] == ["a"]
    assert [failure.case for failure in evaluation.failures] == ["M\\xfcller", "b"]
