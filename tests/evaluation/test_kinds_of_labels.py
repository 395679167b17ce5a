"""Evaluation of regions, ignored voxels and partly annotated cases; nnU-Net's own numbers stand beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.errors import InputError
from medseg3d.evaluation.evaluate_case import evaluate_case
from medseg3d.evaluation.metrics import Evaluation
from medseg3d.labels import Labels
from medseg3d.workflows.evaluate import evaluate
from tests.golden.label_maps import CASES, CLASS_ORDER, CLASSES, REGIONS, maps

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/nnunet_evaluation.json").read_text(encoding="utf-8"))
ORGANS = Labels(names=("background", "a", "b"), values=(0, 1, 2), ignore=9)


def write(root: Path, declared: dict | None = None) -> tuple[Path, Path]:
    folders = root / "predictions", root / "labelsTr"
    for case in range(CASES):
        for folder, array in zip(folders, maps(case), strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / f"case_{case}.nii.gz")
    if declared is not None:
        (root / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    return folders


@pytest.mark.parametrize(
    ("kind", "declared"),
    [("regions", {"labels": REGIONS, "regions_class_order": CLASS_ORDER}), ("classes", {"labels": CLASSES})],
)
def test_the_numbers_are_those_of_nnunet(tmp_path: Path, kind: str, declared: dict) -> None:
    found, expected = evaluate(*write(tmp_path, declared)), GOLDEN[kind]
    for case, theirs in zip(found.cases, expected["cases"], strict=True):
        assert [label.name for label in case.labels] == list(theirs)
        for label in case.labels:
            numbers = theirs[label.name]
            counts = (label.voxels_common, label.voxels_prediction, label.voxels_reference)
            assert counts == (numbers["TP"], numbers["n_pred"], numbers["n_ref"])
            assert (label.dice, label.iou) == (pytest.approx(numbers["Dice"]), pytest.approx(numbers["IoU"]))
    assert found.mean_dice_over_labels.mean == pytest.approx(expected["foreground_mean"])
    for summary in found.labels:
        assert summary.dice.mean == pytest.approx(expected["mean"][summary.name]["Dice"])


def test_a_value_of_references_that_marks_what_nobody_annotated_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictions, references = write(tmp_path)
    for file in references.iterdir():
        array = np.asarray(nibabel.load(file).dataobj)
        nibabel.save(nibabel.Nifti1Image(np.where(array == 4, 255, array).astype(np.uint8), np.eye(4)), file)
    found = evaluate(predictions, references)
    assert "The value 255 of the references is taken for voxels that nobody has annotated" in caplog.text
    dice = {label.value: label.dice.mean for label in found.labels}
    assert dice == {value: pytest.approx(GOLDEN["classes"]["mean"][name]["Dice"]) for name, value in CLASSES.items() if value in (1, 2, 3)}
    (tmp_path / "labels.csv").write_text("value,name\n255,table\n", encoding="utf-8")
    assert "table" in [label.name for label in evaluate(predictions, references).labels]


def test_ignored_voxels_make_no_surface_and_no_object() -> None:
    reference = np.zeros((12, 10, 10), np.uint8)
    reference[3:9, 2:8, 2:8] = 1
    prediction = reference.copy()
    prediction[3, 2:8, 2:8] = 0
    reference[:5], reference[8:] = 9, 9
    (label, _) = evaluate_case(prediction, reference, spacing=(1, 1, 1), labels=ORGANS).labels
    assert (label.dice, label.nsd, label.hd95_mm, label.lesion_f1) == (1, 1, 0, 1)
    everywhere = np.where(reference == 9, 1, prediction).astype(np.uint8)
    assert evaluate_case(everywhere, reference, spacing=(1, 1, 1), labels=ORGANS).labels[0].dice == 1
    shifted = np.roll(prediction, 2, 2)
    (moved, _) = evaluate_case(shifted, reference, spacing=(1, 1, 1), labels=ORGANS).labels
    assert moved.hd95_mm == 2


def test_a_label_without_any_known_surface_has_no_distances() -> None:
    reference = np.full((5, 5, 5), 9, np.uint8)
    reference[2, 2, 2] = 1
    (label, other) = evaluate_case(np.ones_like(reference), reference, spacing=(1, 1, 1), labels=ORGANS).labels
    assert (label.dice, label.hd95_mm, label.nsd) == (1, None, None)
    assert other.presence == "neither"


def test_names_that_no_label_has_are_refused_also_without_a_list_of_labels(tmp_path: Path) -> None:
    folders = write(tmp_path)
    (tmp_path / "annotated.csv").write_text("case_0,edema\n", encoding="utf-8")
    with pytest.raises(InputError, match="edema: no label is called so; the labels are label_1, label_2, label_3"):
        evaluate(*folders)


def annotated(root: Path) -> Evaluation:
    folders = write(root, {"labels": CLASSES})
    (root / "annotated.csv").write_text("case,labels\n*,edema;necrosis;edge\ncase_0,edema\n", encoding="utf-8")
    return evaluate(*folders)


def test_what_a_case_was_not_annotated_for_enters_no_mean(tmp_path: Path) -> None:
    found = annotated(tmp_path)
    first = found.cases[0]
    assert [label.presence for label in first.labels] == ["both", "not_annotated", "not_annotated"]
    assert first.foreground_dice == pytest.approx(GOLDEN["classes"]["cases"][0]["edema"]["Dice"])
    necrosis = next(label for label in found.labels if label.name == "necrosis")
    assert necrosis.num_not_annotated == 1
    others = [case["necrosis"]["Dice"] for case in GOLDEN["classes"]["cases"][1:]]
    assert necrosis.dice.mean == pytest.approx(np.mean([dice for dice in others if dice is not None]))
