"""Preprocessing a dataset: incremental, one read for all configurations, and a bad case does not stop the others."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.commandline.cli import main
from medseg3d.images import read_image, write_image
from medseg3d.labels import Labels
from medseg3d.plan import Configuration, NetworkPlan, Normalization, Plan, Resampling, TrainingPlan
from medseg3d.preprocessing.store import Store
from medseg3d.records import write_record
from medseg3d.work_folder import work_folder
from medseg3d.workflows import preprocess as workflow


def configuration(name: str, spacing: tuple[float, ...]) -> Configuration:
    network = NetworkPlan(
        family="plain_unet", dimensions=len(spacing), in_channels=1, num_classes=2, features=(4,), kernel_sizes=((3,) * len(spacing),),
        strides=((1,) * len(spacing),),
        encoder_blocks=(1,), decoder_blocks=(),
    )  # fmt: skip
    return Configuration(
        name=name, spacing=spacing, median_shape=(8, 8, 8), patch_size=(8, 8, 8)[-len(spacing) :], batch_size=2, batch_dice=False,
        network=network, normalization=(Normalization(scheme="zscore"),), resampling=Resampling(), training=TrainingPlan(),
        mirror_axes=(0,), data=name,
    )  # fmt: skip


@pytest.fixture
def root(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        for folder, voxels in (("images", generator.normal(size=(9, 8, 7))), ("labels", generator.integers(0, 2, (9, 8, 7)))):
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16 if folder == "labels" else np.float32), np.eye(4)),
                         tmp_path / folder / f"{name}.nii.gz")  # fmt: skip
    write(tmp_path, configuration("3d_fullres", (1.0, 1.0, 1.0)), configuration("2d", (0.8, 0.8)))
    return tmp_path


def write(root, *configurations: Configuration) -> None:
    plan = Plan(
        dataset="d", planner="p", orientation="canonical", axis_order=(0, 1, 2), channels=("MR",), modality_reason="",
        labels=Labels(names=("background", "organ"), values=(0, 1)), num_training=3, gpu_memory_gb=8,
        configurations={c.name: c for c in configurations}, recommended="3d_fullres", recommended_reason="", fingerprint_digest="",
    )  # fmt: skip
    write_record(work_folder(root, None).plan, plan, "plan")


def test_all_configurations_are_made_from_one_read_and_kept_afterwards(root, monkeypatch):
    reads = []
    read = workflow.read_case
    monkeypatch.setattr(workflow, "read_case", lambda case, **how: reads.append(case.name) or read(case, **how))
    events = []
    first = workflow.preprocess(root, on=events.append)
    assert (first.made, first.kept, first.failures) == (("a", "b", "c"), (), ())
    assert sorted(reads) == ["a", "b", "c"]
    assert [Store(folder).names() for folder in first.folders] == [("a", "b", "c")] * 2
    assert (events[-1].done, events[-1].total) == (3, 3)
    second = workflow.preprocess(root)
    assert (second.made, second.kept) == ((), ("a", "b", "c"))
    assert len(reads) == 3


def test_only_what_changed_is_made_again(root):
    workflow.preprocess(root)
    nibabel.save(nibabel.Nifti1Image(np.ones((9, 8, 7), np.float32), np.eye(4)), root / "images" / "b.nii.gz")
    assert workflow.preprocess(root).made == ("b",)
    write(root, configuration("3d_fullres", (1.5, 1.0, 1.0)), configuration("2d", (0.8, 0.8)))
    assert workflow.preprocess(root, configurations=["2d"]).made == ()
    assert workflow.preprocess(root).made == ("a", "b", "c")


def test_a_bad_case_is_listed_and_the_others_are_done(root):
    path = root / "images" / "b.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    result = workflow.preprocess(root, configurations=["3d_fullres"], jobs=1)
    assert result.made == ("a", "c")
    assert [failure.case for failure in result.failures] == ["b"]
    assert "b" in result.failures[0].reason


@pytest.mark.fault("B", "one case in meters, resampled to the others' spacing", "costs that case; nothing is allocated")
def test_a_case_that_no_memory_holds_costs_that_case(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny), "--planner", str(tiny / "tiny.toml"), "-q"]) == 0
    for file in ("imagesTr/ball_1_0000.nii.gz", "labelsTr/ball_1.nii.gz"):
        image = read_image(tiny / file)
        write_image(tiny / file, image.array, image.header.geometry.matrix @ np.diag([1000, 1000, 1000, 1]))
    capsys.readouterr()
    assert main(["preprocess", str(tiny), "-c", "3d_fullres", "--jobs", "1"]) == 3
    assert "ball_1 (preprocess): resampled to the plan's spacing it would take" in capsys.readouterr().err
