"""Which images to annotate next: those that the model is unsure of, and those unlike what was seen."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.commandline.cli import main
from medseg3d.errors import InputError
from medseg3d.files import Storage, file_digest, using_storage
from medseg3d.validation.expected_quality import chosen_next
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.propose import image_folder_of, propose, read_proposals

TRAINING = np.random.default_rng(0).normal(size=(20, 3))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 10))
def test_without_diversity_the_least_expected_come_first(expected: list[float], count: int) -> None:
    dice = {f"case_{number}": value for number, value in enumerate(expected)}
    chosen = chosen_next(dice, {name: np.zeros(3) for name in dice}, TRAINING, count=count, diversity=0.0)
    found = [dice[name] for name, _, _ in chosen]
    assert len(chosen) == min(count, len(dice))
    assert found == sorted(found), "and each once"
    assert len({name for name, _, _ in chosen}) == len(chosen)


def test_a_second_case_of_a_kind_comes_after_a_first_of_another() -> None:
    numbers = {"a": np.array([4.0, 0, 0]), "a_again": np.array([4.01, 0, 0]), "b": np.array([0, 3.0, 0]), "usual": TRAINING[0]}
    chosen = chosen_next(dict.fromkeys(numbers, 0.8), numbers, TRAINING, count=4, diversity=1.0)
    first, second, *_ = (name for name, _, _ in chosen)
    assert "b" in (first, second)
    assert {first, second} & {"a", "a_again"}


def test_a_case_in_which_nothing_was_found_is_most_unsure() -> None:
    chosen = chosen_next({"a": 0.1, "empty": None}, {"a": TRAINING[0], "empty": TRAINING[0]}, TRAINING, count=1, diversity=0.0)
    assert chosen[0][0] == "empty"


@pytest.fixture
def scans(trained: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A trained dataset; a folder with a training image, two usual images, and one of other voxels."""
    root, folder = Path(shutil.copytree(trained, tmp_path / "Balls")), tmp_path / "scans"
    folder.mkdir()
    shutil.copy(root / "imagesTr" / "ball_0_0000.nii.gz", folder / "ball_0_0000.nii.gz")
    for number in (6, 7):
        shutil.copy(root / "imagesTs" / f"ball_{number}_0000.nii.gz", folder / f"new_{number}_0000.nii.gz")
    image = nibabel.load(root / "imagesTs" / "ball_6_0000.nii.gz")
    wide = nibabel.Nifti1Image(np.asarray(image.dataobj)[::2], image.affine @ np.diag([2.0, 1, 1, 1]))
    nibabel.save(wide, folder / "coarse_0000.nii.gz")
    return root, folder


def test_unlike_images_are_proposed_with_a_reason_and_a_prediction(scans: tuple[Path, Path]) -> None:
    root, folder = scans
    words = ["propose", str(root), "-i", str(folder), "-n", "2", "--device", "cpu", "--tta", "off", "--diversity", "1", "-q"]
    assert main(words) == 0
    work = WorkFolder(root / "medseg3d-work")
    found = read_proposals(work)
    assert found is not None
    assert set(found.estimates) == {"new_6", "new_7", "coarse"}, "training cases are left out"
    assert found.proposed[0].case == "coarse"
    assert any("unlike all that was seen" in reason for reason in found.proposed[0].reasons)
    with (work.root / "proposals" / "proposals.csv").open(encoding="utf-8") as stream:
        assert [row["case"] for row in csv.DictReader(stream)] == [each.case for each in found.proposed]
    label_map = nibabel.load(work.root / "proposals" / "new_6.nii.gz")
    assert label_map.shape == nibabel.load(folder / "new_6_0000.nii.gz").shape
    for name, estimate in found.estimates.items():
        voxels = np.asarray(nibabel.load(work.root / "proposals" / f"{name}.nii.gz").dataobj)
        assert estimate.volumes_ml["core"] == pytest.approx((voxels == 7).sum() * (3.0 if name == "coarse" else 1.5) / 1000)
        assert all(value is None or 0 <= value <= 1 for value in estimate.expected.values())
    assert image_folder_of(work) == folder
    before = {file: file.stat().st_mtime_ns for file in (work.root / "proposals").glob("*.nii.gz")}
    assert main(words) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before, "what the same model predicted is not predicted again"
    changed = work.root / "proposals" / "new_6.nii.gz"
    shutil.copy(work.root / "proposals" / "new_7.nii.gz", changed)
    before_change = changed.read_bytes()
    assert main([*words[:-1], "-q", "--step-size", "0.7"]) == 0, "another way to predict"
    assert changed.read_bytes() == before_change, "what was changed by hand is left alone"


def test_a_folder_of_training_images_has_none_to_propose(scans: tuple[Path, Path]) -> None:
    root, _ = scans
    with pytest.raises(InputError, match="all images are training cases already"):
        propose(root, images=root / "imagesTr", device="cpu")


class KilledError(BaseException):
    """The process is gone."""


class DiesAtLabelMaps(Storage):
    """Dies when a label map is to be put in its place, or right after."""

    def __init__(self, *, is_after: bool) -> None:
        self.is_after = is_after

    def replace(self, source: Path, target: Path) -> None:
        is_label_map = target.name.endswith(".nii.gz")
        if self.is_after or not is_label_map:
            super().replace(source, target)
        if is_label_map:
            raise KilledError


@pytest.mark.parametrize("is_after", [False, True])
def test_a_label_map_is_never_taken_for_the_users_because_a_call_was_killed(
    scans: tuple[Path, Path], caplog: pytest.LogCaptureFixture, is_after: bool
) -> None:
    root, folder = scans
    for step_size in (0.5, 0.9):  # the second model writes over what the first one predicted
        with using_storage(DiesAtLabelMaps(is_after=is_after)), pytest.raises(KilledError):
            propose(root, images=folder, device="cpu", tta="off", step=step_size)
        found = propose(root, images=folder, device="cpu", tta="off", step=step_size)
        assert "changed by hand" not in caplog.text
        for name, estimate in found.estimates.items():
            assert file_digest(root / "medseg3d-work" / "proposals" / f"{name}.nii.gz") == estimate.output_digest
        assert len({estimate.model for estimate in found.estimates.values()}) == 1
