"""Whether a crop cascade is planned: a coarse network finds the box of the foreground, a fine one sees nothing but that box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medseg3d.planning.patch import Design, design_configuration
from medseg3d.planning.planner import CropRule, Planner
from medseg3d.planning.reasons import Decided, Explanation
from medseg3d.planning.summary import DatasetSummary, FocusFacts

DETECTOR, CROPPED = "3d_detect", "3d_crop_fullres"
"""The configurations of the coarse network and of the fine one."""
EXPECTED_MARGIN = 0.1
"""Of each edge of the foreground's box, on either side: the fine network's patch is planned for it. Validation chooses the real one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CropDesigns:
    """The coarse network for the whole case, and the fine one for the box."""

    detector: Decided[Design]
    inside: Decided[Design]


def planned_crop(
    fullres: Design | None,
    box_mm: Sequence[float],
    summary: DatasetSummary,
    planner: Planner,
    *,
    gpu_memory_gb: float,
    axes: Sequence[str],
) -> Decided[CropDesigns | None]:
    """Both designs; None where the foreground is no small part of a case, or the fine patch covers most of it anyway.

    ``box_mm`` are the edges of the foreground's median box in network order, empty where they are not known. ``fullres`` is None where
    the cases are single slices.
    """
    rule, focus = planner.crop, summary.focus
    against = "; ".join(_against(fullres, focus, rule))
    if against or fullres is None or focus is None:
        return _decided(None, rule, f"{against}.")
    shape, spacing = np.asarray(fullres.median_shape), np.asarray(fullres.spacing)
    coarse = detector_spacing(fullres, box_mm, rule)
    inside = np.minimum(np.ceil(np.asarray(box_mm) * (1 + 2 * EXPECTED_MARGIN) / spacing), shape)

    def design(at: Sequence[float], voxels: Sequence[float]) -> Decided[Design]:
        dataset_voxels = float(np.prod(voxels, dtype=np.float64) * summary.num_cases)
        return design_configuration(at, voxels, summary, planner, dataset_voxels=dataset_voxels, gpu_memory_gb=gpu_memory_gb, axes=axes)

    designs = CropDesigns(
        detector=design(coarse, [float(max(1, round(n))) for n in shape * spacing / np.asarray(coarse)]),
        inside=design(fullres.spacing, [float(n) for n in inside]),
    )
    inputs = (
        f"In the median case the foreground is {focus.foreground_share:.2%} of the voxels, and its box {focus.box_share:.1%} of the "
        f"volume; a patch of 3d_fullres covers {fullres.patch_share:.1%}. {DETECTOR} sees a case with {_ratio(fullres, designs):.0f} times "
        "fewer voxels."
    )
    return _decided(designs, rule, inputs)


def _against(fullres: Design | None, focus: FocusFacts | None, rule: CropRule) -> Iterator[str]:
    """Why no crop cascade is planned."""
    if not rule.foreground_share and not rule.box_share:
        yield "the planner plans none (crop.foreground_share and crop.box_share are 0)"
    elif fullres is None:
        yield "the cases are single slices"
    elif focus is None:
        yield "the fingerprint does not tell the box of the foreground (of a version that did not measure it, or of another program)"
    else:
        if focus.foreground_share >= rule.foreground_share and focus.box_share >= rule.box_share:
            yield f"the foreground is {focus.foreground_share:.1%} of a median case, its box {focus.box_share:.0%} of the volume"
        elif focus.box_share >= rule.most_box_share:
            yield f"the box of the foreground is {focus.box_share:.0%} of the volume, so that little is left out"
        if fullres.patch_share >= rule.patch_share:
            yield f"a patch of 3d_fullres covers {fullres.patch_share:.0%} of a median case"


def detector_spacing(fullres: Design, box_mm: Sequence[float], rule: CropRule) -> tuple[float, ...]:
    """In mm: so coarse that a case has as many voxels as a patch of full resolution, and the box still ``detector_edge`` along each axis.

    Axes that are coarser already stay as they are.
    """
    spacing, extent = np.asarray(fullres.spacing), np.asarray(fullres.spacing) * np.asarray(fullres.median_shape)
    voxels = float(np.prod(fullres.topology.patch_size, dtype=np.float64))
    coarsest = max(float(min(box_mm)) / rule.detector_edge, float(spacing.min()))
    edge = float(spacing.min())
    while edge < coarsest and float(np.prod(extent / np.maximum(spacing, edge), dtype=np.float64)) > voxels:
        edge = min(edge * STEP, coarsest)
    return tuple(float(value) for value in np.maximum(spacing, edge))


STEP = 1.03
"""As in the search for 3d_lowres."""


def _ratio(fullres: Design, designs: CropDesigns) -> float:
    return float(np.prod(fullres.median_shape, dtype=np.float64) / np.prod(designs.detector.value.median_shape, dtype=np.float64))


def _decided(designs: CropDesigns | None, rule: CropRule, inputs: str) -> Decided[CropDesigns | None]:
    reason = Explanation(
        quantity="crop cascade",
        value="not planned" if designs is None else f"proposed: {DETECTOR}, then {CROPPED}",
        rule=(
            f"Proposed where the foreground is less than {rule.foreground_share:.0%} of a median case, or its box less than "
            f"{rule.box_share:.0%} of the volume; not where the box is {rule.most_box_share:.0%} or more, or a patch covers "
            f"{rule.patch_share:.0%} of a case. {DETECTOR} is so coarse that one of its patches covers a case, with at least "
            f"{rule.detector_edge} voxels along each edge of the box."
        ),
        inputs=inputs[:1].upper() + inputs[1:],
        changes_it="Labels that fill more of the cases, or crop.foreground_share and crop.box_share of the planner (0: never).",
    )
    return Decided(designs, (reason,))


def box_reason() -> Explanation:
    """Of the fine configuration."""
    return Explanation(
        quantity="earlier stage",
        value=f"trained and used inside the box that {DETECTOR} finds",
        rule="The box is that of all that the earlier stage finds, with a margin chosen by validation so that no foreground voxel of any "
        "validation case is cut. Where nothing is found, the whole case is predicted.",
        inputs=f"{DETECTOR} is planned.",
        changes_it=f"Whatever changes 3d_fullres; without {DETECTOR} there is no crop cascade.",
    )
