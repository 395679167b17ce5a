"""Patch, network and batch of one resolution: spacing, median shape and memory go in, a design comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from medseg3d.errors import PlanError
from medseg3d.plan import NetworkPlan
from medseg3d.planning.budget import MemoryBudget, memory_budget_of
from medseg3d.planning.planner import BatchRule, Planner
from medseg3d.planning.reasons import Decided, Explanation, times
from medseg3d.planning.stages import planned_network, pooling_of
from medseg3d.planning.summary import DatasetSummary
from medseg3d.planning.topology import Topology, derive_topology, topology_reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Patch, network and batch of one configuration; network order. ``topology.patch_size`` is the final patch."""

    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    topology: Topology
    network: NetworkPlan
    batch_size: int

    @property
    def patch_share(self) -> float:
        """The share of the median case that a patch covers."""
        return float(np.prod(self.topology.patch_size, dtype=np.float64) / np.prod(self.median_shape, dtype=np.float64))


def design_configuration(
    spacing: Sequence[float],
    shape: Sequence[float],
    summary: DatasetSummary,
    planner: Planner,
    *,
    dataset_voxels: float,
    gpu_memory_gb: float,
    axes: Sequence[str],
) -> Decided[Design]:
    """Patch, network and batch for one spacing and median shape, in 2D or 3D by the number of axes, whose names are ``axes``.

    The patch starts with the aspect of one voxel inverted (isotropic in mm), no larger than the median case, and loses the axis
    that is largest relative to it, step by step, until the network's feature maps fit. Rules: nnU-Net 2.8.1
    ``get_plans_for_configuration``.
    """
    dimensions: Literal[2, 3] = 3 if len(spacing) == 3 else 2
    asked = pooling_of(planner.network.family)
    topology_of = partial(
        derive_topology,
        spacing,
        min_edge=planner.patch.min_feature_map_edge,
        lone_axis_factor=planner.patch.lone_axis_factor,
        kernel_edge=planner.network.kernel_edge,
        max_stages=planner.network.max_stages,
        pooling=asked,
    )
    budget = memory_budget_of(planner, summary, gpu_memory_gb=gpu_memory_gb, is_3d=dimensions == 3)
    edge = planner.patch.initial_edge_3d if dimensions == 3 else planner.patch.initial_edge_2d
    initial = initial_patch(spacing, shape, edge)
    fitted = fit_patch(initial.value, shape, topology_of, budget, axes=axes)
    topology = fitted.value
    network = planned_network(planner.network, summary, topology=topology, dimensions=dimensions)
    final = replace(topology, patch_size=budget.patch_size(topology))
    batch = batch_size(topology, final.patch_size, budget, planner.batch, dataset_voxels=dataset_voxels)
    design = Design(spacing=tuple(spacing), median_shape=tuple(shape), topology=final, network=network.value, batch_size=batch.value)
    pooling = topology_reasons(
        topology,
        spacing=spacing,
        patch_size=final.patch_size,
        patch=planner.patch,
        kernel_edge=planner.network.kernel_edge,
        pooling=asked,
    )
    return Decided(design, (*initial.reasons, *fitted.reasons, *pooling, *network.reasons, *batch.reasons))


def initial_patch(spacing: Sequence[float], shape: Sequence[float], edge: int) -> Decided[tuple[float, ...]]:
    """A box with equal edges in mm and ``edge ** dimensions`` voxels, rounded, cut to the median shape."""
    dimensions = len(spacing)
    density = 1 / np.asarray(spacing, np.float64)
    box = density * (edge**dimensions / np.prod(density)) ** (1 / dimensions)
    patch = tuple(float(min(round(n), limit)) for n, limit in zip(box, shape, strict=True))
    reason = Explanation(
        quantity="initial patch",
        value=times(patch),
        rule=f"A box as long in mm along all axes, with as many voxels as {edge}^{dimensions}, cut to the median case.",
        inputs=f"Spacing {times(spacing, 4)} mm, median case {times(shape)} voxels.",
        changes_it="Another spacing or larger cases.",
    )
    return Decided(patch, (reason,))


