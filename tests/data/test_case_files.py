"""One bad file among good ones: that case is listed, the others are used."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from medseg3d.commandline.cli import main
from medseg3d.data.case_files import Findings, image_files, listed_file, printable
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.prediction_cases import find_prediction_cases
from medseg3d.errors import DatasetError
from medseg3d.images import write_image

SHAPE = (6, 5, 4)


def put(path: Path, *, volumes: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.arange(np.prod(SHAPE) * volumes, dtype=np.int16).reshape(*SHAPE, volumes)
    if path.parent.name.startswith("labels"):
        array = (array > 60).astype(np.int16)
    return write_image(path, array if volumes > 1 else array[..., 0], np.eye(4))


@pytest.fixture
def root(tmp_path) -> Path:
    """Cases a to d in nnU-Net's layout, with a JSON."""
    for name in "abcd":
        put(tmp_path / f"imagesTr/{name}_0000.nii.gz"), put(tmp_path / f"labelsTr/{name}.nii.gz")
    labels = {"background": 0, "half": 1}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": labels}), encoding="utf-8")
    return tmp_path


def picture(root: Path) -> str:
    (root / "imagesTr/preview.png").write_bytes(b"\x89PNG")
    return "preview"


def picture_of_a_case(root: Path) -> str:
    (root / "imagesTr/b_0000.nii.gz").rename(root / "imagesTr/b_0000.png")
    return "b"


def picture_beside_a_case(root: Path) -> str:
    (root / "imagesTr/b_0000.png").write_bytes(b"\x89PNG")
    return "b_0000.png"


def freesurfer_label(root: Path) -> str:
    (root / "labelsTr/b.nii.gz").rename(root / "labelsTr/b.mgz")
    return "b"


def lost_label(root: Path) -> str:
    (root / "labelsTr/b.nii.gz").unlink()
    return "b"


def lost_image(root: Path) -> str:
    (root / "imagesTr/b_0000.nii.gz").unlink()
    return "b"


def second_label(root: Path) -> str:
    put(root / "labelsTr/b.nii")
    return "b"


def picture_named_as_a_case(root: Path) -> str:
    (root / "imagesTr/b.png").write_bytes(b"\x89PNG")
    return "b.png"


def superfluous_channel(root: Path) -> str:
    put(root / "imagesTr/b_0001.nii.gz")
    return "b"


def latin_bytes(root: Path) -> str:
    for folder, ending in (("imagesTr", b"_0000.nii.gz"), ("labelsTr", b".nii.gz")):
        source = os.fsencode(root / folder) + b"/b" + ending
        os.rename(source, os.fsencode(root / folder) + b"/M\xfcller" + ending)
    return "M\\xfcller"


def both_unicode_forms(root: Path) -> str:
    for form in ("NFC", "NFD"):
        put(root / "labelsTr" / unicodedata.normalize(form, "é.nii.gz"))
        put(root / "imagesTr" / unicodedata.normalize(form, "é_0000.nii.gz"))
    return "é"


DAMAGES = [
    picture, picture_of_a_case, picture_beside_a_case, picture_named_as_a_case,
    freesurfer_label, lost_label, lost_image, second_label, superfluous_channel,
    latin_bytes, both_unicode_forms,
]  # fmt: skip


@pytest.mark.fault("B", "a file that cannot be used, seen while files are listed", "costs its case; plan goes on and exits with 3")
@pytest.mark.parametrize("damage", DAMAGES)
def test_one_bad_file_costs_its_case(root, damage) -> None:
    name = damage(root)
    dataset = open_dataset(root)
    assert [failure.case for failure in dataset.failures] == [name]
    assert {case.name for case in dataset.training} == set("abcd") - ({"b"} if name == "b" or damage is latin_bytes else set())
    assert all(failure.reason.isprintable() for failure in dataset.failures)


@pytest.mark.parametrize("damage", [picture, latin_bytes])
def test_the_plan_is_made_from_the_others(root, damage, capsys) -> None:
    name = damage(root)
    assert main(["plan", str(root)]) == 3
    assert f"  - {name} (files): " in capsys.readouterr().err
    assert (root / "medseg3d-work/plan.json").exists()
    assert main(["doctor", str(root)]) == 2


def test_a_dataset_of_which_nothing_is_left_is_refused_with_all_findings(root) -> None:
    shutil.rmtree(root / "labelsTr")
    (root / "labelsTr").mkdir()
    with pytest.raises(DatasetError) as error:
        open_dataset(root)
    assert all(f"{name}: image without a label" in str(error.value) for name in "abcd")


