"""Whether a second configuration at lower resolution is planned, and at which spacing: that of full resolution goes in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg3d.planning.patch import Design, design_configuration
from medseg3d.planning.planner import LowresRule, Planner
from medseg3d.planning.reasons import Decided, Explanation
from medseg3d.planning.spacing import coarsened_first
from medseg3d.planning.summary import DatasetSummary


def planned_lowres(
    fullres: Design | None, summary: DatasetSummary, planner: Planner, *, gpu_memory_gb: float, axes: Sequence[str]
) -> Decided[Decided[Design] | None]:
    """The design at lower resolution; None where none is needed, or where it would not be much smaller than full resolution.

    ``fullres`` is None where the cases are single slices.
    """
    if fullres is None:
        return _decided(None, planner.lowres, "The cases are single slices.")
    if fullres.patch_share >= planner.lowres.patch_share:
        return _decided(None, planner.lowres, f"The full-resolution patch covers {fullres.patch_share:.0%} of a median case.")
    design, steps, ratio = _coarsened(fullres, summary, planner, gpu_memory_gb=gpu_memory_gb, axes=axes)
    is_kept = ratio >= planner.lowres.min_volume_ratio
    inputs = (
        f"The full-resolution patch covers {fullres.patch_share:.1%} of a median case. After {steps} steps the patch covers enough, and a "
        f"case has {ratio:.2f} times fewer voxels: {'kept' if is_kept else 'dropped, as it would be too similar'}."
    )
    return _decided(design if is_kept else None, planner.lowres, inputs)


def _coarsened(
    fullres: Design, summary: DatasetSummary, planner: Planner, *, gpu_memory_gb: float, axes: Sequence[str]
) -> tuple[Decided[Design], int, float]:
    """Coarsen the spacing step by step until the patch covers enough of the median case.

    Axes that are finer than the coarsest by more than ``coarse_axis_ratio`` go first. Returns the design, the number of steps, and
    how many times fewer voxels a case has.
    """
    rule = planner.lowres
    full_spacing, full_shape = np.asarray(fullres.spacing), np.asarray(fullres.median_shape)
    full_voxels = np.prod(full_shape, dtype=np.float64)
    spacing, steps = full_spacing.copy(), 0
    while True:
        spacing[coarsened_first(spacing, rule.coarse_axis_ratio)] *= rule.spacing_step
        steps += 1
        shape = full_spacing / spacing * full_shape
        voxels = np.prod(shape, dtype=np.float64)
        design = design_configuration(
            [float(s) for s in spacing],
            [float(max(1, round(n))) for n in shape],
            summary,
            planner,
            dataset_voxels=float(voxels * summary.num_cases),
            gpu_memory_gb=gpu_memory_gb,
            axes=axes,
        )
        # of the shape before rounding, unlike Design.patch_share
        if np.prod(design.value.topology.patch_size, dtype=np.float64) / voxels >= rule.patch_share:
            return design, steps, float(full_voxels / voxels)


def _decided(design: Decided[Design] | None, rule: LowresRule, inputs: str) -> Decided[Decided[Design] | None]:
    reason = Explanation(
        quantity="3d_lowres",
        value="not planned" if design is None else "planned",
        rule=(
            f"Planned where the full-resolution patch covers less than {rule.patch_share:.0%} of a median case: the spacing grows by "
            f"{rule.spacing_step - 1:.0%} per step, axes finer than 1/{rule.coarse_axis_ratio:g} of the coarsest first, until the patch "
            f"covers that much. Kept if a case then has at least {rule.min_volume_ratio:g} times fewer voxels."
        ),
        inputs=inputs,
        changes_it="More GPU memory (a larger patch), smaller cases, or lowres.patch_share of the planner.",
    )
    return Decided(design, (reason,))
