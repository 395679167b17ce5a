"""Which resolution a dataset is brought to: spacings and shapes of its cases go in, target spacing and median shape come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medseg3d.axes import CANONICAL, AxisOrder, Triple, network_order, triple
from medseg3d.frame import THICK_SLICE_RATIO
from medseg3d.planning.planner import SpacingRule
from medseg3d.planning.reasons import Decided, Explanation, times
from medseg3d.wording import counted

MAX_DISSENTING_SHARE = 1 / 3
"""Up to this share of cases whose slices run along another axis the target is that of the others; beyond, no axis may be coarse."""


def target_spacing(
    spacings: Sequence[Triple],
    shapes: Sequence[Sequence[int]],
    rule: SpacingRule,
    *,
    coarse_axis_ratio: float = 2.0,
    dissenting: Sequence[int] = (),
    axes: Sequence[str] = CANONICAL,
) -> Decided[Triple]:
    """The median spacing in mm; where slices are thick and few, a low percentile along that axis. ``axes`` are their names.

    ``dissenting`` are the places of cases whose thick slices lie along another axis than those of the rest. A few of them do not
    decide. Where they are many, the percentile over all cases would mix slice distances with edges of pixels and give a number that
    no case has; each axis then takes that of the cases whose slices do not lie along it, so that the detail inside the slices of every
    case is kept. In the end all axes are divided by ``resolution_multiplier``, and coarsened until ``voxel_share`` of the voxels are left.
    """
    found = _found(spacings, shapes, rule, dissenting)
    target = coarsened([edge / rule.resolution_multiplier for edge in found.spacing], rule.voxel_share, coarse_axis_ratio)
    usual = _percentile_name(rule.percentile)
    reason = Explanation(
        quantity="target spacing",
        value=f"{times(target, 4)} mm along {' '.join(axes)}",
        rule=(
            f"The {usual} of the spacings of all cases, axis by axis. Where the coarsest axis is more than {rule.anisotropy_threshold:g} "
            f"times as coarse as the next and has fewer than 1/{rule.anisotropy_threshold:g} of its voxels, that axis takes the "
            f"{_percentile_name(rule.coarse_percentile)} instead, so that no case loses slices." + _coarsening_rule(rule, coarse_axis_ratio)
        ),
        inputs=(
            f"{found.basis}{counted(len(spacings), 'case')}, {usual} {times(found.median, 4)} mm; the coarsest axis has "
            f"{max(found.median):.4g} mm; thick slices: {'yes' if found.is_thick else 'no'}, few "
            f"slices: {'yes' if found.has_few_slices else 'no'}."
        ),
        changes_it="Cases with other spacings; percentile, coarse_percentile or anisotropy_threshold of the planner (spacing).",
    )
    return Decided(target, (reason,))


COARSENING_STEP = 1.03
"""Per step, as in the search for 3d_lowres."""


def coarsened(spacing: Sequence[float], voxel_share: float, coarse_axis_ratio: float) -> Triple:
    """Edges in mm of fewer voxels: axes that are finer than the coarsest by more than ``coarse_axis_ratio`` grow first, then all of them.

    >>> [round(edge, 6) for edge in coarsened((10.0, 1.5, 1.5), 1 / 4, 2)]
    [10.0, 3.0, 3.0]
    """
    edges, left = np.asarray(spacing, np.float64).copy(), 1 / voxel_share
    while left > 1 + 1e-9:
        chosen = coarsened_first(edges, coarse_axis_ratio)
        step = min(COARSENING_STEP, left ** (1 / chosen.sum()))
        edges[chosen] *= step
        left /= step ** chosen.sum()
    return triple(edges)


def coarsened_first(edges: np.ndarray, coarse_axis_ratio: float) -> np.ndarray:
    """Which axes grow next: those that are finer than the coarsest by more than the ratio, or all where none is. nnU-Net 2.8.1's rule."""
    is_finer: np.ndarray = edges.max() / edges > coarse_axis_ratio
    return is_finer if is_finer.any() else np.ones(len(edges), bool)


