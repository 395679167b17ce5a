from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.commandline.cli import main
from medseg3d.data.checks import DoctorReport, check_case
from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.reading import read_case
from medseg3d.data.repairs import repair_label
from medseg3d.errors import InputError
from medseg3d.images import read_header, read_image, write_image
from medseg3d.workflows.doctor import doctor

SHAPE = (6, 7, 8)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


@pytest.fixture
def root(tmp_path) -> Path:
    """Six cases without a fault."""
    rng = np.random.default_rng(0)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:4, 2:4, 2:6] = 1
    labels[4, 4, 4] = 2
    for name in "abcdef":
        for folder in ("imagesTr", "labelsTr"):
            (tmp_path / folder).mkdir(exist_ok=True)
        write_image(tmp_path / "imagesTr" / f"{name}_0000.nii.gz", rng.normal(100, 10, SHAPE).astype(np.float32), AFFINE)
        write_image(tmp_path / "labelsTr" / f"{name}.nii.gz", labels, AFFINE)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": 6,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    return tmp_path


def found(report: DoctorReport) -> set[tuple[str | None, str, str]]:
    return {(finding.case, finding.kind, finding.severity) for finding in report.findings}


def change(path: Path, array: np.ndarray | None = None, affine: np.ndarray | None = None) -> None:
    image = read_image(path)
    write_image(path, image.array if array is None else array, image.header.geometry.matrix if affine is None else affine)


