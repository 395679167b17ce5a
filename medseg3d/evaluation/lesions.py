"""Two masks of one label → how many connected objects of the reference were found, and how many false positives there are.

Objects are 26-connected components. A predicted and a reference object match where their IoU is above the threshold; each
matches at most once, the best IoU first. There is no smallest size: a single stray voxel is a false positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MATCHING_IOU = 0.1
"""Low, because small lesions that were clearly found often overlap poorly; above 0, because touching by a voxel is not
finding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionCounts:
    """Objects of the reference that were found, objects of the prediction alone, and objects of the reference alone."""

    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def f1(self) -> float | None:
        """``2 TP / (2 TP + FP + FN)``; None where there are no objects at all.

        >>> LesionCounts(true_positives=2, false_positives=1, false_negatives=1).f1
        0.6666666666666666
        """
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else None


def count_lesions(prediction: np.ndarray, reference: np.ndarray, *, matching_iou: float = MATCHING_IOU) -> LesionCounts:
    """Match the objects of two bool masks on one grid; either may be empty."""
    predicted, num_predicted = components(prediction)
    referenced, num_referenced = components(reference)
    matches = _num_matches(predicted, referenced, num_predicted + 1, matching_iou) if num_predicted and num_referenced else 0
    return LesionCounts(true_positives=matches, false_positives=num_predicted - matches, false_negatives=num_referenced - matches)


def components(mask: np.ndarray, *, connectivity: int = 26) -> tuple[np.ndarray, int]:
    """A bool mask of three axes → component numbers from 1 (0 is outside) in the order of scanning, and how many there are."""
    import cc3d

    numbers, count = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=connectivity, return_N=True, binary_image=True)
    return numbers, int(count)


def _num_matches(predicted: np.ndarray, referenced: np.ndarray, stride: int, matching_iou: float) -> int:
    """One-to-one matches above the threshold, taken greedily from the best IoU down; ``stride`` is above every predicted
    number."""
    common = (predicted > 0) & (referenced > 0)
    pairs, overlaps = np.unique(referenced[common].astype(np.int64) * stride + predicted[common], return_counts=True)
    reference_ids, prediction_ids = pairs // stride, pairs % stride
    unions = np.bincount(referenced[referenced > 0])[reference_ids] + np.bincount(predicted[predicted > 0])[prediction_ids] - overlaps
    ious = overlaps / unions
    used_references: set[int] = set()
    used_predictions: set[int] = set()
    for place in np.argsort(-ious, kind="stable"):
        if ious[place] <= matching_iou:
            break
        if reference_ids[place] not in used_references and prediction_ids[place] not in used_predictions:
            used_references.add(int(reference_ids[place]))
            used_predictions.add(int(prediction_ids[place]))
    return len(used_references)
