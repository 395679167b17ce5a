"""Predict's options end to end: modes and processes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.commandline.cli import main


def predicted(trained: Path, out: Path, *words: str) -> np.ndarray:
    command = ["predict", str(trained), "-i", str(trained / "imagesTs"), "-o", str(out), "--device", "cpu", "-q", *words]
    assert main(command) == 0
    return np.asarray(nibabel.load(out / "ball_6.nii.gz").dataobj)


def test_scales_flips_and_whole_images_predict_and_are_recorded_as_other_models(trained: Path, tmp_path: Path) -> None:
    predicted(trained, tmp_path / "out", "--scales", "0.75", "1", "--flips", "A", "--whole-image")
    record = json.loads((tmp_path / "out/predictions.json").read_text(encoding="utf-8"))["cases"]["ball_6.nii.gz"]["model"]
    for part in ("scales=0.75,1", "flips=A", "whole image"):
        assert part in record
    command = ["predict", str(trained), "-i", str(trained / "imagesTs"), "-o", str(tmp_path / "out"), "--device", "cpu", "-q"]
    assert main(command) == 2, "outputs of another mode are not overwritten"


@pytest.mark.slow
def test_processes_predict_the_same_voxels(trained: Path, tmp_path: Path) -> None:
    alone = predicted(trained, tmp_path / "one", "--precision", "float32")
    several = predicted(trained, tmp_path / "two", "--precision", "float32", "--jobs", "2")
    assert np.mean(alone != several) < 1e-3, "sums of another number of threads may round otherwise"
    assert len(json.loads((tmp_path / "two/predictions.json").read_text(encoding="utf-8"))["cases"]) == 2


def test_processes_beside_a_cluster_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--jobs", "2", "--cluster", "tcp://nowhere:1"]
    assert main(["predict", str(trained), "-i", str(trained / "imagesTs"), "-o", str(tmp_path), *words]) == 2
    assert "--jobs and --cluster" in capsys.readouterr().err


def test_labels_that_nnunet_cannot_number_are_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--probabilities-format", "nnunet"]
    assert main(["predict", str(trained), "-i", str(trained / "imagesTs"), "-o", str(tmp_path), *words]) == 2
    assert "these are 0, 3, 7" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
