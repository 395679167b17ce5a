"""Probabilities that ``nnUNetv2_ensemble`` reads: its order of axes, and the facts of its reader beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from medseg3d.commandline.cli import main


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Oblique, so that no axis stands for another."""
    affine = np.array([[0.9, 0.2, 0, 5], [-0.3, 1.1, 0, -7], [0, 0, 3, 11], [0, 0, 0, 1.0]])
    values = np.random.default_rng(0).normal(100, 20, (9, 12, 7)).astype(np.float32)
    q, r = np.linalg.qr(affine[:3, :3])
    affine[:3, :3] = q * np.abs(np.diag(r))  # directions at right angles, as SimpleITK wants them
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "case_0000.nii.gz")
    return tmp_path / "case_0000.nii.gz"


def test_they_are_ours_with_the_axes_turned_and_name_the_grid_as_its_reader_does(
    make_model: Callable[..., Path], image: Path, tmp_path: Path
) -> None:
    folder = make_model()
    command = ["predict", "-m", str(folder), "-i", str(image), "-o", str(tmp_path / "out"), "--device", "cpu", "-q"]
    assert main([*command, "--probabilities"]) == 0
    with np.load(tmp_path / "out/case.npz") as file:
        ours = file["probabilities"]
    assert main([*command, "--probabilities-format", "nnunet"]) == 0, "the other format is made, not kept"
    with np.load(tmp_path / "out/case.npz") as file:
        assert file.files == ["probabilities"]
        theirs = file["probabilities"]
    assert theirs.shape == (3, 7, 12, 9)
    assert np.array_equal(theirs, ours.transpose(0, 3, 2, 1))
    facts = json.loads((tmp_path / "out/case.nnunet.json").read_text(encoding="utf-8"))
    read = SimpleITK.ReadImage(str(image))
    for name, expected in (("spacing", read.GetSpacing()), ("origin", read.GetOrigin()), ("direction", read.GetDirection())):
        np.testing.assert_allclose(facts["sitk_stuff"][name], expected, atol=1e-5)
    assert facts["spacing"] == facts["sitk_stuff"]["spacing"][::-1]
    assert main([*command, "--probabilities"]) == 0
    assert not (tmp_path / "out/case.nnunet.json").exists()
