"""Names of labels beside the dataset: from the command line or a file into the plan, its mirroring and all that follows."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.commandline.cli import main
from medseg3d.data.label_names import names_beside, names_from_text, with_names
from medseg3d.errors import DatasetError, InputError
from medseg3d.evaluation.evaluate_folders import evaluate_folders
from medseg3d.labels import Labels
from medseg3d.workflows.doctor import doctor
from medseg3d.workflows.plan import plan


@pytest.fixture
def two_sides(tmp_path: Path) -> Path:
    """Five cases in plain folders, 24×20×16 voxels: 1 in the middle, 2 on the right (high x), 3 on the left."""
    root = tmp_path / "Sides"
    rng = np.random.default_rng(0)
    for number in range(5):
        labels = np.zeros((24, 20, 16), np.uint8)
        labels[10:14, 8:12, 6:10] = 1
        labels[17:21, 8 + number % 2 : 12, 6:10] = 2
        labels[3:7, 8:12, 6 + number % 2 : 10] = 3
        image = (labels * 30 + rng.normal(100, 5, labels.shape)).astype(np.int16)
        for kind, array in (("images", image), ("labels", labels)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), root / kind / f"case{number}.nii.gz")
    return root


def mirrors_left_right(plan_file: Path) -> bool:
    document = json.loads(plan_file.read_text(encoding="utf-8"))
    return len(document["configurations"]["3d_fullres"]["mirror_axes"]) == 3


@pytest.mark.fault(
    "A1", "plain folders with a left and a right label, planned", "the plan does not mirror from left to right and says how to name them"
)
def test_a_plan_in_doubt_asks_for_names_and_does_not_mirror(two_sides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(two_sides)]) == 0
    work = two_sides / "medseg3d-work"
    assert not mirrors_left_right(work / "plan.json")
    printed = " ".join(capsys.readouterr().out.split())
    assert "label_3 / label_2 could be left and right of the same" in printed
    assert "--labels 3=left_kidney,2=right_kidney" in printed


def test_given_names_make_a_pair_and_are_kept(two_sides: Path) -> None:
    named = plan(two_sides, label_names=names_from_text("3=left nodule,2=right nodule")).plan
    assert named.labels.names == ("background", "label_1", "right nodule", "left nodule")
    assert (named.labels.pairs, named.left_right_doubt) == (((3, 2),), "")
    assert not mirrors_left_right(two_sides / "medseg3d-work" / "plan.json")
    assert plan(two_sides).plan.labels == named.labels  # planned again without the option


def test_names_without_sides_allow_mirroring(two_sides: Path) -> None:
    (two_sides / "labels.csv").write_text("value,name\n1,core\n2,spleen\n3,liver\n", encoding="utf-8")
    made = plan(two_sides).plan
    assert made.labels.names == ("background", "core", "spleen", "liver")
    assert mirrors_left_right(two_sides / "medseg3d-work" / "plan.json")


def test_nnunets_presets_mirror_as_nnunet_does_and_say_so(two_sides: Path) -> None:
    made = plan(two_sides, planner="nnunet_plain").plan
    assert mirrors_left_right(two_sides / "medseg3d-work" / "plan.json")
    assert any("as nnU-Net does" in note for note in made.notes)


@pytest.mark.fault("A1", "plain folders with a left and a right label, checked", "doctor warns and says how to name them")
def test_doctor_asks_for_names(two_sides: Path) -> None:
    findings = doctor(two_sides, fix=False).findings
    assert [f.severity for f in findings if "could be left and right" in f.message] == ["warning"]
    (two_sides / "labels.json").write_text('{"2": "right nodule", "3": "left nodule"}', encoding="utf-8")
    assert not [f for f in doctor(two_sides, fix=False).findings if "left and right" in f.message]


def test_a_name_for_a_value_that_no_file_holds_is_pointed_out(two_sides: Path) -> None:
    assert any("label values 9" in warning for warning in plan(two_sides, label_names={9: "spleen"}).warnings)


@pytest.mark.parametrize(
    "text", ["liver", "1:liver", "x=liver", "1=", "", "1=liver,1=spleen", "0=liver", "1=liver,2=liver", "1=background", "4=ignore,5=void"]
)
def test_names_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--labels"):
        names_from_text(text)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labels.csv", "value,name\n2,left kidney\n"),
        ("labels.csv", "2;left kidney"),
        ("labels.csv", "\ufeffvalue,name\r\n2,left kidney\r\n\r\n"),
        ("labels.json", '{"2": "left kidney"}'),
        ("labels.json", '{"left kidney": 2}'),
    ],
)
def test_files_of_names_are_read_in_both_directions(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert names_beside(tmp_path) == {2: "left kidney"}


@pytest.mark.parametrize(
    ("file", "text"),
    [("labels.csv", "a,b,c\n"), ("labels.csv", ""), ("labels.json", "[1]"), ("labels.json", '{"1": 2}'), ("labels.json", "{")],
)
def test_files_that_hold_no_names_are_refused(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=file):
        names_beside(tmp_path)


@pytest.mark.fault("A6", "a label value or name that stands twice in labels.json", "refused, naming it")
@pytest.mark.parametrize("text", ['{"1": "liver", "1": "spleen"}', '{"liver": 1, "liver": 2}'])
def test_a_name_that_stands_twice_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="stands twice"):
        names_beside(tmp_path)


def test_names_that_do_not_fit_the_others_are_refused() -> None:
    labels = Labels(names=("background", "liver", "label_2"), values=(0, 1, 2))
    with pytest.raises(DatasetError, match="same name 'liver'"):
        with_names(labels, {2: "liver"})


def test_references_are_measured_under_the_names_beside_them(two_sides: Path) -> None:
    (two_sides / "labels.csv").write_text("2,right nodule\n3,left nodule\n", encoding="utf-8")
    measured = evaluate_folders(two_sides / "labels", two_sides / "labels")
    assert {label.name for case in measured.cases for label in case.labels} == {"label_1", "right nodule", "left nodule"}
