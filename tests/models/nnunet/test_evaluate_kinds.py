"""What imported models of regions and of an ignore label predict is evaluated as their dataset.json says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from medseg3d.commandline.cli import main
from medseg3d.plan import NetworkPlan

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def written(folder: Path, name: str, values: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), folder / name)
    return folder


def evaluated(model: Path, described: dict[str, Any], reference: np.ndarray, tmp_path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    image = np.random.default_rng(0).normal(100, 20, reference.shape).astype(np.float32)
    images = written(tmp_path / "images", "case_0000.nii.gz", image)
    references = written(tmp_path / "raw/labelsTr", "case.nii.gz", reference)
    (tmp_path / "raw/dataset.json").write_text(json.dumps(described), encoding="utf-8")
    out = tmp_path / "out"
    assert main(["predict", "-m", str(model), "-i", str(images), "-o", str(out), "--device", "cpu", "-q"]) == 0
    assert main(["evaluate", str(out), str(references), "-q"]) == 0
    (case,) = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["cases"]
    return np.asarray(nibabel.load(out / "case.nii.gz").dataobj), {label["name"]: label["dice"] for label in case["labels"]}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_regions_are_compared_as_regions(
    make_model: Callable[..., Path], plain_plan: NetworkPlan, dataset: dict[str, Any], tmp_path: Path
) -> None:
    dataset |= {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    model = make_model(plan=replace(plain_plan, num_classes=2))
    reference = np.random.default_rng(1).integers(0, 3, (9, 12, 7)).astype(np.uint8)
    predicted, found = evaluated(model, dataset, reference, tmp_path)
    assert abs(found["whole"] - dice(predicted > 0, reference > 0)) < 1e-6
    assert abs(found["core"] - dice(predicted == 2, reference == 2)) < 1e-6


def test_ignored_voxels_count_nowhere(make_model: Callable[..., Path], dataset: dict[str, Any], tmp_path: Path) -> None:
    dataset["labels"]["ignore"] = 3
    reference = np.random.default_rng(1).integers(0, 4, (9, 12, 7)).astype(np.uint8)
    predicted, found = evaluated(make_model(), dataset, reference, tmp_path)
    known = reference != 3
    assert set(found) == {"left", "right"}
    for name, value in (("left", 1), ("right", 2)):
        assert abs(found[name] - dice((predicted == value) & known, reference == value)) < 1e-6
