"""Turn the summary of a dataset into a plan, by the rules and numbers of a planner."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from medseg3d.axes import AxisOrder, permute
from medseg3d.errors import PlanError
from medseg3d.plan import Configuration, Plan
from medseg3d.planning.crop import CROPPED, DETECTOR, CropDesigns, box_reason, planned_crop
from medseg3d.planning.fitting import fitting_reasons, with_fitted_numbers
from medseg3d.planning.inherit import inherited_plan
from medseg3d.planning.loss_rules import check_extensions, planned_loss
from medseg3d.planning.lowres import planned_lowres
from medseg3d.planning.patch import Design, design_configuration
from medseg3d.planning.planner import Planner, RecommendRule
from medseg3d.planning.preprocessing_rules import (
    data_name,
    is_left_right_mirrored,
    left_right_labels,
    mirror_axes,
    normalizations,
    resampling,
)
from medseg3d.planning.reasons import Decided, Explanation
from medseg3d.planning.sampling_rules import planned_sampling
from medseg3d.planning.spacing import axis_order, median_shape, resolution_reasons, target_spacing
from medseg3d.planning.summary import DatasetSummary
from medseg3d.planning.training_rules import batch_dice, training

logger = logging.getLogger(__name__)


def make_plan(summary: DatasetSummary, planner: Planner, *, gpu_memory_gb: float | None = None) -> Plan:
    """The plan of :func:`explained_plan`."""
    return explained_plan(summary, planner, gpu_memory_gb=gpu_memory_gb).value


def explain(plan: Plan, summary: DatasetSummary, planner: Planner) -> tuple[Explanation, ...]:
    """Reasons for every number of a plan that was made earlier; the rules are asked again.

    ``summary`` and ``planner`` must be those that the plan was made from: raises :class:`PlanError` where they give other numbers.
    """
    check_extensions(plan)
    again = explained_plan(summary, planner, gpu_memory_gb=plan.gpu_memory_gb)
    if plan.inherits:
        again = inherited_plan(again, summary, planner, plan, plan.inherits)
    single = {name: configuration for name, configuration in plan.configurations.items() if configuration.previous_stage is None}
    # a cascade's numbers are those of 3d_fullres; older plans count its channels otherwise
    if any(again.value.configurations.get(name) != configuration for name, configuration in single.items()):
        raise PlanError(
            f"the planner {planner.name} now gives {summary.dataset} other numbers than those of the plan. Plan again to see the reasons."
        )
    return recommending(plan, again.reasons)


def recommending(plan: Plan, reasons: Sequence[Explanation]) -> tuple[Explanation, ...]:
    """The reasons, with the plan's own for what it recommends: that may have been decided otherwise since, for several datasets."""
    return tuple(
        replace(reason, value=plan.recommended, inputs=plan.recommended_reason) if reason.quantity == RECOMMENDED else reason
        for reason in reasons
    )


def explained_plan(summary: DatasetSummary, planner: Planner, *, gpu_memory_gb: float | None = None) -> Decided[Plan]:
    """All configurations that the planner derives for the dataset, which one it recommends, and why every number is as it is.

    ``gpu_memory_gb`` replaces the planner's; budgets scale with it in proportion. ``3d_*`` are left out for single-slice
    datasets, ``3d_lowres`` and the cascade where the patch covers enough of a case. Raises :class:`PlanError` where even the
    smallest patch does not fit the memory, or a CT channel lacks its statistics.
    """
    gpu_memory_gb = planner.memory.gpu_memory_gb if gpu_memory_gb is None else gpu_memory_gb
    if not gpu_memory_gb > 0:
        raise PlanError(f"The GPU memory must be above 0 GB, found {gpu_memory_gb:g}.")
    fitting, planner = tuple(fitting_reasons(planner)), with_fitted_numbers(planner)
    axes, rule = summary.axis_names, planner.spacing
    target = target_spacing(
        summary.spacings,
        summary.cropped_shapes,
        rule,
        coarse_axis_ratio=planner.lowres.coarse_axis_ratio,
        dissenting=summary.dissenting,
        axes=axes,
    )
    median = median_shape(summary.spacings, summary.cropped_shapes, target.value)
    order = axis_order(target.value, median, single_slice_first=rule.single_slice_first, axes=axes)
    spacing, shape = permute(target.value, order.value), permute(median, order.value)
    designs, lowres = _designs(spacing, shape, [axes[axis] for axis in order.value], summary, planner, gpu_memory_gb=gpu_memory_gb)
    configurations = {
        name: _configuration(name, design, spacing, order.value, summary, planner, has_lowres="3d_lowres" in designs)
        for name, design in designs.items()
    }
    if "3d_lowres" in configurations:
        configurations["3d_cascade_fullres"] = _cascade(configurations["3d_fullres"].value, num_labels=len(summary.labels.foreground))
    crop = _planned_crop(designs, order.value, summary, planner, gpu_memory_gb=gpu_memory_gb)
    if crop.value is not None:
        configurations |= _crop_cascade(crop.value, spacing, order.value, summary, planner)
    recommended = _recommended({name: design.value for name, design in designs.items()}, planner, tuple(configurations))
    plan = _plan(summary, planner, gpu_memory_gb, order.value, {name: each.value for name, each in configurations.items()}, recommended)
    labels = (planned_loss(planner.training, summary.loss_facts), planned_sampling(planner.training, summary.loss_facts))
    of_dataset = (target, order, left_right_labels(summary), lowres, crop, *labels, recommended)
    reasons = [*fitting, *(reason for decided in of_dataset for reason in decided.reasons)]
    reasons += [replace(reason, configuration=name) for name, each in configurations.items() for reason in each.reasons]
    return Decided(plan, tuple(reasons))


