"""Which resolution a dataset is brought to: spacings and shapes of its cases go in, target spacing and median shape come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg3d.axes import AxisOrder, network_order
from medseg3d.planning.planner import SpacingRule

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpacing:
    """The target in mm in the order of the cases' axes; ``median`` is what it was before the rule for thick slices applied."""

    spacing: Triple
    median: Triple
    has_anisotropic_spacing: bool
    has_few_slices: bool

    @property
    def is_refined(self) -> bool:
        """The coarse axis takes a low percentile rather than the median."""
        return self.has_anisotropic_spacing and self.has_few_slices


def target_spacing(spacings: Sequence[Triple], shapes: Sequence[Sequence[int]], rule: SpacingRule) -> TargetSpacing:
    """The median spacing; where slices are thick and few, a low percentile along that axis.

    Thick: the coarsest axis exceeds ``anisotropy_threshold`` times the next. Few: it has fewer than 1/threshold of the voxels of
    the others. Then resampling to the median would interpolate away slices of the finer cases. Rule: nnU-Net 2.8.1
    ``determine_fullres_target_spacing``. In the end all axes are divided by ``resolution_multiplier``.
    """
    all_spacings = np.asarray(spacings, np.float64)
    target = np.percentile(all_spacings, rule.percentile, 0)
    size = np.percentile(np.asarray(shapes), rule.percentile, 0)
    median: Triple = tuple(float(s) for s in target)  # type: ignore[assignment]
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    next_coarsest = max(target[others])
    has_anisotropic_spacing = bool(target[coarse] > rule.anisotropy_threshold * next_coarsest)
    has_few_slices = bool(size[coarse] * rule.anisotropy_threshold < min(size[others]))
    if has_anisotropic_spacing and has_few_slices:
        refined = np.percentile(all_spacings[:, coarse], rule.coarse_percentile)
        # The epsilon keeps this axis the coarsest one, and with it the order of the axes.
        target[coarse] = next_coarsest + 1e-5 if refined < next_coarsest else refined
    target = target / rule.resolution_multiplier
    return TargetSpacing(
        spacing=tuple(float(s) for s in target),  # type: ignore[arg-type]
        median=median,
        has_anisotropic_spacing=has_anisotropic_spacing,
        has_few_slices=has_few_slices,
    )


def median_shape(spacings: Sequence[Triple], shapes: Sequence[Sequence[int]], target: Triple) -> Triple:
    """The median over cases of the shape after resampling to ``target``; a half where the number of cases is even.

    A case that is thinner than half a voxel counts as 0 (so does nnU-Net 2.8.1); the median itself is never 0.
    """
    resampled = np.rint(np.asarray(spacings, np.float64) / np.asarray(target) * np.asarray(shapes))
    median = np.median(resampled, 0)
    return tuple(float(n) or 1.0 for n in median)  # type: ignore[return-value]


def axis_order(target: Triple, median: Triple, *, single_slice_first: bool) -> AxisOrder:
    """Coarsest spacing first; with ``single_slice_first`` a dataset of single slices has the slice axis first in any case.

    >>> axis_order((1.0, 2.0, 2.0), (1.0, 256.0, 256.0), single_slice_first=True)
    (0, 1, 2)
    """
    singles = [axis for axis in range(3) if median[axis] == 1]
    if single_slice_first and len(singles) == 1:
        return network_order([float(axis == singles[0]) for axis in range(3)])
    return network_order(target)
