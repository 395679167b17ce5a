"""Selection on files: what is compared lies on one grid."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medseg3d.data.dataset import Case
from medseg3d.evaluation.metrics import write_evaluation
from medseg3d.images import write_image
from medseg3d.labels import Labels
from medseg3d.records import write_record
from medseg3d.validation.selection import MIRRORING, FoldMirroring
from medseg3d.work_folder import WorkFolder
from medseg3d.workflows.select import _load, mirroring_of
from tests.validation.test_corrected import evaluation


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


def test_networks_with_the_same_validation_cases_all_have_a_say_in_mirroring(tmp_path: Path) -> None:
    folder, names = WorkFolder(tmp_path), [f"case_{number}" for number in range(6)]
    for fold, (mirrored, plain) in {"0": (0.6, 0.4), "1": (0.5, 0.5)}.items():
        target = folder.validation("3d_fullres", fold)
        record = FoldMirroring(is_used=True, has_other=True)
        write_record(target / MIRRORING, record, "mirroring")
        write_evaluation(evaluation(dict.fromkeys(names, mirrored)), target / "metrics.json")
        write_evaluation(evaluation(dict.fromkeys(names, plain)), target / record.other / "metrics.json")
    for folds, gain in ((("0", "1"), 0.1), (("0",), 0.2), (("1",), 0.0)):
        found = mirroring_of(folder, "3d_fullres", folds)
        assert found.gain is not None
        assert found.gain.mean == pytest.approx(gain)