def _designs(
    spacing: Sequence[float],
    shape: Sequence[float],
    axes: Sequence[str],
    summary: DatasetSummary,
    planner: Planner,
    *,
    gpu_memory_gb: float,
) -> tuple[dict[str, Decided[Design]], Decided[Decided[Design] | None]]:
    """By configuration, and the decision about ``3d_lowres``; all in network order."""
    voxels = float(np.prod(shape, dtype=np.float64) * summary.num_cases)

    def design(first: int) -> Decided[Design]:
        return design_configuration(
            spacing[first:], shape[first:], summary, planner, dataset_voxels=voxels, gpu_memory_gb=gpu_memory_gb, axes=axes[first:]
        )

    fullres = None if shape[0] == 1 else design(0)
    lowres = planned_lowres(None if fullres is None else fullres.value, summary, planner, gpu_memory_gb=gpu_memory_gb, axes=axes)
    designs = {"2d": design(1), "3d_lowres": lowres.value, "3d_fullres": fullres}
    return {name: each for name, each in designs.items() if each is not None}, lowres


def _configuration(
    name: str,
    design: Decided[Design],
    target: Sequence[float],
    order: AxisOrder,
    summary: DatasetSummary,
    planner: Planner,
    *,
    has_lowres: bool,
) -> Decided[Configuration]:
    made, axes = design.value, order[3 - len(design.value.spacing) :]
    names, num_cases = [summary.axis_names[axis] for axis in axes], len(summary.cropped_shapes)
    resolution = resolution_reasons(name, made.spacing, made.median_shape, target=target, axes=names, num_cases=num_cases)
    dice, normalized = batch_dice(name, has_lowres=has_lowres), normalizations(summary, planner.normalization)
    resampled = resampling(planner.resampling)
    mirrored, trained = mirror_axes(axes, summary, planner), training(planner.training)
    configuration = Configuration(
        name=name,
        spacing=made.spacing,
        median_shape=made.median_shape,
        patch_size=made.topology.patch_size,
        batch_size=made.batch_size,
        batch_dice=dice.value,
        network=made.network,
        normalization=normalized.value,
        resampling=resampled.value,
        training=trained.value,
        mirror_axes=mirrored.value,
        data=data_name(made.spacing, normalized.value, order, summary, planner.resampling),
    )
    later = (reason for decided in (dice, normalized, resampled, mirrored, trained) for reason in decided.reasons)
    return Decided(configuration, (*resolution, *design.reasons, *later))


def _planned_crop(
    designs: Mapping[str, Decided[Design]], order: AxisOrder, summary: DatasetSummary, planner: Planner, *, gpu_memory_gb: float
) -> Decided[CropDesigns | None]:
    fullres = designs.get("3d_fullres")
    box_mm = () if summary.focus is None else permute(summary.focus.box_mm, order)
    axes = [summary.axis_names[axis] for axis in order]
    return planned_crop(None if fullres is None else fullres.value, box_mm, summary, planner, gpu_memory_gb=gpu_memory_gb, axes=axes)


def _crop_cascade(
    crop: CropDesigns, target: Sequence[float], order: AxisOrder, summary: DatasetSummary, planner: Planner
) -> dict[str, Decided[Configuration]]:
    """The coarse configuration that finds the box, and the fine one inside of it, which reads what 3d_fullres reads."""
    detector = _configuration(DETECTOR, crop.detector, target, order, summary, planner, has_lowres=False)
    inside = _configuration(CROPPED, crop.inside, target, order, summary, planner, has_lowres=False)
    cropped = replace(inside.value, previous_stage=DETECTOR, is_cropped=True)
    return {DETECTOR: detector, CROPPED: Decided(cropped, (box_reason(), *inside.reasons))}


