"""A teacher's probabilities become soft labels of the same dataset, which trains a student as any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.commandline.cli import main
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.soft_labels import most_probable, read_soft
from medseg3d.errors import InputError, UnsupportedError
from medseg3d.options import DistillOptions
from medseg3d.training.folds import read_folds
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.distill import STEPS, DistillResult, distill

VALUES = (0, 3, 7)


@pytest.fixture(scope="module")
def made(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> DistillResult:
    """The tiny dataset with what its fold 0 says."""
    return distill(trained, trained / "medseg3d-work", tmp_path_factory.mktemp("distilled") / "Soft")


def test_soft_labels_are_the_share_of_the_teacher_and_the_rest_of_the_label_map(made: DistillResult, trained: Path, tmp_path: Path) -> None:
    case = open_dataset(made.dataset).training[1]
    assert case.label is not None
    soft, header = read_soft(case.label, VALUES)
    label = nibabel.load(trained / "labelsTr" / f"{case.name}.nii.gz")
    values = np.asarray(label.dataobj)  # type: ignore[attr-defined]
    assert np.allclose(header.geometry.matrix, label.affine)  # type: ignore[attr-defined]
    assert np.array_equal(most_probable(soft, VALUES), values)
    image, output = str(case.channels[0].path), tmp_path / "one.nii.gz"
    assert main(["predict", "-m", str(trained / "medseg3d-work"), "-i", image, "-o", str(output), "--probabilities", "-q"]) == 0
    with np.load(tmp_path / "one.npz") as file:
        teacher = np.moveaxis(file["probabilities"], 0, -1).astype(np.float32)
    expected = 0.4 * teacher + 0.6 * np.stack([values == value for value in VALUES], -1)
    assert np.abs(soft - expected)[..., 1:].max() < 1.5 / STEPS  # rounded down
    assert np.ptp(teacher) > 0.1


def test_folds_images_and_labels_are_those_of_the_teacher(made: DistillResult, trained: Path) -> None:
    found = open_dataset(made.dataset)
    folds = read_folds(WorkFolder(trained / "medseg3d-work").splits).folds
    assert found.declared_splits == folds
    assert {case.channels[0].path.parent for case in found.training} == {trained / "imagesTr"}
    assert found.labels is not None
    assert (found.labels.names, found.labels.values, found.labels.soft) == (("background", "shell", "core"), VALUES, True)
    assert made.num_cases == len(found.training) == 6


def test_what_the_same_teacher_made_is_kept_and_anything_else_refused(made: DistillResult, trained: Path, tmp_path: Path) -> None:
    times = {file: file.stat().st_mtime_ns for file in (made.dataset / "labelsTr").iterdir()}
    distill(trained, trained / "medseg3d-work", made.dataset)
    assert {file: file.stat().st_mtime_ns for file in (made.dataset / "labelsTr").iterdir()} == times
    with pytest.raises(InputError, match="another teacher, dataset or --share"):
        distill(trained, trained / "medseg3d-work", made.dataset, DistillOptions(share=0.3))
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is not empty"):
        distill(trained, trained / "medseg3d-work", tmp_path)


def test_a_label_map_that_was_corrected_since_is_distilled_again(trained: Path, tmp_path: Path) -> None:
    for part in ("imagesTr", "labelsTr", "dataset.json"):
        (shutil.copytree if (trained / part).is_dir() else shutil.copy)(trained / part, tmp_path / "Own" / part)
    soft = distill(tmp_path / "Own", trained / "medseg3d-work", tmp_path / "Soft", DistillOptions(share=0.1)).dataset / "labelsTr"
    times = {file.name: file.stat().st_mtime_ns for file in soft.iterdir()}
    corrected = next(iter(sorted((tmp_path / "Own" / "labelsTr").iterdir())))
    label = nibabel.load(corrected)
    values = np.zeros(label.shape, np.uint8)  # type: ignore[attr-defined]
    values[2:5, 2:5, 2:5] = 3
    nibabel.save(nibabel.Nifti1Image(values, label.affine), corrected)  # type: ignore[attr-defined]
    distill(tmp_path / "Own", trained / "medseg3d-work", tmp_path / "Soft", DistillOptions(share=0.1))
    assert [name for name, before in times.items() if (soft / name).stat().st_mtime_ns != before] == [corrected.name]
    assert np.array_equal(most_probable(read_soft(soft / corrected.name, VALUES)[0], VALUES), values)


def test_a_student_is_planned_and_preprocessed_from_the_command_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, teacher = tmp_path / "Soft", str(trained / "medseg3d-work")
    assert main(["distill", str(trained), "-m", teacher, "-o", str(soft), "--share", "0.2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_cases"] == 6
    assert main(["plan", str(soft), "--planner", str(trained / "tiny.toml"), "-q"]) == 0
    assert WorkFolder(soft / "medseg3d-work").read_plan().labels.soft


@pytest.mark.fault("A", "distill with a teacher that calls the dataset's label values otherwise", "refused, with both lists")
def test_a_teacher_of_other_names_is_refused(trained: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "Balls", ignore=shutil.ignore_patterns("medseg3d-work")))
    declared = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    for labels, said in (({"core": 3, "shell": 7}, "3 core, 7 shell"), ({"shell": 3, "core": 7, "rim": 8}, "8 rim")):
        (root / "dataset.json").write_text(json.dumps({**declared, "labels": {"background": 0, **labels}}), encoding="utf-8")
        with pytest.raises(InputError, match=f"the labels are .*{said}.*to the teacher they are 3 shell, 7 core"):
            distill(root, trained / "medseg3d-work", tmp_path / "Soft")
    (root / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    (root / "annotated.csv").write_text("case,labels\nball_1,shell\n", encoding="utf-8")
    with pytest.raises(UnsupportedError, match="the dataset has regions, ignored voxels, or partial or soft labels"):
        distill(root, trained / "medseg3d-work", tmp_path / "Soft")