def _coarsening_rule(rule: SpacingRule, coarse_axis_ratio: float) -> str:
    if rule.voxel_share == 1:
        return ""
    finer = f"of axes finer than 1/{coarse_axis_ratio:g} of the coarsest first"
    return f" Then edges grow until {rule.voxel_share:.1%} of the voxels are left, {finer}."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A spacing; ``median`` is what it was before the rule for thick and few slices applied, ``basis`` says where not all cases count."""

    spacing: Sequence[float]
    median: Sequence[float]
    is_thick: bool = False
    has_few_slices: bool = False
    basis: str = ""


def _found(spacings: Sequence[Triple], shapes: Sequence[Sequence[int]], rule: SpacingRule, dissenting: Sequence[int]) -> _Found:
    if not dissenting:
        return _percentile_spacing(spacings, shapes, rule)
    if len(dissenting) > MAX_DISSENTING_SHARE * len(spacings):
        return _spacing_inside_slices(spacings, rule)
    agreeing = [place for place in range(len(spacings)) if place not in set(dissenting)]
    found = _percentile_spacing([spacings[k] for k in agreeing], [shapes[k] for k in agreeing], rule)
    return replace(found, basis=f"Taken from the {len(agreeing)} cases whose slices lie along one axis. ")


def _percentile_spacing(spacings: Sequence[Triple], shapes: Sequence[Sequence[int]], rule: SpacingRule) -> _Found:
    """Rule: nnU-Net 2.8.1 ``determine_fullres_target_spacing``.

    Thick: the coarsest axis exceeds ``anisotropy_threshold`` times the next. Few: it has fewer than 1/threshold of the voxels of
    the others. Then resampling to the median would interpolate away slices of the finer cases.
    """
    all_spacings = np.asarray(spacings, np.float64)
    target = np.percentile(all_spacings, rule.percentile, 0)
    size = np.percentile(np.asarray(shapes), rule.percentile, 0)
    median = triple(target)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != coarse]
    next_coarsest = max(target[others])
    is_thick = bool(target[coarse] > rule.anisotropy_threshold * next_coarsest)
    has_few_slices = bool(size[coarse] * rule.anisotropy_threshold < min(size[others]))
    if is_thick and has_few_slices:
        refined = np.percentile(all_spacings[:, coarse], rule.coarse_percentile)
        # The epsilon keeps this axis the coarsest one, and with it the order of the axes.
        target[coarse] = next_coarsest + 1e-5 if refined < next_coarsest else refined
    return _Found(spacing=triple(target), median=median, is_thick=is_thick, has_few_slices=has_few_slices)


def _spacing_inside_slices(spacings: Sequence[Triple], rule: SpacingRule) -> _Found:
    values = np.asarray(spacings, np.float64)
    is_slice = (values == values.max(1, keepdims=True)) & (values >= THICK_SLICE_RATIO * np.sort(values, 1)[:, 1:2])
    inside = [values[~is_slice[:, axis], axis] for axis in range(3)]
    edges = [float(np.percentile(column if column.size else values[:, axis], rule.percentile)) for axis, column in enumerate(inside)]
    basis = "Taken from the spacing inside the slices, as the slices of the cases run along different axes. "
    return _Found(spacing=edges, median=edges, basis=basis)


def median_shape(spacings: Sequence[Triple], shapes: Sequence[Sequence[int]], target: Triple) -> Triple:
    """The median over cases of the shape after resampling to ``target``; a half where the number of cases is even.

    A case that is thinner than half a voxel counts as 0 (so does nnU-Net 2.8.1); the median itself is never 0.
    """
    resampled = np.rint(np.asarray(spacings, np.float64) / np.asarray(target) * np.asarray(shapes))
    return triple([float(n) or 1.0 for n in np.median(resampled, 0)])


def axis_order(target: Triple, median: Triple, *, single_slice_first: bool, axes: Sequence[str] = CANONICAL) -> Decided[AxisOrder]:
    """Coarsest spacing first; with ``single_slice_first`` a dataset of single slices has the slice axis first in any case.

    >>> axis_order((1.0, 2.0, 2.0), (1.0, 256.0, 256.0), single_slice_first=True).value
    (0, 1, 2)
    """
    singles = [axis for axis in range(3) if median[axis] == 1]
    is_single = single_slice_first and len(singles) == 1
    order = network_order([float(axis == singles[0]) for axis in range(3)] if is_single else target)
    reason = Explanation(
        quantity="axis order",
        value=" ".join(axes[axis] for axis in order),
        rule="The axis with the coarsest target spacing comes first, the others keep their order; 2D slices lie across the first."
        + (" In a dataset of single slices the slice axis comes first in any case." if single_slice_first else ""),
        inputs=f"Target spacing {times(target, 4)} mm along {' '.join(axes)}.",
        changes_it="A target spacing that is coarsest along another axis.",
    )
    return Decided(order, (reason,))


def resolution_reasons(
    configuration: str,
    spacing: Sequence[float],
    shape: Sequence[float],
    *,
    target: Sequence[float],
    axes: Sequence[str],
    num_cases: int,
) -> tuple[Explanation, Explanation]:
    """Why a configuration has its spacing and its median shape; all in network order, ``axes`` are the names of the configuration's."""
    where, is_lowres = f"axes {' '.join(axes)}", configuration == "3d_lowres"
    return (
        Explanation(
            quantity="spacing",
            value=f"{times(spacing, 4)} mm ({where})",
            rule={
                "2d": "The target spacing within the slice; slices are kept as they are.",
                "3d_lowres": "The finest spacing of the search for 3d_lowres at which the patch covers enough of a case.",
            }.get(configuration, "The target spacing."),
            inputs=f"Target spacing {times(target, 4)} mm in network order.",
            changes_it="Whatever changes the target spacing"
            + (", the GPU memory or the lowres numbers of the planner." if is_lowres else "."),
        ),
        Explanation(
            quantity="median shape",
            value=f"{times(shape)} voxels ({where})",
            rule="The median over cases of the shape after cropping to non-zero voxels and resampling to the spacing"
            + (", rounded." if is_lowres else "; a half where the number of cases is even."),
            inputs=f"{counted(num_cases, 'case')}.",
            changes_it="Other cases, or another spacing.",
        ),
    )


def _percentile_name(percentile: float) -> str:
    return "median" if percentile == 50 else f"{percentile:g}th percentile"
