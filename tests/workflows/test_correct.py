"""Corrections join the training set as they are dropped; the network learns on, and the same cases say whether it got better."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.commandline.cli import main
from medseg3d.data.corrections import read_taken, taken_label
from medseg3d.data.dataset import ChannelFile
from medseg3d.data.open_dataset import open_dataset
from medseg3d.dicom_objects.seg import segmentation
from medseg3d.errors import BusyError, DatasetError, InputError, PlanMismatchError
from medseg3d.labels import Labels
from medseg3d.models.loading import load_model
from medseg3d.plan import Plan
from medseg3d.training.folds import read_folds
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.correct import correct, read_rounds
from medseg3d.workflows.take_corrections import read_correction, read_corrections, take_corrections
from medseg3d.workflows.taking_turns import correcting_lock, fold_lock
from tests.dicom_objects.conftest import result_on
from tests.seg_nrrd import write_seg_nrrd

SHORT = {"epochs": 1, "iterations": 2, "device": "cpu", "tta": "off"}


@pytest.fixture
def ready(trained: Path, tmp_path: Path) -> Path:
    """A trained dataset, one validation case of which is corrected, and an image without a label, which is as well."""
    root = Path(shutil.copytree(trained, tmp_path / "Balls"))
    (validated, *_) = read_folds(WorkFolder(root / "medseg3d-work").splits).folds[0].validation
    label = nibabel.load(root / "labelsTr" / f"{validated}.nii.gz")
    changed = np.asarray(label.dataobj).copy()
    changed[changed == 7] = 3
    (root / "corrections").mkdir()
    nibabel.save(nibabel.Nifti1Image(changed, label.affine), root / "corrections" / f"{validated}.nii.gz")
    new = root.parent / "scans"
    new.mkdir()
    image, values = root / "imagesTs" / "ball_7_0000.nii.gz", nibabel.load(root / "labelsTs" / "ball_7.nii.gz")
    shutil.copy(image, new / "new_scan.nii.gz")
    array = np.asarray(values.dataobj)
    low, high = np.argwhere(array).min(0), np.argwhere(array).max(0) + 1
    box = array[tuple(map(slice, low, high))]
    segments = [{"Name": "Core", "LabelValue": 1, "Layer": 1}, {"Name": "shell", "LabelValue": 1, "Layer": 0}]
    write_seg_nrrd(root / "corrections" / "new_scan.seg.nrrd", [box == 3, box == 7], segments, affine=values.affine, start=low.tolist())
    return root


def plan_of(root: Path) -> Plan:
    return WorkFolder(root / "medseg3d-work").read_plan()


def test_corrections_are_taken_as_they_are_and_the_users_files_stay(ready: Path) -> None:
    before = {path: path.read_bytes() for path in ready.rglob("*.nii.gz")}
    dataset = open_dataset(ready)
    found = read_corrections(dataset, plan_of(ready), None, ready.parent / "scans")
    take_corrections(ready, found)
    assert [(each.case, each.is_new) for each in found.found][-1] == ("new_scan", True)
    assert all(path.read_bytes() == content for path, content in before.items())
    joined = {case.name: case for case in open_dataset(ready).training}
    assert len(joined) == len(dataset.training) + 1
    expected = np.asarray(nibabel.load(ready / "labelsTs" / "ball_7.nii.gz").dataobj)
    label_map = nibabel.load(taken_label(ready, "new_scan"))
    np.testing.assert_array_equal(np.asarray(label_map.dataobj), expected, "segments by name, filled up on the image's grid")
    assert joined["new_scan"].label == taken_label(ready, "new_scan")
    assert not read_corrections(open_dataset(ready), plan_of(ready), None, None).found, "what is taken is not taken again"
    taken_label(ready, "new_scan").unlink()
    assert "new_scan" not in {case.name for case in open_dataset(ready).training}, "whoever deletes it has the dataset as it was"


def test_what_cannot_be_used_is_told_at_once_and_nothing_is_taken(ready: Path) -> None:
    shutil.copy(ready / "labelsTs" / "ball_6.nii.gz", ready / "corrections")
    shutil.copy(ready / "labelsTs" / "ball_6.nii.gz", ready / "corrections" / "unknown.nii.gz")
    with pytest.raises(DatasetError, match=r"nothing was taken") as error:
        read_corrections(open_dataset(ready), plan_of(ready), None, ready.parent / "scans")
    assert "ball_6: is in the test set" in str(error.value)
    shutil.copy(ready / "labelsTr" / "ball_1.nii.gz", ready / "corrections")
    shutil.copy(ready / "imagesTs" / "ball_6_0000.nii.gz", ready.parent / "scans" / "ball_1.nii.gz")
    with pytest.raises(DatasetError, match="ball_1: is a training case, and another image"):
        read_corrections(open_dataset(ready), plan_of(ready), None, ready.parent / "scans")
    assert "unknown: no image of this name in the training cases" in str(error.value)
    assert read_taken(ready).cases == {}


def test_the_network_learns_on_and_the_same_cases_say_how(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = WorkFolder(ready / "medseg3d-work")
    earlier_digest = load_model(work.root, folds="0", device="cpu").weights_identity
    validated = read_folds(work.splits).folds[0].validation
    words = ["correct", str(ready), "-i", str(ready.parent / "scans"), "--epochs", "1", "--iterations", "2", "--device", "cpu", "--json"]
    assert main([*words, "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["number"], document["is_finished"], document["added"]) == (1, True, ["new_scan"])
    (change,) = document["changes"]
    assert set(change["cases"]) == set(validated), "the same validation cases"
    assert change["difference"]["mean"] == pytest.approx(change["after"]["mean"] - change["before"]["mean"])
    assert change["verdict"] == "too few cases"
    split = read_folds(work.splits).folds[0]
    assert "new_scan" in split.train, "a new case is trained on by the folds that are trained"
    assert json.loads((work.fold(change["configuration"], "0") / "training.json").read_text())["init"], (
        "it began with the weights of before"
    )
    assert load_model(work.root / "earlier" / "1", folds="0", device="cpu").weights_identity == earlier_digest
    before, after = WorkFolder(work.root / "earlier" / "1").read_plan(), work.read_plan()
    assert before.configurations == after.configurations, "networks, spacing and normalization are those of the weights"
    assert after.num_training == before.num_training + 1
    with pytest.raises(InputError, match="no correction that is new since the last call"):
        correct(ready, **SHORT)


def test_a_round_that_was_stopped_goes_on(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any of its steps: nothing is taken twice, and the weights of before are set aside once."""
    from medseg3d.workflows import correct as module

    late = ready / "corrections" / "new_scan.seg.nrrd"
    content = late.read_bytes()
    late.unlink()

    def stop(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    for step in ("take_corrections", "_tell", "copy_file", "measure_dataset", "preprocess", "train", "_evaluated_again"):
        with monkeypatch.context() as patched:
            patched.setattr(module, step, stop)
            with pytest.raises(KeyboardInterrupt):
                correct(ready, **SHORT)
    late.write_bytes(content)
    now = correct(ready, images=ready.parent / "scans", **SHORT)
    assert "new_scan" not in read_taken(ready).cases, "what comes later waits for the next round"
    assert (now.number, now.is_finished, len(now.taken)) == (1, True, 1)
    assert len(read_rounds(WorkFolder(ready / "medseg3d-work")).rounds) == 1


def test_without_a_model_there_is_nothing_to_go_on_from(tiny: Path) -> None:
    (tiny / "corrections").mkdir()
    assert main(["plan", str(tiny), "--planner", str(tiny / "tiny.toml"), "-q"]) == 0
    with pytest.raises(InputError, match=r"nothing is trained here yet.*medseg3d run first"):
        correct(tiny, **SHORT)


def test_a_dicom_seg_goes_by_the_names_of_its_segments(tmp_path: Path) -> None:
    """Whatever their numbers; on a series in any plane, without its empty slices."""
    labels = Labels(names=("background", "tumor", "kidney"), values=(0, 7, 3))
    result = result_on(tmp_path / "series", "oblique", Labels(names=("background", "Kidney", "Tumor"), values=(0, 3, 7)))
    segmentation(result).save_as(tmp_path / "case.seg.dcm")
    found = read_correction(tmp_path / "case.seg.dcm", ChannelFile(path=tmp_path / "series"), labels)
    np.testing.assert_array_equal(found, result.values)


@pytest.mark.fault("A", "a correction of structures that annotated.csv leaves out for its case", "refused, naming the row to add")
def test_a_correction_of_what_its_case_was_not_annotated_for_is_refused(ready: Path) -> None:
    (ready / "annotated.csv").write_text("case,labels\nnew_*,shell\n", encoding="utf-8")
    dataset, plan = open_dataset(ready), plan_of(ready)
    with pytest.raises(DatasetError) as refused:
        read_corrections(dataset, plan, None, ready.parent / "scans")
    assert "new_scan: holds core, and by annotated.csv it was annotated for shell alone" in refused.value.findings[0]
    assert "add the row new_scan,*" in refused.value.findings[0]
    (ready / "annotated.csv").write_text("case,labels\nnew_*,shell;core\n", encoding="utf-8")
    take_corrections(ready, read_corrections(dataset, plan, None, ready.parent / "scans"))
    new = next(case for case in open_dataset(ready).training if case.name == "new_scan")
    assert new.annotated == ("shell", "core"), "rows count for new cases as well"


@pytest.mark.usefixtures("in_float32")
@pytest.mark.fault("B", "a correction of a model of --members, which share the cases of one fold", "all members learn on")
def test_members_learn_on_together(ready: Path) -> None:
    work = WorkFolder(ready / "medseg3d-work")
    document = json.loads(work.splits.read_text(encoding="utf-8"))
    document |= {"folds": document["folds"][:1] * 2, "members": 2}
    work.splits.write_text(json.dumps(document), encoding="utf-8")
    shutil.copytree(work.fold("3d_fullres", "0"), work.fold("3d_fullres", "1"))
    now = correct(ready, images=ready.parent / "scans", **SHORT)
    assert (now.is_finished, dict(now.folds)) == (True, {"3d_fullres": ("0", "1")})
    first, second = read_folds(work.splits).folds
    assert first == second
    assert "new_scan" in first.train


@pytest.mark.fault("A3", "corrections for folds that another plan or other cases were trained with", "refused before anything is moved")
@pytest.mark.parametrize("kind", ["fewer folds", "other cases"])
def test_folds_of_before_are_not_trained_on(kind: str, ready: Path) -> None:
    work = WorkFolder(ready / "medseg3d-work")
    if kind == "fewer folds":
        shutil.copytree(work.fold("3d_fullres", "0"), work.fold("3d_fullres", "7"))
    else:
        document = json.loads(work.splits.read_text(encoding="utf-8"))
        document["folds"][0], document["folds"][1] = document["folds"][1], document["folds"][0]
        work.splits.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(PlanMismatchError, match=r"fold_[07]: was trained with (other folds|another plan or other cases)"):
        correct(ready, images=ready.parent / "scans", **SHORT)
    assert work.weights("3d_fullres", "0").exists()
    assert not read_rounds(work).rounds
    assert not read_taken(ready).cases


@pytest.mark.fault(
    "C", "corrections while another fold of the work folder is being trained, or at once by two processes", "refused, nothing is moved"
)
@pytest.mark.parametrize("busy", ["fold", "round"])
def test_a_round_leaves_what_others_work_on_alone(busy: str, ready: Path) -> None:
    work = WorkFolder(ready / "medseg3d-work")
    other = work.fold("3d_fullres", "1")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with fold_lock(other, "is being trained") if busy == "fold" else correcting_lock(work):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        with pytest.raises(BusyError, match="is being trained" if busy == "fold" else "is learning from corrections"):
            correct(ready, images=ready.parent / "scans", **SHORT)
    finally:
        done.set()
        thread.join()
    assert work.weights("3d_fullres", "0").exists()
    assert not read_rounds(work).rounds
    assert not read_taken(ready).cases
