from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.data.plausible import extreme_voxels, is_far_beyond, lost_intercepts, spacing_doubt
from medseg3d.workflows.doctor import doctor
from medseg3d.workflows.plan import plan

NOISE = np.random.default_rng(0).normal(100, 10, (12, 12, 12)).astype(np.float32)


def words(array: np.ndarray) -> str:
    return extreme_voxels(array, array[np.isfinite(array)].ravel())


@pytest.mark.fault("A5", "one voxel of 3e38 or 1e30 in training data", "doctor and plan warn, with the case and the value")
@pytest.mark.parametrize("value", [3e38, -3e38, 1e30, 1e7])
def test_a_voxel_far_beyond_all_others_is_found(value) -> None:
    array = NOISE.copy()
    array[3, 4, 5] = value
    assert f"one voxel far beyond all others, up to {value:.4g}" in words(array)
    mostly_background = np.where(np.random.default_rng(1).random(NOISE.shape) < 0.001, 0, 0).astype(np.float32)
    mostly_background[:2] = NOISE[:2]
    mostly_background[5, 5, 5] = value
    assert "one voxel" in words(mostly_background)


@pytest.mark.parametrize(
    "array",
    [
        NOISE,
        NOISE * 1e30,
        np.zeros_like(NOISE),
        np.where(NOISE > 130, 30_000, NOISE),  # metal
        np.where(NOISE > 130, np.inf, NOISE),
        np.where(NOISE > 125, 1, 0),
        np.exp(NOISE / 10),
    ],
)
def test_usual_images_have_none(array) -> None:
    assert words(array.astype(np.float32)) == ""


@pytest.mark.fault("A5", "spacing in micrometers or meters in training data", "doctor and plan warn, naming the unit")
@pytest.mark.parametrize(("edge", "part"), [(0.001, "micrometers"), (1000, "meters"), (0.05, ""), (1, ""), (30, "")])
def test_spacings_that_can_hardly_be_millimeters_are_doubted(edge, part) -> None:
    assert part in spacing_doubt(edge)
    assert bool(part) == bool(spacing_doubt(edge))


def test_a_usual_range_is_needed() -> None:
    assert is_far_beyond(0, 1e9, 0, 100)
    assert is_far_beyond(-1e9, 100, 0, 100)
    assert not is_far_beyond(-1000, 3000, 0, 100)
    assert not is_far_beyond(0, 1e9, 5, 5)


@pytest.mark.fault("A5", "training cases of CT whose rescale intercept was lost", "doctor and plan warn, with the cases")
def test_cases_of_ct_without_values_below_0_are_told(tmp_path: Path) -> None:
    write_ct(tmp_path, shifted=(1, 4))
    (warning,) = (text for text in plan(tmp_path).warnings if "intercept" in text)
    assert "c1, c4 have no value below 0" in warning
    assert {finding.case for finding in doctor(tmp_path, fix=False).findings if "intercept" in finding.message} == {"c1", "c4"}


@pytest.mark.fault("A5", "a channel called CT, and no case has a value below 0", "plan warns: these are no Hounsfield units")
def test_ct_without_values_below_0_in_any_case_is_told(tmp_path: Path) -> None:
    write_ct(tmp_path, shifted=range(6))
    (warning,) = (text for text in plan(tmp_path, channels=["CT"]).warnings if "intercept" in text)
    assert "is called CT, but no image of it has a value below 0" in warning
    assert not [text for text in plan(tmp_path, channels=["T1"]).warnings if "intercept" in text]


def write_ct(root: Path, *, shifted: Collection[int]) -> None:
    """Six cases; 1024 is added to the ``shifted``."""
    for number in range(6):
        image = np.random.default_rng(number).normal(-400, 100, (12, 10, 8)).astype(np.int16)
        labels = np.zeros(image.shape, np.uint8)
        labels[4:8, 3:7, 2:6] = 1
        image[labels > 0] += 450
        for folder, array in (("images", image + 1024 * (number in shifted)), ("labels", labels)):
            (root / folder).mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array.astype(image.dtype), np.eye(4)), root / folder / f"c{number}.nii.gz")


@pytest.mark.parametrize(
    "least", [{"a": 0, "b": 0, "c": 3}, {"a": -3, "b": -2, "c": 0}, {"a": -1024, "b": 0}, {"a": -1024, "b": -900, "c": -20}]
)
def test_other_scales_are_no_lost_intercepts(least: dict[str, float]) -> None:
    assert lost_intercepts(least) == []
