"""A predicted and a reference label map on one grid → the metrics of every label.

Each label is cropped to the box of both objects first, so that its cost follows the object and not the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from medseg3d.data.cropping import Box
from medseg3d.errors import GeometryMismatchError, InputError
from medseg3d.evaluation.label_masks import two_maps
from medseg3d.evaluation.measures import LabelMasks, measured
from medseg3d.evaluation.metrics import OWN_FIELDS, CaseMetrics, LabelMetrics, Presence, absent_label, mean_of
from medseg3d.labels import Labels

TOLERANCE_MM = 1.0
"""Of the normalized surface Dice, where nothing else is asked for: about the disagreement of two readers on clinical images."""
MAX_TOLERANCE_VOXELS = 3.0
"""In images much finer than 1 mm (small animals, microscopy) 1 mm would accept everything."""


def evaluate_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    spacing: Sequence[float],
    labels: Labels,
    tolerance_mm: float | None = None,
    name: str = "case",
    num_threads: int = 1,
    annotated: Sequence[str] | None = None,
) -> CaseMetrics:
    """Compare two label maps of *file values*, three axes in any order but the same; ``spacing`` in mm in that order.

    Both maps are read only. Without ``tolerance_mm`` it is :func:`default_tolerance_mm` of this case's spacing. Labels are spread over
    ``num_threads``. Regions are compared as the unions that they are; voxels whose reference is the ignore label count for nothing, and
    labels that the case was not ``annotated`` for (names, None for all) are not compared. Raises :class:`GeometryMismatchError` for
    different shapes, :class:`LabelValueError` for values that are not in ``labels``.
    """
    if prediction.shape != reference.shape or reference.ndim != 3:
        raise GeometryMismatchError(
            f"{name}: the prediction has shape {prediction.shape}, the reference {reference.shape}; both must be the "
            "same volume of three axes. Put the prediction on the reference's grid."
        )
    steps = tuple(float(s) for s in spacing)
    if len(steps) != 3 or not all(math.isfinite(s) and s > 0 for s in steps):
        raise InputError(f"{name}: the spacing {steps} must be three positive lengths in mm. Correct the file's header.")
    order = tuple(int(axis) for axis in np.argsort([-abs(s) for s in reference.strides], kind="stable"))  # memory order: fast crops
    steps = tuple(steps[axis] for axis in order)
    maps = two_maps(prediction.transpose(order), reference.transpose(order), labels, name)
    tolerance = default_tolerance_mm(spacing, reference.shape) if tolerance_mm is None else float(tolerance_mm)
    boxes = maps.boxes()

    def evaluate(index: int) -> LabelMetrics:
        box, label = boxes[index], labels.names[index]
        if annotated is not None and label not in annotated:
            return absent_label(labels.values[index], label, presence="not_annotated")
        if box is None:
            return absent_label(labels.values[index], label)
        predicted, referenced = maps.masks(index, box)
        masks = LabelMasks(
            prediction=predicted,
            reference=referenced,
            spacing=steps,
            tolerance_mm=tolerance,
            axes=tuple(axis for axis in range(3) if maps.reference.shape[axis] > 1) or (0, 1, 2),
            unknown=None if maps.unknown is None else maps.unknown[box],
        )
        if not (masks.num_predicted or masks.num_referenced):
            return absent_label(labels.values[index], label)
        return _evaluate_label(masks, value=labels.values[index], name=label)

    largest_first = sorted(labels.foreground, key=lambda index: -_num_voxels(boxes[index]))
    if num_threads > 1:
        with ThreadPoolExecutor(num_threads, thread_name_prefix="labels") as pool:
            results = dict(zip(largest_first, pool.map(evaluate, largest_first), strict=True))
    else:
        results = {index: evaluate(index) for index in largest_first}
    metrics = tuple(results[index] for index in labels.foreground)
    mean = mean_of(label.dice for label in metrics)
    return CaseMetrics(
        case=name,
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        tolerance_mm=tolerance,
        foreground_dice=mean.mean,
        num_labels_counted=mean.n,
        labels=metrics,
    )


def default_tolerance_mm(spacing: Sequence[float], shape: Sequence[int] | None = None) -> float:
    """1 mm, but at least one and at most three times the finest spacing; axes of a single slice do not count.

    >>> default_tolerance_mm((5.0, 0.8, 0.8)), default_tolerance_mm((1.5, 1.5, 1.5)), default_tolerance_mm((0.15, 0.15, 0.15))
    (1.0, 1.5, 0.45)
    """
    extended = [s for s, n in zip(spacing, shape, strict=True) if n > 1] if shape is not None else []
    finest = float(min(extended or spacing))
    return round(min(max(TOLERANCE_MM, finest), MAX_TOLERANCE_VOXELS * finest), 6)


def _evaluate_label(masks: LabelMasks, *, value: int, name: str) -> LabelMetrics:
    num_p, num_r = masks.num_predicted, masks.num_referenced
    presence: Presence = "both" if num_p and num_r else "only_prediction" if num_p else "only_reference"
    metrics = measured(masks)
    own: dict[str, Any] = {metric: metrics.pop(metric) for metric in OWN_FIELDS}
    return LabelMetrics(
        value=value,
        name=name,
        presence=presence,
        volume_reference_ml=num_r * masks.voxel_ml,
        volume_prediction_ml=num_p * masks.voxel_ml,
        voxels_reference=num_r,
        voxels_prediction=num_p,
        voxels_common=masks.num_common,
        lesion_true_positives=masks.lesions.true_positives,
        lesion_false_positives=masks.lesions.false_positives,
        lesion_false_negatives=masks.lesions.false_negatives,
        **own,
        further=metrics,
    )


def _num_voxels(box: Box | None) -> int:
    return math.prod(side.stop - side.start for side in box) if box else 0