def test_a_bad_test_image_does_not_keep_anyone_from_training(root) -> None:
    put(root / "imagesTs/t_0000.nii.gz"), (root / "imagesTs/u_0000.mgz").write_bytes(b"")
    dataset = open_dataset(root)
    assert not dataset.failures
    assert [failure.case for failure in dataset.test_failures] == ["u_0000"]
    assert [case.name for case in dataset.test] == ["t"]


def test_a_cut_4d_file_costs_its_case(tmp_path) -> None:
    for name in "abc":
        put(tmp_path / f"images/{name}.nii.gz", volumes=2), put(tmp_path / f"labels/{name}.nii.gz")
    (tmp_path / "images/a.nii.gz").write_bytes((tmp_path / "images/a.nii.gz").read_bytes()[:40])
    put(tmp_path / "images/c.nii.gz", volumes=3)
    put(tmp_path / "images/d.nii.gz", volumes=2), put(tmp_path / "labels/d.nii.gz")
    dataset = open_dataset(tmp_path)
    assert dataset.channel_names == ("channel_0", "channel_1")
    assert [case.name for case in dataset.training] == ["b", "d"]
    assert [failure.case for failure in dataset.failures] == ["a", "c"]


def test_cases_that_failed_keep_their_place_in_the_folds_of_the_dataset(root) -> None:
    (root / "splits_final.json").write_text('[{"train": ["a", "b"], "val": ["c", "d"]}]', encoding="utf-8")
    lost_label(root)
    splits = open_dataset(root).declared_splits
    assert splits is not None
    assert (splits[0].train, splits[0].validation) == (("a", "b"), ("c", "d"))


@pytest.mark.fault("B", "one image that cannot be used, among images to predict", "is listed, the others are predicted")
@pytest.mark.parametrize("damage", [picture_beside_a_case, latin_bytes, both_unicode_forms])
def test_images_to_predict_are_found_beside_a_bad_one(root, damage) -> None:
    name = damage(root)
    cases, failures = find_prediction_cases(root / "imagesTr", num_channels=1)
    assert [failure.case for failure in failures] == [f"{name}_0000" if damage is latin_bytes else name]
    assert {"a", "c", "d"} <= {case.name for case in cases}


# ---- names


@pytest.mark.fault("E", "names of image and label that look equal (Unicode NFC and NFD)", "are one case")
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_that_look_equal_are_equal(tmp_path, forms) -> None:
    for name in ("Müller", "Jäger"):
        for folder, form in zip(("images", "labels"), forms, strict=True):
            put(tmp_path / folder / f"{unicodedata.normalize(form, name)}.nii.gz")
    assert [case.name for case in open_dataset(tmp_path).training] == ["Jäger", "Müller"]


@pytest.mark.fault("E", "names of image and label that differ in upper and lower case", "the message says which file to rename")
def test_names_that_differ_in_upper_and_lower_case_are_pointed_out(tmp_path) -> None:
    for image, label in (("Case1", "case1"), ("x", "x")):
        put(tmp_path / f"images/{image}.nii.gz"), put(tmp_path / f"labels/{label}.nii.gz")
    failures = {failure.case: failure.reason for failure in open_dataset(tmp_path).failures}
    assert "case1.nii.gz differs in upper and lower case" in failures["Case1"]


@pytest.mark.fault("E", "Windows' separators and decomposed accents in the lists of a JSON", "the files are found")
def test_listed_files_are_found_however_they_are_written(tmp_path) -> None:
    there = put(tmp_path / "a" / unicodedata.normalize("NFD", "Müller.nii.gz"))
    for text in ("a/Müller.nii.gz", "a\\Müller.nii.gz", ".\\a\\Müller.nii.gz"):
        assert listed_file(tmp_path, text).samefile(there)
    assert listed_file(tmp_path, "a/lost.nii.gz") == tmp_path / "a/lost.nii.gz"


def test_hidden_files_and_notes_are_no_images(tmp_path) -> None:
    for name in ("._a.nii.gz", ".DS_Store", "Thumbs.db", "a.json", "a.nii.gz.md5", "notes.xlsx"):
        (tmp_path / name).write_bytes(b"x")
    findings = Findings()
    assert image_files(tmp_path, findings) == {}
    assert not findings
    assert not findings.failures


def test_printable_names_can_be_written_anywhere() -> None:
    assert printable(os.fsdecode(b"M\xfcller")).isascii()