def fit_patch(
    initial: Sequence[float],
    shape: Sequence[float],
    topology_of: Callable[[Sequence[float]], Topology],
    budget: MemoryBudget,
    *,
    axes: Sequence[str],
) -> Decided[Topology]:
    """The topology of the largest patch that fits; raises :class:`PlanError` where not even the smallest does."""
    topology = topology_of(initial)
    estimate = first_estimate = budget.estimate(topology)
    shrunk_axes: list[str] = []
    while not budget.fits(estimate):
        axis, size = _shrink(topology.patch_size, shape, topology.divisor, topology_of, budget, estimate)
        shrunk_axes.append(axes[axis])
        topology = topology_of(size)
        estimate = budget.estimate(topology)
    final, padding = budget.patch_size(topology), "each axis padded up to a multiple of its total stride"
    if final != topology.patch_size:
        padding += ", and then the border that convolutions without padding lose. The logits belong to its middle"
    per_axis = ", ".join(f"{count} along {axis}" for axis, count in Counter(shrunk_axes).items())
    shrinking = Explanation(
        quantity="shrink steps",
        value=f"{len(shrunk_axes)} ({per_axis})" if shrunk_axes else "0",
        rule=f"While a batch of {budget.fitting_batch} does not fit the memory, the axis that is longest relative to the median case "
        "loses one total stride.",
        inputs=f"The initial patch, padded, takes {budget.in_words(first_estimate)}; what fits a batch of {budget.fitting_batch} is "
        f"{budget.in_words(budget.limit)}.",
        changes_it="More GPU memory, a narrower network, fewer labels.",
    )
    patch = Explanation(
        quantity="patch size",
        value=times(final),
        rule=f"The initial patch after the shrink steps, {padding}.",
        inputs=f"Initial patch {times(initial)}, {len(shrunk_axes)} shrink steps, total stride {times(topology.divisor)}.",
        changes_it="GPU memory (--gpu-memory), the spacing, larger cases.",
    )
    return Decided(topology, (shrinking, patch))


def _shrink(
    patch: tuple[int, ...],
    shape: Sequence[float],
    divisor: tuple[int, ...],
    topology_of: Callable[[Sequence[float]], Topology],
    budget: MemoryBudget,
    estimate: int,
) -> tuple[int, tuple[int, ...]]:
    """The axis to shorten, the largest relative to the median case, and the shortened patch.

    The step is the total stride of a patch that is one old total stride shorter: from 256 with a total stride of 64 this reaches
    224 rather than 192. An axis that would vanish is passed over for the next largest.
    """
    relative = [n / limit for n, limit in zip(patch, shape, strict=True)]
    # Among equals the last axis goes first, as in a stable sort.
    for axis in sorted(range(len(patch)), key=lambda a: relative[a])[::-1]:
        shorter = topology_of(_with(patch, axis, patch[axis] - divisor[axis]))
        size = patch[axis] - shorter.divisor[axis]
        if size >= 1:
            return axis, _with(patch, axis, size)
    raise PlanError(budget.refusal(estimate))


def _with(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


def batch_size(
    topology: Topology, patch_size: Sequence[int], budget: MemoryBudget, rule: BatchRule, *, dataset_voxels: float
) -> Decided[int]:
    """As many patches as fit, and at most the allowed share of all training voxels; never fewer than the planner's minimum."""
    estimate = budget.estimate(topology)
    by_memory = budget.batch_size(topology, estimate)
    by_share = round(float(dataset_voxels * rule.max_dataset_share / np.prod(patch_size, dtype=np.float64)))
    size = max(min(by_memory, by_share), rule.min_size)
    if size > min(by_memory, by_share):
        decider, changes_it = "the minimum", "batch.min_size of the planner; more GPU memory enlarges the patch first."
    elif by_memory <= by_share:
        decider, changes_it = "the memory", "More GPU memory (--gpu-memory) or a smaller patch."
    else:
        decider, changes_it = "the share of the dataset", "More cases, or batch.max_dataset_share of the planner."
    counting, taken = budget.reasoning(estimate)
    reason = Explanation(
        quantity="batch size",
        value=str(size),
        rule=f"{counting}; at most {rule.max_dataset_share:.0%} of all training voxels in one batch; at least {rule.min_size}.",
        inputs=f"{taken}, so the memory allows {by_memory or 'less than one'}; the dataset allows {by_share or 'less than one'}. Decided "
        f"by {decider}.",
        changes_it=changes_it,
    )
    return Decided(size, (reason,))
