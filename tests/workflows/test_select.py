"""Selection on files: what is compared lies on one grid."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from medseg3d.data.dataset import Case
from medseg3d.images import write_image
from medseg3d.labels import Labels
from medseg3d.workflows.select import _load


def test_postprocessing_is_chosen_on_one_grid_however_the_label_is_stored(tmp_path: Path) -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0, 1:3, 2] = 3
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    write_image(tmp_path / "predicted.nii.gz", labels, affine)
    flipped = affine.copy()
    flipped[0] = [-1.0, 0.0, 0.0, 3.0]
    write_image(tmp_path / "label.nii.gz", labels[::-1].astype(np.float32) + 1e-5, flipped)
    plan = SimpleNamespace(labels=Labels(names=("background", "a"), values=(0, 3)))
    predicted, reference = _load(
        plan,  # type: ignore[arg-type]
        Case(name="x", channels=()),
        tmp_path / "predicted.nii.gz",
        tmp_path / "label.nii.gz",
    )
    assert predicted.sum() == 2
    assert np.array_equal(predicted, reference)
