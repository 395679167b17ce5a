"""A result is used with the weights, label maps and folds that it was made from, and with no others."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d import load_model
from medseg3d.errors import CaseFailure
from medseg3d.evaluation.metrics import read_evaluation, write_evaluation
from medseg3d.models.checkpoints import load_tensors, save_tensors
from medseg3d.models.model_card import model_card
from medseg3d.models.model_file import open_model_file
from medseg3d.models.trained import empty_windows_of
from medseg3d.provenance import ORIGIN, read_origin
from medseg3d.records import read_record, write_record
from medseg3d.reporting.report import read_work, write_page
from medseg3d.training.state import read_history
from medseg3d.validation.selection import Selection, read_selection
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.export import export_model
from medseg3d.workflows.info import info
from medseg3d.workflows.preprocess import preprocess
from medseg3d.workflows.select import select
from medseg3d.workflows.validate import validate


@pytest.fixture(scope="module")
def selected_once(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = Path(shutil.copytree(trained, tmp_path_factory.mktemp("selected") / "Balls"))
    select(root, device="cpu")
    return root


@pytest.fixture
def selected(selected_once: Path, tmp_path: Path) -> Path:
    """The tiny dataset with fold 0 trained, validated and selected; copied, so that all times and paths are others."""
    root = Path(shutil.copytree(selected_once, tmp_path / "elsewhere" / "Balls", copy_function=shutil.copy))
    file = root / "medseg3d-work/selection.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    step = {"operation": "keep_largest", "index": 1}  # so few cases choose none
    document["postprocessing"]["steps"] = [step]
    file.write_text(json.dumps(document), encoding="utf-8")
    return root


def work_of(root: Path) -> WorkFolder:
    return WorkFolder(root / "medseg3d-work")


def train_on(root: Path) -> None:
    file = work_of(root).weights("3d_fullres", "0")
    tensors, metadata = load_tensors(file)
    save_tensors(file, {name: tensor * 1.01 for name, tensor in tensors.items()}, metadata)


def validated_case(root: Path) -> str:
    return str(json.loads(work_of(root).splits.read_text(encoding="utf-8"))["folds"][0]["validation"][0])


def change_label(root: Path) -> None:
    file = root / f"labelsTr/{validated_case(root)}.nii.gz"
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), file)


def change_folds(root: Path) -> None:
    file = work_of(root).splits
    document = json.loads(file.read_text(encoding="utf-8"))
    document["folds"][0], document["folds"][1] = document["folds"][1], document["folds"][0]
    file.write_text(json.dumps(document), encoding="utf-8")


CHANGES = {
    "other weights of 3d_fullres fold 0": train_on,
    "another label map of ball_": change_label,
    "other validation cases of fold 0": change_folds,
}


def test_a_copied_work_folder_is_used_without_a_word(selected: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = load_model(selected, device="cpu")
        found = info(selected)
    assert [record.message for record in caplog.records] == []
    assert model.postprocessing.steps
    assert found.dice is not None
    assert read_work(work_of(selected)).selected == ("3d_fullres",)
    assert read_work(work_of(selected)).warnings == ()
    origin = read_origin(work_of(selected).validation("3d_fullres", "0"))
    assert origin is not None
    assert all(not mark.path.startswith("/") for mark in origin.labels.values())


@pytest.mark.fault(
    "A3", "selection.json of other weights, label maps or folds", "neither its choices nor its Dice are used, with one sentence saying why"
)
@pytest.mark.parametrize("what", CHANGES)
def test_a_selection_of_other_sources_is_neither_shown_nor_applied(
    selected: Path, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    CHANGES[what](selected)
    with caplog.at_level(logging.WARNING):
        model = load_model(selected, device="cpu")
    (said,) = [record.message for record in caplog.records]
    assert f"selection.json was made from {what}" in said
    assert "medseg3d select" in said
    assert not model.postprocessing.steps
    found = info(selected)
    assert (found.dice, found.postprocessing) == (None, ())
    export_model(selected, tmp_path / "model.medseg3d")
    card = model_card(open_model_file(tmp_path / "model.medseg3d").description)
    assert "Nothing is recorded about how good it is" in card
    assert "After the networks" not in card


@pytest.mark.fault("A3", "a report after weights, label maps or folds changed", "shows no measures of before, and says why")
@pytest.mark.parametrize("what", CHANGES)
def test_the_report_shows_no_measures_of_other_sources(selected: Path, what: str) -> None:
    CHANGES[what](selected)
    page = read_work(work_of(selected))
    assert page.selected == ()
    assert [fold.scores for fold in page.folds] == [None]
    assert sum(what in warning for warning in page.warnings) == 2
    assert page.test_scores is None


@pytest.mark.fault(
    "A3", "empty windows or mirroring measured with other weights or label maps", "not used, as if nothing had been measured"
)
@pytest.mark.parametrize("what", CHANGES)
def test_what_a_validation_of_other_sources_says_is_not_used(selected: Path, what: str) -> None:
    work = work_of(selected)
    assert empty_windows_of(work, "3d_fullres", ["0"]) is not None
    validation = work.validation("3d_fullres", "0")
    write_record(validation / "mirroring.json", {"is_used": False, "has_other": False}, "mirroring")
    work.selection.unlink()
    assert not load_model(selected, device="cpu").members[0].mirroring
    CHANGES[what](selected)
    assert empty_windows_of(work, "3d_fullres", ["0"]) is None
    assert load_model(selected, device="cpu").members[0].mirroring


@pytest.mark.fault("A3", "select after weights or label maps changed", "measures the fold again before it selects")
def test_selecting_anew_measures_again_and_ends_the_message(selected: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = read_record(work_of(selected).selection, Selection, "selection")
    change_label(selected)
    train_on(selected)
    after = select(selected, device="cpu")
    assert after.candidates[0].dice != before.candidates[0].dice
    assert read_selection(work_of(selected)) == (after, None)


@pytest.mark.fault("A3", "an image of a validation case that changed", "the fold is measured again")
def test_a_fold_is_measured_again_where_an_image_changed(selected: Path) -> None:
    kept = validate(selected, device="cpu", keep_finished=True)
    file = selected / f"imagesTr/{validated_case(selected)}_0000.nii.gz"
    metrics = work_of(selected).validation("3d_fullres", "0") / "metrics.json"
    stamp = metrics.stat().st_mtime_ns
    file.touch()
    assert validate(selected, device="cpu", keep_finished=True) == kept
    assert metrics.stat().st_mtime_ns == stamp
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[:, ::-1], image.affine), file)
    validate(selected, device="cpu", keep_finished=True)
    assert metrics.stat().st_mtime_ns > stamp


@pytest.mark.fault("B", "a validation case whose files stay unusable", "listed each time; the fold is not measured again for it")
def test_a_fold_is_not_measured_again_for_a_case_that_still_fails(selected: Path) -> None:
    metrics = work_of(selected).validation("3d_fullres", "0") / "metrics.json"
    evaluation = read_evaluation(metrics)
    gone = CaseFailure(case="gone", stage="files", reason="label without an image")
    write_evaluation(replace(evaluation, failures=(gone,)), metrics)
    assert validate(selected, device="cpu", keep_finished=True).failures == (gone,)
    write_evaluation(replace(evaluation, failures=(replace(gone, case=validated_case(selected)),)), metrics)
    assert validate(selected, device="cpu", keep_finished=True).failures == ()


def test_work_folders_of_older_versions_are_used_and_a_note_says_that_they_cannot_be_checked(
    selected: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = work_of(selected)
    (work.validation("3d_fullres", "0") / ORIGIN).unlink()
    document = json.loads(work.selection.read_text(encoding="utf-8"))
    del document["origin"]
    work.selection.write_text(json.dumps(document), encoding="utf-8")
    (work.validation("3d_fullres", "0") / "metrics.json").touch()
    with caplog.at_level(logging.WARNING):
        assert load_model(selected, device="cpu").postprocessing.steps
    (said,) = [record.message for record in caplog.records]
    assert "older version" in said
    train_on(selected)
    selection, note = read_selection(work)
    assert selection is None
    assert "other weights of 3d_fullres fold 0" in str(note)


def test_a_damaged_selection_says_what_to_do(selected: Path) -> None:
    from medseg3d.errors import InputError

    work_of(selected).selection.write_text('{"format": ', encoding="utf-8")
    with pytest.raises(InputError, match="Delete the file and run medseg3d select"):
        load_model(selected, device="cpu")


@pytest.mark.fault("A7", "damaged records of a validation", "named and left out; the fold is measured again when it is trained or selected")
@pytest.mark.parametrize("name", ["metrics.json", "mirroring.json", "windows.json"])
def test_damaged_records_of_a_validation_stop_nothing(selected: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    work = work_of(selected)
    file = work.validation("3d_fullres", "0") / name
    work.selection.unlink()
    file.write_text("{", encoding="utf-8")
    load_model(selected, device="cpu")
    empty_windows_of(work, "3d_fullres", ["0"])
    if name != "windows.json":
        validate(selected, device="cpu", keep_finished=True)
        assert read_work(work).folds[0].scores is not None
    assert name in caplog.text


@pytest.mark.fault("A7", "damaged lines in history.jsonl", "left out with their number; training goes on")
def test_damaged_lines_of_a_history_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = ['{"epoch": 0}', '{"epoch": 1', "[]", '{"epoch": 3}', "\u0000"]
    (tmp_path / "history.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [line["epoch"] for line in read_history(tmp_path)] == [0, 3]
    assert "line 2 cannot be read" in caplog.text


@pytest.mark.fault("A", "names of labels that changed in dataset.json since the plan was made", "select, validate and report say so")
def test_other_names_of_labels_are_said(selected: Path, caplog: pytest.LogCaptureFixture) -> None:
    declared = json.loads((selected / "dataset.json").read_text(encoding="utf-8"))
    declared["labels"] = {"background": 0, "core": 3, "shell": 7}
    (selected / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    said = "the labels are 3 core, 7 shell now, and the plan knows 3 shell, 7 core"
    select(selected, device="cpu")
    assert said in caplog.text
    caplog.clear()
    preprocess(selected)
    assert said in caplog.text
    assert said in Path(write_page(selected, work_of(selected).root, selected / "report.html")).read_text(encoding="utf-8")


def test_a_fold_beyond_those_of_now_is_left_out_by_name(selected: Path) -> None:
    shutil.copytree(work_of(selected).fold("3d_fullres", "0"), work_of(selected).fold("3d_fullres", "7"))
    assert any("fold_7 was trained with other folds than are planned now" in note for note in select(selected, device="cpu").notes)
