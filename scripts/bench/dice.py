"""Mean whole-volume Dice of a folder of label maps, computed alike for every program that is compared.

In: two folders of label maps with the same file names. Out: Dice per case and label, and their mean. It stands apart from
medseg3d.evaluation on purpose: a benchmark should not measure a program with its own ruler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class DiceTable:
    """``scores[case][label]``; NaN where a label is neither in the prediction nor in the reference."""

    scores: dict[str, dict[int, float]]

    @property
    def mean(self) -> float:
        """The mean over labels of the mean over cases, NaN left out, as nnU-Net's ``foreground_mean``."""
        return float(np.mean(list(self.per_label.values())))

    @property
    def per_label(self) -> dict[int, float]:
        """The mean over cases for each label."""
        labels = sorted({label for row in self.scores.values() for label in row})
        return {label: float(np.nanmean([row[label] for row in self.scores.values()])) for label in labels}


def dice_of_folders(predictions: Path, references: Path, *, cases: Sequence[str], labels: Sequence[int]) -> DiceTable:
    """Dice of ``cases``; raises FileNotFoundError for a missing prediction and ValueError for one on another grid."""
    scores = {}
    for case in cases:
        prediction = nibabel.load(predictions / f"{case}.nii.gz")
        reference = nibabel.load(references / f"{case}.nii.gz")
        if prediction.shape != reference.shape or not np.allclose(prediction.affine, reference.affine, atol=1e-3):
            raise ValueError(f"{case}: the prediction does not lie on the reference's grid.")
        found = np.rint(np.asanyarray(prediction.dataobj)).astype(np.int64)
        expected = np.rint(np.asanyarray(reference.dataobj)).astype(np.int64)
        scores[case] = {label: _dice(found == label, expected == label) for label in labels}
    return DiceTable(scores=scores)


def _dice(found: np.ndarray, expected: np.ndarray) -> float:
    size = int(found.sum()) + int(expected.sum())
    return 2 * int((found & expected).sum()) / size if size else float("nan")