def moved(offset: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[1, 3] = offset
    return affine


def test_a_sound_dataset_has_no_findings(root, capsys) -> None:
    report = doctor(root, fix=False)
    assert report.findings == ()
    assert (report.num_training, report.num_errors) == (6, 0)
    assert main(["doctor", str(root)]) == 0
    assert capsys.readouterr().out == "6 cases read, no errors.\n"


def test_all_kinds_of_faults_are_found_at_once(root) -> None:
    images, labels = root / "imagesTr", root / "labelsTr"
    content = (images / "a_0000.nii.gz").read_bytes()
    (images / "a_0000.nii.gz").write_bytes(content[: len(content) // 2])
    broken = read_image(images / "b_0000.nii.gz").array.copy()
    broken[0, 0, 0] = np.nan
    change(images / "b_0000.nii.gz", broken)
    change(labels / "b.nii.gz", np.full(SHAPE, 9, np.uint8))
    change(labels / "c.nii.gz", np.zeros(SHAPE, np.uint8), moved(5))
    change(images / "d_0000.nii.gz", 100_000 * read_image(images / "d_0000.nii.gz").array)
    change(labels / "d.nii.gz", affine=moved(0.05))
    change(labels / "e.nii.gz", np.full(SHAPE, 0.5, np.float32))
    (images / "f_0000.nii.gz").write_bytes((images / "e_0000.nii.gz").read_bytes())
    (root / "imagesTs").mkdir()
    (root / "imagesTs" / "t_0000.nii.gz").write_bytes((images / "e_0000.nii.gz").read_bytes())
    write_image(labels / "g.nii.gz", np.zeros(SHAPE, np.uint8), AFFINE)
    report = doctor(root, fix=False)
    assert found(report) == {
        ("g", "files", "error"),
        ("a", "unreadable", "error"),
        ("b", "not finite", "error"),
        ("b", "label values", "error"),
        ("c", "empty label", "warning"),
        ("c", "grid", "error"),
        ("d", "intensity scale", "warning"),
        ("d", "grid", "fixable"),
        ("e", "label values", "error"),
        ("e", "duplicate", "warning"),
        ("t", "leakage", "warning"),
    }
    assert "label without an image" in report.findings[-2].message
    assert report.num_fixable == 1


def test_a_label_slightly_beside_its_image_is_given_the_images_header(root) -> None:
    change(root / "labelsTr" / "d.nii.gz", affine=moved(0.05))
    before = (root / "labelsTr" / "d.nii.gz").read_bytes()
    doctor(root, fix=False)
    assert (root / "labelsTr" / "d.nii.gz").read_bytes() == before
    report = doctor(root, fix=True)
    assert (report.findings, len(report.repaired)) == ((), 1)
    np.testing.assert_array_equal(nibabel.load(root / "labelsTr" / "d.nii.gz").affine, AFFINE)
    assert (root / "medseg3d-originals" / "labelsTr" / "d.nii.gz").read_bytes() == before
    np.testing.assert_array_equal(read_image(root / "labelsTr" / "d.nii.gz").array, read_image(root / "labelsTr" / "c.nii.gz").array)


def test_a_label_on_a_finer_grid_is_resampled_onto_its_image(root, capsys) -> None:
    path = root / "labelsTr" / "a.nii.gz"
    original = read_image(path).array
    fine = original.repeat(2, axis=0).repeat(2, axis=2)
    affine = np.diag([0.5, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-0.25, 0, -0.5)
    change(path, fine, affine)
    report = doctor(root, fix=False)
    assert (report.num_errors, report.num_fixable) == (1, 1)
    assert main(["doctor", str(root)]) == 2
    printed = capsys.readouterr().out
    assert printed.startswith("error ")
    assert "--fix resamples it" in printed
    assert "6 cases read, 1 error.\n1 finding can be repaired" in printed
    report = doctor(root, fix=True)
    assert report.findings == ()
    np.testing.assert_array_equal(read_image(path).array, original)


def test_a_label_of_another_place_is_not_repaired(root) -> None:
    path = root / "labelsTr" / "a.nii.gz"
    change(path, np.ones((9, 9, 9), np.uint8), moved(100))
    before = path.read_bytes()
    report = doctor(root, fix=True)
    assert report.num_errors == 1
    assert "0.0%" in report.findings[0].message
    assert path.read_bytes() == before
    assert not report.repaired


def test_a_turned_label_is_no_finding_but_a_repair_turns_it_back(root) -> None:
    path = root / "labelsTr" / "a.nii.gz"
    original = read_image(path).array
    affine = np.array([[-1.0, 0, 0, 5], [0, 1, 0, 0.04], [0, 0, 2, 0], [0, 0, 0, 1]])
    change(path, original[::-1], affine)
    report = doctor(root, fix=True)
    assert len(report.repaired) == 1
    np.testing.assert_array_equal(read_image(path).array, original)


def test_a_nrrd_label_is_replaced_by_a_nifti_file(root) -> None:
    import SimpleITK as sitk

    path = root / "labelsTr" / "a.nii.gz"
    change(path, affine=moved(0.05))
    sitk.WriteImage(sitk.ReadImage(path), root / "labelsTr" / "a.nrrd")
    path.unlink()
    assert doctor(root, fix=True).findings == ()
    assert not (root / "labelsTr" / "a.nrrd").exists()
    assert (root / "medseg3d-originals" / "labelsTr" / "a.nrrd").exists()
    read_case(open_dataset(root).training[0])


def test_orientations_and_units_are_noted(root) -> None:
    image = nibabel.load(root / "imagesTr" / "a_0000.nii.gz")
    turned = image.as_reoriented([[0, -1], [1, 1], [2, 1]])
    turned.header.set_xyzt_units("micron")
    nibabel.save(turned, root / "imagesTr" / "a_0000.nii.gz")
    report = doctor(root, fix=False)
    assert (None, "orientation", "note") in found(report)
    assert ("a", "header", "note") in found(report)
    assert ("a", "spacing", "warning") in found(report)


def test_channels_on_different_grids_are_an_error(tmp_path) -> None:
    first = write_image(tmp_path / "0.nii.gz", np.zeros(SHAPE, np.int16), AFFINE)
    second = write_image(tmp_path / "1.nii.gz", np.ones((6, 7, 9), np.int16), AFFINE)
    checked = check_case(Case(name="x", channels=(ChannelFile(path=first), ChannelFile(path=second))), None)
    assert {finding.kind for finding in checked.findings} == {"grid", "constant"}


def test_a_case_without_label_cannot_be_repaired(tmp_path) -> None:
    image = write_image(tmp_path / "0.nii.gz", np.zeros(SHAPE, np.int16), AFFINE)
    with pytest.raises(InputError, match="no label"):
        repair_label(Case(name="x", channels=(ChannelFile(path=image),)), root=tmp_path)


def test_a_label_that_no_case_has_is_pointed_out(root) -> None:
    description = json.loads((root / "dataset.json").read_text())
    description["labels"]["three"] = 3
    (root / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    (finding,) = doctor(root, fix=False).findings
    assert "three (3) is declared" in finding.message


def test_without_declared_labels_a_slip_of_the_mouse_is_pointed_out(root) -> None:
    (root / "dataset.json").unlink()
    values = read_image(root / "labelsTr" / "c.nii.gz").array.copy()
    values[0, 0, :3] = 7
    change(root / "labelsTr" / "c.nii.gz", values)
    rare = [finding.message for finding in doctor(root, fix=False).findings if finding.kind == "rare label"]
    assert len(rare) == 2, "label 2 has six voxels in all, label 7 is in one case"
    assert "label value 7 occurs in 1 of 6 cases (c), with 3 voxels in all" in rare[1]
    assert "dataset.json" in rare[1]


def test_quiet_prints_the_errors_only(root, capsys) -> None:
    (root / "imagesTr" / "a_0000.nii.gz").write_bytes(b"")
    assert main(["doctor", str(root), "-q"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.split(": ")[0] == "error    a"
    assert "warning" not in printed.err


def test_wrong_folds_are_findings(root) -> None:
    (root / "splits.json").write_text('[{"train": ["a"], "val": ["zz"]}]', encoding="utf-8")
    assert {finding.kind for finding in doctor(root, fix=False).findings} == {"splits"}


def test_headers_are_untouched_by_checking(root) -> None:
    before = read_header(root / "labelsTr" / "a.nii.gz")
    doctor(root, fix=True)
    assert read_header(root / "labelsTr" / "a.nii.gz") == before
