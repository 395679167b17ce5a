"""A planner whose networks are made cheaper for short trainings: what was decided for it goes in, changed numbers and the reason come out.

:mod:`medseg3d.planning.fit_to_time` decides, as that takes plans to look at; plans themselves are made of what is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from medseg3d.planning.planner import Fitted, Planner, TimeRule
from medseg3d.planning.reasons import Explanation
from medseg3d.wording import counted


def with_fitted_numbers(planner: Planner) -> Planner:
    """The planner's numbers with what was decided for its time.

    The references of memory fall with the width, so that a narrower network gets the patch of the wide one, not a larger one; and with the
    voxels, so that a patch of coarser ones sees as much of a case as before.
    """
    found = planner.fitted
    if found is None:
        return planner
    share, memory = found.width * found.patch, planner.memory
    return replace(
        planner,
        network=replace(
            planner.network,
            width_multiplier=planner.network.width_multiplier * found.width,
            finest_blocks=found.finest_blocks or planner.network.finest_blocks,
        ),
        spacing=replace(planner.spacing, voxel_share=planner.spacing.voxel_share * found.resolution**3),
        memory=replace(
            memory,
            reference_3d=round(memory.reference_3d * share * found.resolution**3),
            reference_2d=round(memory.reference_2d * share * found.resolution**2),
        ),
    )


def fitting_reasons(planner: Planner) -> Iterator[Explanation]:
    """Why numbers of a planner are others; nothing where no time was given."""
    found, rule = planner.fitted, planner.time
    if found is None:
        return
    yield Explanation(
        quantity="time",
        value=", ".join(in_words(found)) or "the planner's numbers",
        rule=(
            f"A training shall have {rule.least_steps:,} steps, and half of them at half the width. Where fewer fit into its time, "
            f"{_finest(rule)}the network is narrower, down to {rule.least_features} features in its first stage. Where fewer than "
            f"{rule.least_steps:,} fit then, voxels are coarser, down to {rule.least_resolution:.0%} of the resolution, where no label is "
            f"long and thin or would have less than {rule.least_label_edge:g} of them along an edge or {rule.least_label_thickness:g} of "
            f"thickness; thick slices come last. Then patches are smaller, down to {rule.least_patch:.0%} of their memory. Early on, the "
            "number of steps counts for more than what each of them sees."
        ),
        inputs=f"{found.hours * 60:.3g} minutes for one training; about {found.steps:,} steps fit into them on {found.device}.",
        changes_it="--hours or --minutes of plan and run, a faster device, or time.* of the planner.",
    )


def _finest(rule: TimeRule) -> str:
    return f"the finest stage has {counted(rule.finest_blocks, 'block')} on the way down and up, then " if rule.finest_blocks else ""


def in_words(found: Fitted) -> Iterator[str]:
    """What is smaller than the planner has it."""
    if found.finest_blocks:
        yield f"{counted(found.finest_blocks, 'block')} in the finest stage"
    for name, factor in (("width", found.width), ("memory for patches", found.patch), ("resolution", found.resolution)):
        if factor != 1:
            yield f"{name} × {factor:.3g}"
