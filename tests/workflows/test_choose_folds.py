"""Folds that keep patients together, the user's own folds, and what is said where these divide a patient."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.commandline.cli import main
from medseg3d.data.grouping import divided
from medseg3d.errors import DatasetError
from medseg3d.events import Event
from medseg3d.training.folds import Splits, read_folds
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.choose_folds import tell_divided
from medseg3d.workflows.doctor import doctor
from medseg3d.workflows.plan import plan
from medseg3d.workflows.run import write_report


def write_case(root: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((14, 12, 10), np.uint8)
    labels[4:9, 4:8, 3:7] = 1
    image = (labels * 50 + rng.normal(100, 10, labels.shape)).astype(np.int16)
    for kind, file, array in (("imagesTr", f"{name}_0000", image), ("labelsTr", name, labels)):
        (root / kind).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), root / kind / f"{file}.nii.gz")


def describe(root: Path) -> Path:
    count = len(list((root / "labelsTr").iterdir()))
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1}, "numTraining": count, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return root


@pytest.fixture
def heart(tmp_path: Path) -> Path:
    """Six patients with two phases each."""
    for number in range(12):
        write_case(tmp_path / "Heart", f"p{number // 2}_{('ED', 'ES')[number % 2]}", number)
    return describe(tmp_path / "Heart")


PATIENT = {f"p{p}_{phase}": f"p{p}" for p in range(6) for phase in ("ED", "ES")}
APART = [{"train": [n for n in PATIENT if not n.startswith("p0")], "val": ["p0_ED", "p0_ES"]}]
DIVIDED = [{"train": [n for n in PATIENT if n.endswith("ED")], "val": [n for n in PATIENT if n.endswith("ES")]}]


def patients_divided(folds: Splits) -> int:
    return len(divided(PATIENT, [(fold.train, fold.validation) for fold in folds.folds]))


@pytest.mark.fault("A2", "a dataset with two phases per patient, planned", "each patient stays in one fold, and the plan says so")
@pytest.mark.parametrize("planner", ["default", "nnunet_plain"])
def test_a_plan_keeps_patients_together_and_says_so(heart: Path, planner: str) -> None:
    made = plan(heart, planner=planner)
    assert made.folds is not None
    assert patients_divided(made.folds) == 0
    assert made.folds.patients["p3_ES"] == "p3"
    assert len(made.folds.folds) == 5
    assert any("12 cases look like 6 patients by their names (p0_ED, p0_ES)" in warning for warning in made.warnings)
    assert plan(heart).folds == made.folds


def test_no_groups_undoes_it_for_good(heart: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan(heart)
    assert main(["plan", str(heart), "--no-groups"]) == 0
    folds = read_folds(heart / "medseg3d-work" / "splits.json")
    assert patients_divided(folds) > 0
    assert folds.patients == {}
    heard: list[Event] = []
    again = plan(heart, on=heard.append)
    assert [event.stage for event in heard if event.total and event.done == event.total] == ["fingerprint", "plan"]
    assert (again.folds, again.warnings) == (folds, ())
    capsys.readouterr()


@pytest.mark.fault("A2", "the user's own folds with a patient on both sides", "used, with a warning of plan, doctor, train and report")
@pytest.mark.parametrize("file", ["splits.json", "splits_final.json"])
def test_own_folds_that_divide_patients_are_used_with_a_warning(heart: Path, file: str) -> None:
    (heart / file).write_text(json.dumps(DIVIDED), encoding="utf-8")
    made = plan(heart)
    assert made.folds is not None
    assert patients_divided(made.folds) == 6
    assert any("6 of what look like 6 patients are on both sides" in warning for warning in made.warnings)
    assert any("6 of what look like 6 patients" in finding.message for finding in doctor(heart, fix=False).findings)
    assert "6 of what look like 6 patients" in tell_divided(heart / "medseg3d-work" / "splits.json")
    page = write_report(heart, WorkFolder(heart / "medseg3d-work")).read_text(encoding="utf-8")
    assert "6 of what look like 6 patients" in page


@pytest.mark.fault("A2", "folds of an older version with a patient on both sides", "kept, so that training goes on; plan and doctor warn")
def test_older_folds_that_divide_patients_are_kept_with_a_warning(heart: Path) -> None:
    made = plan(heart)
    splits = heart / "medseg3d-work" / "splits.json"
    document = json.loads(splits.read_text(encoding="utf-8"))
    del document["grouping"], document["left_out"]
    document["folds"] = [{"train": fold["train"], "validation": fold["val"]} for fold in DIVIDED]
    splits.write_text(json.dumps(document), encoding="utf-8")
    again = plan(heart)
    assert again.folds is not None
    assert again.folds != made.folds
    assert patients_divided(again.folds) == 6
    assert any("--no-groups" in warning for warning in again.warnings)
    assert any("both sides" in finding.message for finding in doctor(heart, fix=False).findings)


def test_doctor_notes_what_look_like_patients(heart: Path) -> None:
    notes = [finding for finding in doctor(heart, fix=False).findings if finding.kind == "groups"]
    assert [(note.severity, "6 patients" in note.message) for note in notes] == [("note", True)]


@pytest.mark.fault("D", "splits_final.json that leaves cases out on purpose", "they are neither trained nor measured, and named")
def test_own_folds_may_leave_cases_out(heart: Path) -> None:
    kept = [{"train": [n for n in APART[0]["train"] if n != "p5_ES"], "val": APART[0]["val"]}]
    (heart / "splits_final.json").write_text(json.dumps(kept), encoding="utf-8")
    for made in (plan(heart), plan(heart)):
        assert made.folds is not None
        assert made.folds.left_out == ("p5_ES",)
        assert "p5_ES" not in made.folds.folds[0].train
        assert made.warnings == ("1 case in no fold of the dataset's own file, neither trained on nor validated: p5_ES.",)


def test_left_out_cases_stay_out_when_others_come(heart: Path) -> None:
    (heart / "splits_final.json").write_text(json.dumps([{"train": APART[0]["train"][:-1], "val": APART[0]["val"]}]), encoding="utf-8")
    plan(heart)
    (heart / "splits_final.json").unlink()
    write_case(heart, "p6_ED", 99)
    made = plan(describe(heart)).folds
    assert made is not None
    assert made.left_out == ("p5_ES",)
    assert [("p5_ES" in (*f.train, *f.validation), "p6_ED" in (*f.train, *f.validation)) for f in made.folds] == [(False, True)]


@pytest.mark.fault("D", "a case twice in a list of splits_final.json", "refused, naming fold, list and case")
@pytest.mark.parametrize(("side", "case"), [("train", "p1_ED"), ("val", "p0_ED")])
def test_a_case_twice_in_a_list_is_refused(heart: Path, side: str, case: str) -> None:
    twice = [{**APART[0], side: [*APART[0][side], case]}]
    (heart / "splits_final.json").write_text(json.dumps(twice), encoding="utf-8")
    with pytest.raises(DatasetError, match=f"fold 0 lists cases twice in {side}: {case}"):
        plan(heart)


@pytest.mark.fault("A2", "a new image of a patient who is there already", "joins the fold that validates the patient")
def test_a_new_image_joins_its_patient(heart: Path) -> None:
    plan(heart)
    write_case(heart, "p3_pre", 50)
    made = plan(describe(heart)).folds
    assert made is not None
    homes = [fold for fold in made.folds if "p3_pre" in fold.validation]
    assert len(homes) == 1
    assert {"p3_ED", "p3_ES"} <= set(homes[0].validation)


@pytest.mark.fault("A2", "a copy of an image under another name, with another label", "both are in one fold")
def test_copies_of_an_image_stay_together(tmp_path: Path) -> None:
    root = tmp_path / "Copies"
    for number in range(8):
        write_case(root, f"case_{number}", number)
    shutil.copy(root / "imagesTr" / "case_2_0000.nii.gz", root / "imagesTr" / "case_5_0000.nii.gz")
    label = nibabel.load(root / "labelsTr" / "case_5.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.roll(np.asarray(label.dataobj), 1, axis=0), label.affine), root / "labelsTr" / "case_5.nii.gz")
    made = plan(describe(root)).folds
    assert made is not None
    assert divided({"case_2": "x", "case_5": "x"}, [(fold.train, fold.validation) for fold in made.folds]) == {}


@pytest.mark.fault("B", "a training case whose image is missing or damaged for a while, planned meanwhile", "keeps its place in the folds")
@pytest.mark.parametrize("own", ["", "splits_final.json"])
def test_a_case_that_fails_for_a_while_keeps_its_place(heart: Path, own: str) -> None:
    if own:
        (heart / own).write_text(json.dumps(APART), encoding="utf-8")
    before = plan(heart).folds
    image = heart / "imagesTr" / "p0_ED_0000.nii.gz"
    content = image.read_bytes()
    image.unlink()
    meanwhile = plan(heart)
    assert [failure.case for failure in meanwhile.failures] == ["p0_ED"]
    image.write_bytes(content)
    after = plan(heart)
    assert (meanwhile.folds, after.folds) == (before, before)
    assert [warning for warning in (*meanwhile.warnings, *after.warnings) if "splits.json" in warning] == []
