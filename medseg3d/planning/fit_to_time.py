"""How cheap steps must be so that a training of some hours has enough of them.

A planner, a dataset and a device's speed go in; the planner comes out with what its numbers are multiplied by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from medseg3d.plan import Configuration
from medseg3d.planning.candidates import Speed, step_seconds
from medseg3d.planning.loss_rules import ELONGATED
from medseg3d.planning.make_plan import make_plan
from medseg3d.planning.memory import FEATURE_MAPS
from medseg3d.planning.planner import Fitted, Planner
from medseg3d.planning.spacing import coarsened
from medseg3d.planning.summary import DatasetSummary

PATCH_STEP, RESOLUTION_STEP = 0.5, 0.8
"""Half of the memory for patches, for about half of the work; 0.8 along all three axes is about half as well."""


def fitted_to_time(
    planner: Planner, summary: DatasetSummary, *, hours: float, speed: Speed, gpu_memory_gb: float | None = None, batch_size: int = 2
) -> Planner:
    """The planner with what its numbers are multiplied by, so that a training of ``hours`` has enough steps on a device.

    The finest stage becomes thinner where fewer than ``time.least_steps`` fit. Then the width falls until there are as many times the
    width, and the resolution until there are as many: a narrow network learns sooner all that it can, but large images take many steps
    whatever the network. The resolution goes before the patch: a coarser patch sees as much of a case as before, a smaller one less, and a
    network that never saw a place finds structures there that are none.

    Steps are those of ``batch_size`` patches (a short run takes the smallest batch), in the configuration that is recommended, by
    estimate. Where even the cheapest step that the rule allows is too slow, it is taken. Only plain and residual U-Nets are changed: others
    are published with their widths.
    """
    rule = planner.time
    if not rule.least_steps or planner.network.family not in FEATURE_MAPS:
        return planner

    def with_steps(found: Fitted) -> Fitted:
        made = make_plan(summary, replace(planner, fitted=found), gpu_memory_gb=gpu_memory_gb)
        return replace(found, steps=round(hours * 3600 / seconds_of_step(made.configuration(None), batch_size, speed)))

    found = with_steps(Fitted(hours=hours, device=speed.device, steps=0))
    if rule.finest_blocks and found.steps < rule.least_steps:
        thinner = with_steps(replace(found, finest_blocks=rule.finest_blocks))
        found = thinner if thinner.steps > found.steps else found  # residual U-Nets have one block there as they are
    for width in _falling(0.5, _least_width(planner)):
        if found.steps < rule.least_steps * found.width:
            found = with_steps(replace(found, width=width))
    for resolution in _falling(RESOLUTION_STEP, coarsest_resolution(planner, summary)):
        if found.steps < rule.least_steps:
            found = with_steps(replace(found, resolution=resolution))
    for patch in _falling(PATCH_STEP, rule.least_patch):
        if found.steps < rule.least_steps * found.width:
            found = with_steps(replace(found, patch=patch))
    return replace(planner, fitted=found)


def seconds_of_step(configuration: Configuration, batch_size: int, speed: Speed) -> float:
    """By estimate, of a batch of at most so many patches."""
    from medseg3d.networks.cost import step_cost

    batch = min(batch_size, configuration.batch_size)
    cost = step_cost(configuration.network, configuration.patch_size, batch, optimizer=configuration.training.optimizer)
    return step_seconds(cost, configuration, batch, speed)


def coarsest_resolution(planner: Planner, summary: DatasetSummary) -> float:
    """The factor on the resolution, whose cube is the share of the voxels, that the rule allows at most.

    No axis is coarser than the rule says, and the smallest and the thinnest label have their voxels. 1 where a label is long and thin or
    none is known, and where slices are planned as they are (2D): coarser pixels would only make them look like volumes.
    """
    rule, facts = planner.time, summary.loss_facts
    shares = [share for share in (summary.class_shares or ())[1:] if share > 0]
    if rule.least_resolution >= 1 or not shares or facts is None or facts.elongation is None or facts.elongation >= ELONGATED:
        return 1.0
    shown = make_plan(summary, replace(planner, fitted=None)).configuration(None)
    if len(shown.spacing) < 3:
        return 1.0
    edge = (min(shares) * math.prod(shown.median_shape) / max(1.0, facts.components)) ** (1 / 3)
    least = min(1.0, max(rule.least_resolution, rule.least_label_edge / edge))
    coarsest = 1.0
    for factor in _falling(RESOLUTION_STEP, least):
        edges = coarsened(shown.spacing, factor**3, planner.lowres.coarse_axis_ratio)
        changed = [(after, before) for after, before in zip(edges, shown.spacing, strict=True) if after > before * (1 + 1e-9)]
        is_thin = facts.thickness_mm is not None and any(facts.thickness_mm < rule.least_label_thickness * after for after, _ in changed)
        if not is_thin and all(after <= before / rule.least_resolution + 1e-9 for after, before in changed):
            coarsest = factor
    return coarsest


def _least_width(planner: Planner) -> float:
    network = planner.network
    first = network.features[0] if network.features else network.base_features
    return planner.time.least_features / (first * network.width_multiplier)


def _falling(step: float, least: float) -> Iterator[float]:
    """Powers of a step that are not below the least.

    >>> list(_falling(0.5, 0.25)), list(_falling(0.5, 0.7))
    ([0.5, 0.25], [])
    """
    factor = step
    while factor >= least - 1e-9:
        yield factor
        factor *= step
