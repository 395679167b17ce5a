"""Every family goes the whole way: plan, preprocess, train, select, predict; and the losses and schedules that a planner names."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.commandline.cli import main
from medseg3d.work_folder import WorkFolder
from tests.tiny_planner import tiny_planner

ALIKE = ("unet_2015", "unet_wide", "vnet_batch_norm")
"""Presets of families that another preset of the same family stands for."""
MONAI = ("dynunet", "segresnet", "monai_attention_unet", "mednext", "swinunetr")
MONAI_TINY = """
[network]
base_features = {features}
max_stages = {stages}
[memory]
gpu_memory_gb = 24
[training]
epochs = 1
iterations_per_epoch = 1
validation_iterations = 1
"""


def short(preset: str) -> str:
    """A planner of a network that is still the family's, trained for two steps."""
    return tiny_planner(preset, features=(8, 16), epochs=1, iterations=2, validations=1)


def train(tiny: Path, work: Path, planner: Path) -> None:
    """From the plan to a trained fold."""
    place = [str(tiny), "-w", str(work)]
    assert main(["plan", *place, "--planner", str(planner), "-q"]) == 0
    assert main(["preprocess", *place, "-c", "3d_fullres", "-q"]) == 0
    assert main(["train", *place, "--fold", "0", "--device", "cpu", "-q"]) == 0


def run_all(tiny: Path, work: Path, planner: Path) -> Path:
    """From the plan to label maps of the test images."""
    place = [str(tiny), "-w", str(work)]
    train(tiny, work, planner)
    assert main(["select", *place, "--device", "cpu", "-q"]) == 0
    assert main(["predict", *place, "-i", str(tiny / "imagesTs"), "-o", str(work / "out"), "--device", "cpu", "-q"]) == 0
    return work / "out"


@pytest.mark.parametrize("preset", ["u2net", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet_3d", "vnet", *ALIKE))])
def test_every_family_goes_the_whole_way(preset: str, tiny: Path, tmp_path: Path) -> None:
    planner = tmp_path / "tiny.toml"
    planner.write_text(short(preset), encoding="utf-8")
    out = run_all(tiny, tmp_path / "work", planner)
    for file in (tiny / "imagesTs").iterdir():
        image, predicted = nibabel.load(file), nibabel.load(out / file.name.replace("_0000", ""))
        assert predicted.shape == image.shape
        assert np.array_equal(predicted.affine, image.affine)
        assert set(np.unique(predicted.dataobj)) <= {0, 3, 7}
    history = (tmp_path / "work/models/3d_fullres/fold_0/history.jsonl").read_text(encoding="utf-8")
    assert json.loads(history)["train_loss"] is not None
    work = WorkFolder(tmp_path / "work")
    configuration = work.read_plan().configuration(None)
    if preset in ("unet_2015", "unet_3d"):
        assert all(n > m for n, m in zip(configuration.patch_size, configuration.median_shape, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("preset", MONAI)
def test_monais_networks_go_the_whole_way(preset: str, tiny: Path, tmp_path: Path) -> None:
    is_swin = preset == "swinunetr"
    planner = tmp_path / "tiny.toml"
    text = MONAI_TINY.format(features=12 if is_swin else 8, stages=0 if is_swin else 3)
    planner.write_text(f'extends = "{preset}"\n{text}', encoding="utf-8")
    out = run_all(tiny, tmp_path / "work", planner)
    assert sorted(file.name for file in out.glob("*.nii.gz")) == ["ball_6.nii.gz", "ball_7.nii.gz"]


def test_the_planners_loss_schedule_and_layer_rates_are_what_trains(tiny: Path, tmp_path: Path) -> None:
    losses = {}
    for loss in ("dice_ce", "focal_tversky"):
        planner = tmp_path / f"{loss}.toml"
        planner.write_text(
            f'{short("default")}loss = "{loss}"\nschedule = "cosine"\nwarmup = 0.5\n[training.layer_learning_rates]\nencoder = 0.0\n',
            encoding="utf-8",
        )
        train(tiny, tmp_path / loss, planner)
        record = json.loads((tmp_path / loss / "models/3d_fullres/fold_0/history.jsonl").read_text(encoding="utf-8"))
        losses[loss] = record["train_loss"]
    assert losses["dice_ce"] > 0.5  # minus Dice plus cross-entropy of an untrained network
    assert 0 <= losses["focal_tversky"] <= 1


def test_a_learning_rate_is_searched_from_the_command_line(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "medseg3d-work/models/3d_fullres/fold_0/weights.safetensors").read_bytes()
    assert main(["train", str(trained), "--fold", "0", "--find-lr", "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["curve"]["rates"]) >= 10
    assert Path(document["figure"]).exists()
    assert (trained / "medseg3d-work/models/3d_fullres/fold_0/weights.safetensors").read_bytes() == before


def test_a_changed_plan_leaves_trained_models_usable(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planner = tmp_path / "tiny.toml"
    planner.write_text(short("default"), encoding="utf-8")
    work = tmp_path / "work"
    run_all(tiny, work, planner)
    first = np.asarray(nibabel.load(work / "out/ball_6.nii.gz").dataobj)
    capsys.readouterr()
    assert main(["plan", str(tiny), "-w", str(work), "--planner", "small"]) == 0
    assert "which predict goes on using" in " ".join(capsys.readouterr().out.split())
    again = ["predict", str(tiny), "-w", str(work), "-i", str(tiny / "imagesTs"), "-o", str(tmp_path / "again"), "--device", "cpu"]
    assert main(again) == 0
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "again/ball_6.nii.gz").dataobj), first)
    assert main(["plan", str(tiny), "-w", str(work), "-q"]) == 0  # a look at the plan keeps the planner
    assert WorkFolder(work).read_plan().planner == "small"
