"""What ``doctor --fix`` wrote passes ``doctor`` and ``plan``, and the original is kept whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medseg3d.commandline.cli import main
from medseg3d.images import read_image


def phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(z, y, x): image and label of 12 x 14 x 16 voxels."""
    label = np.zeros((12, 14, 16), np.uint8)
    label[3:8, 4:9, 4:10] = 1
    return (np.random.default_rng(seed).normal(100, 10, label.shape) + 300.0 * label).astype(np.int16), label


def save(path: Path, array: np.ndarray, origin: tuple[int, int, int] = (10, 20, 5)) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetOrigin(origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), ".mhd" not in path.name)


def make(root: Path, listing: str, ending: str) -> Path:
    """Four cases; the label of scan1 is cropped by one voxel on each side, which --fix repairs."""
    for number in range(4):
        image, label = phantom(number)
        save(root / f"imagesTr/scan{number}{'_0000' if listing == 'none' else ''}.nrrd", image)
        if number == 1:
            save(root / f"labelsTr/scan1{ending}", label[1:, 1:, 1:], (11, 21, 6))
        else:
            save(root / f"labelsTr/scan{number}{ending}", label)
    declared: dict[str, object] = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "marker": 1}, "file_ending": ".nrrd"}
    names = [f"scan{number}" for number in range(4)]
    if listing == "training":
        declared["training"] = [{"image": f"./imagesTr/{n}.nrrd", "label": f"./labelsTr/{n}{ending}"} for n in names]
    elif listing == "dataset":
        declared["dataset"] = {n: {"images": [f"imagesTr/{n}.nrrd"], "label": f"labelsTr\\{n}{ending}"} for n in names}
    (root / "dataset.json").write_text(json.dumps(declared), encoding="utf-8")
    (root / "splits_final.json").write_text(json.dumps([{"train": names[:2], "val": names[2:]}]), encoding="utf-8")
    return root


@pytest.mark.fault(
    "D",
    "doctor --fix of a label that a JSON lists, or with detached voxels",
    "passes doctor and plan; the original is kept whole",
)
@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", ".nhdr"])
@pytest.mark.parametrize("listing", ["none", "training", "dataset"])
def test_what_was_repaired_passes_doctor_and_plan(tmp_path, listing, ending) -> None:
    root = make(tmp_path / "data", listing, ending)
    before = read_image(root / f"labelsTr/scan1{ending}").array
    assert main(["doctor", str(root), "-q"]) == 2
    assert main(["doctor", str(root), "--fix", "-q"]) == 0
    assert main(["doctor", str(root), "-q"]) == 0
    repaired = read_image(root / "labelsTr/scan1.nii.gz").array
    np.testing.assert_array_equal(repaired, phantom(1)[1].transpose(2, 1, 0))
    kept = root / f"medseg3d-originals/labelsTr/scan1{ending}"
    np.testing.assert_array_equal(read_image(kept).array, before)
    assert (root / "medseg3d-originals/dataset.json").exists() == (listing != "none")


def test_the_repaired_dataset_is_planned(tmp_path) -> None:
    root = make(tmp_path / "data", "dataset", ".mhd")
    assert main(["doctor", str(root), "--fix", "-q"]) == 0
    assert main(["plan", str(root), "-q"]) == 0


def test_a_second_original_does_not_replace_the_first(tmp_path) -> None:
    root = make(tmp_path / "data", "none", ".nrrd")
    for number in (1, 2):
        save(root / "labelsTr/scan1.nrrd", number * phantom(1)[1][1:, 1:, 1:], (11, 21, 6))
        (root / "labelsTr/scan1.nii.gz").unlink(missing_ok=True)
        main(["doctor", str(root), "--fix", "-q"])
    kept = sorted((root / "medseg3d-originals/labelsTr").iterdir())
    assert [path.name for path in kept] == ["1-scan1.nrrd", "scan1.nrrd"]
    assert [int(read_image(path).array.max()) for path in kept] == [2, 1]
