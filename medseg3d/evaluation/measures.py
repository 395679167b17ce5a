"""What is measured of a label: two masks go in, a number comes out; one entry per metric, those of extensions beside ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from medseg3d.evaluation.lesions import LesionCounts, count_lesions
from medseg3d.evaluation.surfaces import SurfaceDistances, surface_distances
from medseg3d.extensions import Registry


@dataclass(frozen=True, kw_only=True)
class LabelMasks:
    """One label of one case: bool masks on one grid, cropped to the box of both; one of them may be empty, not both.

    ``spacing`` in mm in the order of the axes, which may be any; ``axes`` are those along which the image has more than a slice.
    ``unknown`` are voxels that nobody has annotated, which belong to neither mask; None where there are none.
    """

    prediction: np.ndarray
    reference: np.ndarray
    spacing: tuple[float, ...]
    tolerance_mm: float
    axes: tuple[int, ...] = (0, 1, 2)
    unknown: np.ndarray | None = None

    @cached_property
    def num_predicted(self) -> int:
        """Voxels of the prediction."""
        return int(np.count_nonzero(self.prediction))

    @cached_property
    def num_referenced(self) -> int:
        """Voxels of the reference."""
        return int(np.count_nonzero(self.reference))

    @cached_property
    def num_common(self) -> int:
        """Voxels of both."""
        return int(np.count_nonzero(self.prediction & self.reference))

    @property
    def voxel_ml(self) -> float:
        """The volume of a voxel."""
        return math.prod(self.spacing) / 1000

    @cached_property
    def distances(self) -> SurfaceDistances | None:
        """Between the two surfaces; None where not both have voxels, or unknown voxels are all around one of them."""
        if not (self.num_predicted and self.num_referenced):
            return None
        return surface_distances(self.prediction, self.reference, spacing=self.spacing, axes=self.axes, unknown=self.unknown)

    @cached_property
    def lesions(self) -> LesionCounts:
        """Connected objects, found or not."""
        return count_lesions(self.prediction, self.reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number of a label: its column's ``title``, the ``definition``, and ``measure(masks)``, None where it is not defined.

    It is not asked where neither mask has voxels; there no metric is defined.
    """

    title: str
    definition: str
    measure: Callable[[LabelMasks], float | None]
    digits: int = 3


def _nsd(masks: LabelMasks) -> float | None:
    if masks.distances is not None:
        return masks.distances.nsd(masks.tolerance_mm)
    return None if masks.num_predicted and masks.num_referenced else 0.0


METRICS = Registry(
    "metrics",
    Metric,
    {
        "dice": Metric(
            title="Dice",
            definition="2·|P∩R| / (|P|+|R|)",
            measure=lambda masks: 2 * masks.num_common / (masks.num_predicted + masks.num_referenced),
        ),
        "iou": Metric(
            title="IoU",
            definition="|P∩R| / |P∪R|",
            measure=lambda masks: masks.num_common / (masks.num_predicted + masks.num_referenced - masks.num_common),
        ),
        "nsd": Metric(
            title="NSD",
            definition="share of the surface voxels of P and R together that lie within the tolerance of the other surface",
            measure=lambda masks: _nsd(masks),
        ),
        "hd95_mm": Metric(
            title="HD95 mm",
            definition="the larger of two numbers: the 95th percentile of the distances from P's surface to R's, and from R's to P's",
            measure=lambda masks: masks.distances.hd95_mm if masks.distances else None,
            digits=2,
        ),
        "assd_mm": Metric(
            title="ASSD mm",
            definition="mean of all distances from P's surface to R's and from R's to P's, every surface voxel counting once",
            measure=lambda masks: masks.distances.assd_mm if masks.distances else None,
            digits=2,
        ),
        "volume_difference_ml": Metric(
            title="ΔVolume ml",
            definition="volume of P minus volume of R; positive means too much was predicted",
            measure=lambda masks: (masks.num_predicted - masks.num_referenced) * masks.voxel_ml,
            digits=2,
        ),
        "lesion_f1": Metric(
            title="Lesion F1",
            definition="2·TP / (2·TP + FP + FN) over connected objects, see below",
            measure=lambda masks: masks.lesions.f1,
        ),
    },
)
"""By the name in ``metrics.json``, in the order of the tables."""


def measured(masks: LabelMasks) -> dict[str, float | None]:
    """All metrics of a label; what is not finite is not defined."""
    values = {name: metric.measure(masks) for name, metric in METRICS.items()}
    return {name: None if value is None or not math.isfinite(value) else float(value) for name, value in values.items()}
