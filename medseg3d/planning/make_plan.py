"""Turn the summary of a dataset into a plan, by the rules and numbers of a planner."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from medseg3d.axes import AxisOrder, permute
from medseg3d.errors import PlanError
from medseg3d.plan import Configuration, Normalization, Plan
from medseg3d.planning.budget import MemoryBudget, memory_budget_of, network_plan_of, stages_of
from medseg3d.planning.loss_rules import providers_of
from medseg3d.planning.planner import BatchRule, Planner
from medseg3d.planning.spacing import TargetSpacing, axis_order, median_shape, target_spacing_of
from medseg3d.planning.summary import DatasetSummary
from medseg3d.planning.topology import Topology, derive_topology
from medseg3d.records import to_plain

logger = logging.getLogger(__name__)

LEFT_RIGHT_COSINE = 0.4
"""An axis that runs further than this from left to right (24 degrees off an axis that does not) exchanges the sides when it is mirrored.
Of an array as it is stored the x axis, at the place of R, is taken as left-right."""

Scheme = Literal["ct", "zscore", "rescale_0_1", "rgb_0_1", "none"]
SCHEMES: dict[str, Scheme] = {
    "ct": "ct",
    "nonorm": "none",
    "none": "none",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_0_1",
    "rescale_0_1": "rescale_0_1",
    "rgb_to_0_1": "rgb_0_1",
    "rgb_0_1": "rgb_0_1",
}
"""Names of channels, without case, that choose a normalization; every other name stands for a z-score per image."""


def make_plan(summary: DatasetSummary, planner: Planner, *, gpu_memory_gb: float | None = None) -> Plan:
    """All configurations that the planner derives for the dataset, and which one it recommends.

    ``gpu_memory_gb`` replaces the planner's; budgets scale with it in proportion. ``3d_*`` are left out for single-slice
    datasets, ``3d_lowres`` and the cascade where the patch covers enough of a case. Raises :class:`PlanError` where even the
    smallest patch does not fit the memory, or a CT channel lacks its statistics.
    """
    gpu_memory_gb = planner.memory.gpu_memory_gb if gpu_memory_gb is None else gpu_memory_gb
    if not gpu_memory_gb > 0:
        raise PlanError(f"The GPU memory must be above 0 GB, found {gpu_memory_gb:g}.")
    derivation = derive(summary, planner, gpu_memory_gb=gpu_memory_gb)
    configurations = {name: _configuration(name, design, derivation, summary, planner) for name, design in derivation.designs.items()}
    if "3d_lowres" in configurations:
        fullres = configurations["3d_fullres"]
        configurations["3d_cascade_fullres"] = replace(fullres, name="3d_cascade_fullres", previous_stage="3d_lowres")
    recommended, reason = _recommend(derivation, planner)
    for name, configuration in configurations.items():
        logger.info("Planned %s: patch %s, batch %d", name, configuration.patch_size, configuration.batch_size)
    return Plan(
        dataset=summary.dataset,
        planner=planner.name,
        orientation=summary.orientation,
        axis_order=derivation.axis_order,
        channels=summary.channel_names,
        modality_reason=summary.modality_reason,
        labels=summary.labels,
        num_training=summary.num_cases,
        gpu_memory_gb=float(gpu_memory_gb),
        configurations=configurations,
        recommended=recommended,
        recommended_reason=reason,
        fingerprint_digest=summary.digest,
        notes=(*summary.notes, *_notes(summary, planner, configurations)),
        left_right_doubt=summary.left_right_doubt,
        frame=summary.frame,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """How the patch, the network and the batch of one configuration came about; network order.

    ``topology.patch_size`` is the final one. ``estimate`` and ``reference`` are feature-map elements per patch, or, where
    ``is_traced``, bytes of a step with the smallest batch; ``batch_by_memory`` and ``batch_cap`` are the two bounds of
    which the smaller one, but at least the planner's minimum, became ``batch_size``. ``shrunk_axes`` has one axis per shrink
    step.
    """

    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    initial_patch: tuple[float, ...]
    topology: Topology
    features: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    estimate: int
    first_estimate: int
    reference: float
    shrunk_axes: tuple[int, ...]
    batch_by_memory: int
    batch_cap: int
    batch_size: int
    is_traced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """Everything that was derived on the way to a plan; ``designs`` by configuration, the rest in the order of the cases' axes.

    ``patch_share`` is the share of the median case that the full-resolution patch covers; ``lowres_steps`` counts the spacings
    tried and ``lowres_volume_ratio`` is how many times fewer voxels the last one has.
    """

    target: TargetSpacing
    axis_order: AxisOrder
    median_shape: tuple[float, ...]
    designs: dict[str, Design]
    patch_share: float | None
    lowres_steps: int
    lowres_volume_ratio: float


def derive(summary: DatasetSummary, planner: Planner, *, gpu_memory_gb: float) -> Derivation:
    """The numbers of all configurations, with what :mod:`medseg3d.planning.explain` needs to give reasons."""
    target = target_spacing_of(summary.spacings, summary.cropped_shapes, planner.spacing, summary.dissenting)
    median = median_shape(summary.spacings, summary.cropped_shapes, target.spacing)
    order = axis_order(target.spacing, median, single_slice_first=planner.spacing.single_slice_first)
    spacing, shape = permute(target.spacing, order), permute(median, order)
    voxels = float(np.prod(shape, dtype=np.float64) * summary.num_cases)
    designs: dict[str, Design] = {}
    share, steps, ratio = None, 0, 1.0
    if shape[0] != 1:
        fullres = design_configuration(spacing, shape, voxels, summary, planner, gpu_memory_gb=gpu_memory_gb)
        share = float(np.prod(fullres.topology.patch_size, dtype=np.float64) / np.prod(shape, dtype=np.float64))
        lowres, steps, ratio = _search_lowres(fullres, summary, planner, gpu_memory_gb=gpu_memory_gb)
        if lowres is not None:
            designs["3d_lowres"] = lowres
        designs["3d_fullres"] = fullres
    designs = {
        "2d": design_configuration(spacing[1:], shape[1:], voxels, summary, planner, gpu_memory_gb=gpu_memory_gb),
        **designs,
    }
    return Derivation(
        target=target,
        axis_order=order,
        median_shape=median,
        designs=designs,
        patch_share=share,
        lowres_steps=steps,
        lowres_volume_ratio=ratio,
    )


def design_configuration(
    spacing: Sequence[float],
    shape: Sequence[float],
    dataset_voxels: float,
    summary: DatasetSummary,
    planner: Planner,
    *,
    gpu_memory_gb: float,
) -> Design:
    """Patch, network and batch for one spacing and median shape, in 2D or 3D by the number of axes.

    The patch starts with the aspect of one voxel inverted (isotropic in mm), no larger than the median case, and loses the axis
    that is largest relative to it, step by step, until the network's feature maps fit. Rules: nnU-Net 2.8.1
    ``get_plans_for_configuration``.
    """
    network, is_3d = planner.network, len(spacing) == 3

    def topology_of(size: Sequence[float]) -> Topology:
        rule = planner.patch
        return derive_topology(
            spacing,
            size,
            min_edge=rule.min_feature_map_edge,
            lone_axis_factor=rule.lone_axis_factor,
            kernel_edge=network.kernel_edge,
            max_stages=network.max_stages,
        )

    budget = memory_budget_of(planner, summary, gpu_memory_gb=gpu_memory_gb, is_3d=is_3d)
    initial = _initial_patch(spacing, shape, planner.patch.initial_edge_3d if is_3d else planner.patch.initial_edge_2d)
    topology = topology_of(initial)
    estimate = first_estimate = budget.estimate(topology)
    shrunk_axes: list[int] = []
    while not budget.fits(estimate):
        axis, size = _shrink(topology.patch_size, shape, topology.divisor, topology_of, budget, estimate)
        shrunk_axes.append(axis)
        topology = topology_of(size)
        estimate = budget.estimate(topology)
    batch_by_memory = budget.batch_size(topology, estimate)
    features, encoder_blocks, decoder_blocks = stages_of(network, topology.num_stages, is_3d=is_3d)
    final = replace(topology, patch_size=budget.patch_size(topology))
    batch_cap = _batch_cap(dataset_voxels, final.patch_size, planner.batch)
    return Design(
        spacing=tuple(spacing),
        median_shape=tuple(shape),
        initial_patch=initial,
        topology=final,
        features=features,
        encoder_blocks=encoder_blocks,
        decoder_blocks=decoder_blocks,
        estimate=estimate,
        first_estimate=first_estimate,
        reference=budget.reference,
        shrunk_axes=tuple(shrunk_axes),
        batch_by_memory=batch_by_memory,
        batch_cap=batch_cap,
        batch_size=max(min(batch_by_memory, batch_cap), planner.batch.min_size),
        is_traced=budget.is_traced,
    )


def _initial_patch(spacing: Sequence[float], shape: Sequence[float], edge: int) -> tuple[float, ...]:
    """A box with equal edges in mm and ``edge ** dimensions`` voxels, rounded, cut to the median shape."""
    dimensions = len(spacing)
    density = 1 / np.asarray(spacing, np.float64)
    box = density * (edge**dimensions / np.prod(density)) ** (1 / dimensions)
    return tuple(float(min(round(n), limit)) for n, limit in zip(box, shape, strict=True))


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


def _batch_cap(dataset_voxels: float, patch_size: Sequence[int], rule: BatchRule) -> int:
    """The batch size at which one batch holds the allowed share of all training voxels."""
    return round(float(dataset_voxels * rule.max_dataset_share / np.prod(patch_size, dtype=np.float64)))


def _search_lowres(fullres: Design, summary: DatasetSummary, planner: Planner, *, gpu_memory_gb: float) -> tuple[Design | None, int, float]:
    """Coarsen the spacing step by step until the patch covers enough of the median case.

    Axes that are finer than the coarsest by more than ``coarse_axis_ratio`` go first. Returns the design (None where none is
    needed, or where it would not be much smaller than full resolution), the number of steps, and how many times fewer voxels a
    case has.
    """
    rule = planner.lowres
    full_spacing, full_shape = np.asarray(fullres.spacing), np.asarray(fullres.median_shape)
    full_voxels = np.prod(full_shape, dtype=np.float64)
    spacing, voxels, design, steps = full_spacing.copy(), full_voxels, fullres, 0
    while np.prod(design.topology.patch_size, dtype=np.float64) / voxels < rule.patch_share:
        is_finer = spacing.max() / spacing > rule.coarse_axis_ratio
        spacing[is_finer if is_finer.any() else ...] *= rule.spacing_step
        shape = full_spacing / spacing * full_shape
        voxels = np.prod(shape, dtype=np.float64)
        design = design_configuration(
            [float(s) for s in spacing],
            [float(max(1, round(n))) for n in shape],
            float(voxels * summary.num_cases),
            summary,
            planner,
            gpu_memory_gb=gpu_memory_gb,
        )
        steps += 1
    ratio = float(full_voxels / voxels)
    return (design if steps and ratio >= rule.min_volume_ratio else None), steps, ratio


def _configuration(name: str, design: Design, derivation: Derivation, summary: DatasetSummary, planner: Planner) -> Configuration:
    dimensions: Literal[2, 3] = 2 if name == "2d" else 3
    normalization = normalizations(summary, planner)
    network = network_plan_of(
        planner.network, summary, topology=design.topology, dimensions=dimensions, num_classes=summary.labels.num_classes
    )
    return Configuration(
        name=name,
        spacing=design.spacing,
        median_shape=design.median_shape,
        patch_size=design.topology.patch_size,
        batch_size=design.batch_size,
        # Dice over the whole batch steadies small patches; where a patch sees most of a case, the case's own Dice is meant.
        batch_dice=name == "2d" or (name == "3d_fullres" and "3d_lowres" in derivation.designs),
        network=network,
        normalization=normalization,
        resampling=planner.resampling,
        training=replace(planner.training, providers=providers_of(planner.training)),
        mirror_axes=_mirror_axes(dimensions, derivation.axis_order, summary, planner),
        data=_data_name(design.spacing, normalization, derivation.axis_order, summary, planner),
    )


def normalizations(summary: DatasetSummary, planner: Planner) -> tuple[Normalization, ...]:
    """One per channel, chosen by its name; raises :class:`PlanError` where a CT channel lacks its statistics."""
    is_cropped_much = summary.median_relative_size < planner.normalization.mask_below_relative_size
    result = []
    for channel, name in enumerate(summary.channel_names):
        scheme = SCHEMES.get(name.casefold(), "zscore")
        if scheme != "ct":
            result.append(Normalization(scheme=scheme, use_mask=is_cropped_much and scheme == "zscore"))
            continue
        if channel >= len(summary.intensities):
            raise PlanError(
                f"Channel {channel} is named {name!r}, and CT is normalized by the intensities of the labelled regions, which "
                "the fingerprint does not give. Make the fingerprint again from the images."
            )
        statistics = summary.intensities[channel]
        result.append(
            Normalization(
                scheme="ct",
                mean=statistics.mean,
                std=statistics.std,
                lower=statistics.percentile_00_5,
                upper=statistics.percentile_99_5,
            )
        )
    return tuple(result)


def is_left_right_mirrored(summary: DatasetSummary, planner: Planner) -> bool:
    """Not with pairs of left and right labels, and with most planners not where there could be some."""
    is_doubtful = planner.mirroring.left_right == "where_safe" and bool(summary.left_right_doubt)
    return not summary.labels.pairs and not is_doubtful


def _mirror_axes(dimensions: int, order: AxisOrder, summary: DatasetSummary, planner: Planner) -> tuple[int, ...]:
    """Axes of the patch, without those that run from left to right where mirroring along them is not safe."""
    axes = order[3 - dimensions :]
    exchanges_sides = [cosine > LEFT_RIGHT_COSINE for cosine in summary.frame.left_right]
    is_safe = is_left_right_mirrored(summary, planner)
    return tuple(place for place, axis in enumerate(axes) if is_safe or not exchanges_sides[axis])


def _data_name(
    spacing: Sequence[float],
    normalization: Sequence[Normalization],
    order: AxisOrder,
    summary: DatasetSummary,
    planner: Planner,
) -> str:
    """The same name for the same preprocessing: whatever changes the stored voxels or label indices is in the digest."""
    identity: list[object] = [
        [float(s) for s in spacing],
        [to_plain(n) for n in normalization],
        to_plain(planner.resampling),
        summary.orientation,
        list(order),
        list(summary.labels.values),
        *([] if summary.frame.is_canonical else [to_plain(summary.frame)]),
    ]
    return f"{len(spacing)}d-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:8]}"


def _recommend(derivation: Derivation, planner: Planner) -> tuple[str, str]:
    """The configuration to train first, and why."""
    if "3d_fullres" not in derivation.designs:
        return "2d", "The cases have a single slice, so there is no third axis to learn from."
    rule, fullres = planner.recommend, derivation.designs["3d_fullres"]
    ratio, slices = fullres.spacing[0] / max(fullres.spacing[1:]), fullres.median_shape[0]
    if ratio > rule.thick_slice_ratio and slices < rule.few_slices:
        return "2d", (
            f"Slices are {ratio:.1f} times as thick as the pixels are wide (more than {rule.thick_slice_ratio:g}) and a median case has "
            f"{slices:g} of them (fewer than {rule.few_slices}): neighboring slices show too different anatomy to be convolved together."
        )
    reason = (
        f"The cases are volumes: slices are {ratio:.1f} times as thick as the pixels are wide, and a median case has {slices:g} of them. "
        f"2d is recommended only where slices are more than {rule.thick_slice_ratio:g} times as thick as pixels are wide and fewer than "
        f"{rule.few_slices}."
    )
    if "3d_lowres" in derivation.designs and derivation.patch_share is not None:
        reason += (
            f" Its patch covers {derivation.patch_share:.0%} of a median case (below {planner.lowres.patch_share:.0%}), so "
            "3d_lowres, which sees more context at coarser resolution, is worth training as a second candidate."
        )
    return "3d_fullres", reason


def _notes(summary: DatasetSummary, planner: Planner, configurations: Mapping[str, Configuration]) -> Iterator[str]:
    if summary.left_right_doubt and is_left_right_mirrored(summary, planner):
        yield (
            "Images are mirrored along all axes, as nnU-Net does, although a network that is trained so may mix up left and right here. "
            f"The planner default would say: {summary.left_right_doubt}"
        )
    elif summary.left_right_doubt:
        yield summary.left_right_doubt
    if summary.labels.pairs:
        names = ", ".join(f"{summary.labels.names[a]} / {summary.labels.names[b]}" for a, b in summary.labels.pairs[:3])
        more = f" and {len(summary.labels.pairs) - 3} more pairs" if len(summary.labels.pairs) > 3 else ""
        axis = "the left-right axis" if summary.orientation == "canonical" else "the x axis of the files, taken as left-right,"
        yield (
            f"The labels come in left and right pairs ({names}{more}), so images are not mirrored along {axis} in training and "
            "prediction. No other number of the plan depends on this."
        )
    for name, configuration in configurations.items():
        stages = len(configuration.network.features)
        if stages <= 2:
            yield (
                f"{name}: the cases are so small (median {' x '.join(f'{n:g}' for n in configuration.median_shape)} voxels) that "
                f"its network has only {stages} stage{'s' if stages > 1 else ''}."
            )
