"""Which resolution a dataset is brought to: spacings and shapes of its cases go in, target spacing and median shape come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medseg3d.axes import AxisOrder, network_order
from medseg3d.frame import THICK_SLICE_RATIO
from medseg3d.planning.planner import SpacingRule

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpacing:
    """The target in mm in the order of the cases' axes; ``median`` is what it was before the rule for thick slices applied."""

    spacing: Triple
    median: Triple
    has_anisotropic_spacing: bool
    has_few_slices: bool
    basis: str = ""
    """Which cases or spacings the target was taken from, where not all."""


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


MAX_DISSENTING_SHARE = 1 / 3
"""Up to this share of cases whose slices run along another axis the target is that of the others; beyond, no axis may be coarse."""


def target_spacing_of(
    spacings: Sequence[Triple], shapes: Sequence[Sequence[int]], rule: SpacingRule, dissenting: Sequence[int] = ()
) -> TargetSpacing:
    """:func:`target_spacing`, where the thick slices of some cases (``dissenting``) lie along another axis than those of the rest.

    A few such cases do not decide. Where they are many, the percentile over all cases would mix slice distances with edges of pixels
    and give a number that no case has; each axis then takes that of the cases whose slices do not lie along it, so that the detail
    inside the slices of every case is kept.
    """
    if not dissenting:
        return target_spacing(spacings, shapes, rule)
    agreeing = [place for place in range(len(spacings)) if place not in set(dissenting)]
    if len(dissenting) <= MAX_DISSENTING_SHARE * len(spacings):
        target = target_spacing([spacings[k] for k in agreeing], [shapes[k] for k in agreeing], rule)
        return replace(target, basis=f"the {len(agreeing)} cases whose slices lie along one axis")
    values = np.asarray(spacings, np.float64)
    is_slice = (values == values.max(1, keepdims=True)) & (values >= THICK_SLICE_RATIO * np.sort(values, 1)[:, 1:2])
    inside = [values[~is_slice[:, axis], axis] for axis in range(3)]
    edges = [float(np.percentile(column if column.size else values[:, axis], rule.percentile)) for axis, column in enumerate(inside)]
    median: Triple = (edges[0], edges[1], edges[2])
    return TargetSpacing(
        spacing=tuple(edge / rule.resolution_multiplier for edge in edges),  # type: ignore[arg-type]
        median=median,
        has_anisotropic_spacing=False,
        has_few_slices=False,
        basis="the spacing inside the slices, as the slices of the cases run along different axes",
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