def _cascade(fullres: Configuration, *, num_labels: int) -> Decided[Configuration]:
    """As 3d_fullres, with one channel more for each label of the first stage."""
    network = replace(fullres.network, in_channels=fullres.network.in_channels + num_labels)
    reason = Explanation(
        quantity="all numbers",
        value="as 3d_fullres, after 3d_lowres",
        rule="The cascade refines the low-resolution label map at full resolution, so its numbers are those of 3d_fullres; its network "
        "sees a channel more for each label of the first stage.",
        inputs="3d_lowres is planned.",
        changes_it="Whatever changes 3d_fullres; without 3d_lowres there is no cascade.",
    )
    return Decided(replace(fullres, name="3d_cascade_fullres", previous_stage="3d_lowres", network=network), (reason,))


RECOMMENDED = "recommended configuration"


def _recommended(designs: Mapping[str, Design], planner: Planner, planned: Sequence[str]) -> Decided[str]:
    """The configuration to train first, and why."""
    rule = planner.recommend
    name, why = _recommendation(designs.get("3d_fullres"), rule)
    cascade = next((each for each in (CROPPED, "3d_cascade_fullres") if each in planned), None)
    if rule.cascades and cascade is not None and name == "3d_fullres":
        name, why = cascade, f"{why} {cascade} is planned, and the planner wants cascades where they are (recommend.cascades)."
    if "3d_lowres" in designs and name == "3d_fullres":
        why += (
            f" Its patch covers {designs[name].patch_share:.0%} of a median case (below {planner.lowres.patch_share:.0%}), so "
            "3d_lowres, which sees more context at coarser resolution, is worth training as a second candidate."
        )
    reason = Explanation(
        quantity=RECOMMENDED,
        value=name,
        rule=(
            f"3d_fullres, except for single slices, and except where slices are more than {rule.thick_slice_ratio:g} times as thick as "
            f"the pixels are wide while a case has fewer than {rule.few_slices} of them."
        ),
        inputs=why,
        changes_it="Thinner or more slices; recommend.thick_slice_ratio or recommend.few_slices of the planner. After training, select "
        "compares what was trained.",
    )
    return Decided(name, (reason,))


def _recommendation(fullres: Design | None, rule: RecommendRule) -> tuple[str, str]:
    if fullres is None:
        return "2d", "The cases have a single slice, so there is no third axis to learn from."
    ratio, slices = fullres.spacing[0] / max(fullres.spacing[1:]), fullres.median_shape[0]
    if ratio > rule.thick_slice_ratio and slices < rule.few_slices:
        return "2d", (
            f"Slices are {ratio:.1f} times as thick as the pixels are wide (more than {rule.thick_slice_ratio:g}) and a median case has "
            f"{slices:g} of them (fewer than {rule.few_slices}): neighboring slices show too different anatomy to be convolved together."
        )
    return "3d_fullres", (
        f"The cases are volumes: slices are {ratio:.1f} times as thick as the pixels are wide, and a median case has {slices:g} of them. "
        f"2d is recommended only where slices are more than {rule.thick_slice_ratio:g} times as thick as pixels are wide and fewer than "
        f"{rule.few_slices}."
    )


def _plan(
    summary: DatasetSummary,
    planner: Planner,
    gpu_memory_gb: float,
    order: AxisOrder,
    configurations: dict[str, Configuration],
    recommended: Decided[str],
) -> Plan:
    for name, configuration in configurations.items():
        logger.info("Planned %s: patch %s, batch %d", name, configuration.patch_size, configuration.batch_size)
    return Plan(
        dataset=summary.dataset,
        planner=planner.name,
        orientation=summary.orientation,
        axis_order=order,
        channels=summary.channel_names,
        modality_reason=summary.modality_reason,
        labels=summary.labels,
        num_training=summary.num_cases,
        gpu_memory_gb=float(gpu_memory_gb),
        configurations=configurations,
        recommended=recommended.value,
        recommended_reason=recommended.reasons[0].inputs,
        fingerprint_digest=summary.digest,
        notes=(*summary.notes, *_notes(summary, planner, configurations)),
        left_right_doubt=summary.left_right_doubt,
        frame=summary.frame,
    )


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
    if CROPPED in configurations:
        yield (
            f"The foreground is a small part of the cases, so a crop cascade is proposed: {DETECTOR} finds its box, {CROPPED} is trained "
            f"and predicts inside. medseg3d run -c 3d_fullres {CROPPED} trains both ways, and select compares them."
        )
    for name, configuration in configurations.items():
        stages = len(configuration.network.features)
        if stages <= 2:
            yield (
                f"{name}: the cases are so small (median {' x '.join(f'{n:g}' for n in configuration.median_shape)} voxels) that "
                f"its network has only {stages} stage{'s' if stages > 1 else ''}."
            )
