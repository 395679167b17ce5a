"""The report of a work folder: what is there is shown, what is broken is told, what is missing is not invented."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.data.open_dataset import open_dataset
from medseg3d.evaluation.evaluate_folders import Pair, evaluate_pairs
from medseg3d.evaluation.metrics import write_evaluation
from medseg3d.reporting.case_pictures import picture_roles
from medseg3d.reporting.report import read_history, read_work, write_page
from medseg3d.reporting.unsure import stored_uncertainty
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.plan import plan

NAMES = ("a<b>", "case_2", "case_3")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny cases with two labels, planned, with one measured fold whose predictions are shifted more and more."""
    root = tmp_path_factory.mktemp("data") / "Tiny"
    generator = np.random.default_rng(0)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    for folder in ("imagesTr", "labelsTr", "medseg3d-work/models/3d_fullres/fold_0/validation"):
        (root / folder).mkdir(parents=True)
    work = WorkFolder(root / "medseg3d-work")
    for shift, name in enumerate(NAMES):
        labels = np.zeros((24, 22, 16), np.uint8)
        labels[6:16, 6:16, 4:12] = 1
        if shift:
            labels[8:11, 8:11, 6:9] = 2
        image = (labels * 50 + generator.normal(100, 5, labels.shape)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image, affine), root / f"imagesTr/{name}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), root / f"labelsTr/{name}.nii.gz")
        predicted = np.roll(labels, 2 * shift, axis=0)
        nibabel.save(nibabel.Nifti1Image(predicted, affine), work.validation("3d_fullres", "0") / f"{name}.nii.gz")
    (root / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, "organ": 1, "lesion": 2},
                "numTraining": 3,
                "file_ending": ".nii.gz",
            }
        )
    )
    labels_of = plan(root).plan.labels
    validation = work.validation("3d_fullres", "0")
    pairs = [Pair(case=n, prediction=validation / f"{n}.nii.gz", reference=root / f"labelsTr/{n}.nii.gz") for n in NAMES]
    write_evaluation(evaluate_pairs(pairs, labels=labels_of), validation / "metrics.json")
    records = [{"epoch": e, "train_loss": 1.0 / (e + 1), "pseudo_dice": {"organ": 0.5, "lesion": None}, "seconds": 1.0} for e in range(3)]
    lines = [json.dumps(record) for record in records]
    (work.fold("3d_fullres", "0") / "history.jsonl").write_text("\n".join([lines[0], '{"epoch": 1, "tra', *lines[1:]]) + "\n")
    work.timings.write_text(json.dumps({"format": "medseg3d/timings", "format_version": 1, "seconds": {"plan": 0.5, "train": 9.0}}))
    return root


def test_a_work_folder_becomes_a_page_with_pictures_and_reasons(dataset: Path) -> None:
    path = write_page(dataset, dataset / "medseg3d-work", dataset / "medseg3d-work/report.html")
    page = path.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert "a&lt;b&gt;" in page
    assert "a<b>" not in page
    assert "patch" in page
    assert "LPS (3 cases)" in page
    assert {file.name for file in path.with_suffix("").iterdir()} >= {"methods.md", "claim-2024.csv", "validation-3d_fullres-labels.tex"}


def test_what_the_files_say_is_what_the_report_holds(dataset: Path) -> None:
    report = read_work(WorkFolder(dataset / "medseg3d-work"), dataset=open_dataset(dataset))
    (fold,) = report.folds
    assert fold.scores is not None
    dice = {(s.case, s.label): s.dice for s in fold.scores}
    assert dice["a<b>", "organ"] == 1.0
    assert dice["a<b>", "lesion"] is None
    assert dice["case_2", "lesion"] == pytest.approx(1 / 3)
    assert [picture.case for picture in report.pictures] == ["case_3", "case_2", "a<b>"]
    assert [(case, [(f.label, f.kind) for f in failures]) for case, failures in report.mistakes.items()] == [
        ("case_3", [("lesion", "shifted"), ("organ", "shifted")]),
        ("case_2", [("lesion", "shifted"), ("organ", "shifted")]),
    ]
    assert Path(report.work).is_absolute()
    assert report.facts is not None
    assert [(label.name, label.num_cases) for label in report.facts.labels] == [("organ", 3), ("lesion", 2)]
    assert report.timings == {"plan": 0.5, "train": 9.0}
    assert report.explanations
    assert any("history.jsonl" in warning and "2" in warning for warning in report.warnings)


def test_a_broken_file_is_told_on_the_page(dataset: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    validation = WorkFolder(work).validation("2d", "1")
    validation.mkdir(parents=True)
    (validation / "metrics.json").write_text('{"format": "medseg3d/metrics", "format_version": 1, "cases"')
    (work / "timings.json").write_text("[]")
    (work / "plan.json").write_text("{}")
    report = read_work(WorkFolder(work))
    told = "\n".join(report.warnings)
    assert all(name in told for name in ("metrics.json", "timings.json", "plan.json"))
    assert write_page(tmp_path / "nowhere", work, work / "report.html").exists()


def test_the_last_line_of_an_epoch_counts(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"epoch": 1, "x": 1}\n{"epoch": 0}\n[]\n{"epoch": 1, "x": 2}\n')
    troubles: list[str] = []
    assert read_history(path, troubles) == [{"epoch": 0}, {"epoch": 1, "x": 2}]
    assert len(troubles) == 1


@pytest.mark.parametrize("count", range(12))
def test_no_case_is_pictured_twice(count: int) -> None:
    places = [place for place, _ in picture_roles(count)]
    assert places == sorted(set(places))
    assert places[:1] == [0][:count]
    assert places[-1:] == [count - 1][:count]


def test_probabilities_beside_a_label_map_become_uncertainty_and_damaged_ones_a_warning(dataset: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(dataset, tmp_path / "Tiny"))
    work = WorkFolder(root / "medseg3d-work")
    folder = work.validation("3d_fullres", "0")
    labels = work.read_plan().labels
    shape = nibabel.load(folder / "case_2.nii.gz").shape
    chances = np.zeros((3, *shape), np.float16)
    chances[0] = 1
    chances[:2, :, 0] = 0.5  # unsure in the first row
    np.savez(folder / "case_2.npz", probabilities=chances, values=np.array(labels.values))
    (folder / "case_3.npz").write_bytes(b"no archive")
    report = read_work(work, dataset=open_dataset(root))
    scenes = {picture.case: picture.scene for picture in report.pictures}
    assert scenes["case_2"] is not None
    assert scenes["a<b>"] is not None
    assert scenes["case_3"] is not None
    assert any("case_3.npz: the probabilities cannot be read" in warning for warning in report.warnings)
    assert "uncertainty" in scenes["case_2"]["layers"]
    assert "uncertainty" not in (*scenes["a<b>"]["layers"], *scenes["case_3"]["layers"])
    unsure = stored_uncertainty(labels)(open_dataset(root).training[1], folder)
    assert unsure is not None
    assert (unsure[:, 0].min(), unsure[:, 1:].max()) == (191, 0)
