"""Say why a plan is as it is: a plan with what it was made from goes in, a reason for every number comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from medseg3d.axes import CANONICAL
from medseg3d.plan import Configuration, Normalization, Plan, TrainingPlan
from medseg3d.planning.budget import GIB, RESERVED_GB
from medseg3d.planning.loss_rules import (
    ELONGATED,
    OFTEN_ABSENT,
    SMALL_FOREGROUND,
    TINY_FOREGROUND,
    UNEVEN_LABELS,
    LossFacts,
    loss_options,
    suggest_loss,
)
from medseg3d.planning.make_plan import Derivation, Design, derive
from medseg3d.planning.planner import Planner
from medseg3d.planning.summary import DatasetSummary
from medseg3d.wording import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One number of a plan: its value, the rule that gave it, what the rule was applied to, and what would change it.

    ``configuration`` is ``dataset`` where it holds for all configurations.
    """

    configuration: str
    quantity: str
    value: str
    rule: str
    inputs: str
    changes_it: str


Reason = Callable[[str, object, str, str, str], Explanation]
"""(quantity, value, rule, inputs, changes_it) of a configuration."""


def explain(plan: Plan, summary: DatasetSummary, planner: Planner) -> tuple[Explanation, ...]:
    """Reasons for every number, first those of the dataset, then configuration by configuration.

    ``summary`` and ``planner`` must be those that the plan was made from: the derivation is run again.
    """
    derivation = derive(summary, planner, gpu_memory_gb=plan.gpu_memory_gb)
    reasons = list(_dataset(plan, summary, planner, derivation))
    for name, configuration in plan.configurations.items():
        if configuration.previous_stage is not None:
            reasons.append(_cascade(configuration))
            continue
        reasons += _configuration(configuration, derivation.designs[name], plan, summary, planner, derivation)
    return tuple(reasons)


def _dataset(plan: Plan, summary: DatasetSummary, planner: Planner, derivation: Derivation) -> Iterator[Explanation]:
    rule, names = planner.spacing, _axis_names(plan)
    target = derivation.target
    coarse = max(target.median)
    yield Explanation(
        configuration="dataset",
        quantity="target spacing",
        value=f"{_times(target.spacing, 4)} mm along {' '.join(names)}",
        rule=(
            f"The {_percentile(rule.percentile)} of the spacings of all cases, axis by axis. Where the coarsest axis is more "
            f"than {rule.anisotropy_threshold:g} times as coarse as the next and has fewer than 1/{rule.anisotropy_threshold:g} "
            f"of its voxels, that axis takes the {_percentile(rule.coarse_percentile)} instead, so that no case loses slices."
        ),
        inputs=(
            (f"Taken from {target.basis}. " if target.basis else "")
            + f"{counted(len(summary.spacings), 'case')}, {_percentile(rule.percentile)} {_times(target.median, 4)} mm; the coarsest axis "
            f"has {coarse:.4g} mm; "
            f"thick slices: {_yes(target.has_anisotropic_spacing)}, few slices: {_yes(target.has_few_slices)}."
        ),
        changes_it="Cases with other spacings; percentile, coarse_percentile or anisotropy_threshold of the planner (spacing).",
    )
    yield Explanation(
        configuration="dataset",
        quantity="axis order",
        value=" ".join(names[axis] for axis in plan.axis_order),
        rule="The axis with the coarsest target spacing comes first, the others keep their order; 2D slices lie across the first."
        + (" In a dataset of single slices the slice axis comes first in any case." if rule.single_slice_first else ""),
        inputs=f"Target spacing {_times(target.spacing, 4)} mm along {' '.join(names)}.",
        changes_it="A target spacing that is coarsest along another axis.",
    )
    yield Explanation(
        configuration="dataset",
        quantity="left and right labels",
        value=", ".join(f"{plan.labels.names[a]} / {plan.labels.names[b]}" for a, b in plan.labels.pairs)
        or ("in doubt" if plan.left_right_doubt else "none"),
        rule=(
            "Labels whose names differ only in left and right form a pair that a left-right flip would exchange. Labels without names are "
            "in doubt where they lie mirrored and are alike, or where one lies on one side in nearly all cases."
        ),
        inputs=f"{len(plan.labels.names)} labels. {plan.left_right_doubt}".strip(),
        changes_it="Other names of the labels (dataset.json, --labels, labels.csv).",
    )
    yield _lowres(summary, planner, derivation)
    yield _loss(plan.configuration(None).training, summary.loss_facts)
    yield Explanation(
        configuration="dataset",
        quantity="recommended configuration",
        value=plan.recommended,
        rule=(
            "3d_fullres, except for single slices, and except where slices are more than "
            f"{planner.recommend.thick_slice_ratio:g} times as "
            f"thick as the pixels are wide while a case has fewer than {planner.recommend.few_slices} of them."
        ),
        inputs=plan.recommended_reason,
        changes_it="Thinner or more slices; recommend.thick_slice_ratio or recommend.few_slices of the planner. "
        "After training, select compares what was trained.",
    )


def _lowres(summary: DatasetSummary, planner: Planner, derivation: Derivation) -> Explanation:
    rule, share = planner.lowres, derivation.patch_share
    if share is None:
        inputs = "The cases are single slices."
    elif not derivation.lowres_steps:
        inputs = f"The full-resolution patch covers {share:.0%} of a median case."
    else:
        kept = "kept" if "3d_lowres" in derivation.designs else "dropped, as it would be too similar"
        inputs = (
            f"The full-resolution patch covers {share:.1%} of a median case. After {derivation.lowres_steps} steps the patch "
            f"covers enough, and a case has {derivation.lowres_volume_ratio:.2f} times fewer voxels: {kept}."
        )
    return Explanation(
        configuration="dataset",
        quantity="3d_lowres",
        value="planned" if "3d_lowres" in derivation.designs else "not planned",
        rule=(
            f"Planned where the full-resolution patch covers less than {rule.patch_share:.0%} of a median case: the spacing "
            f"grows by {rule.spacing_step - 1:.0%} per step, axes finer than 1/{rule.coarse_axis_ratio:g} of the coarsest first, "
            f"until the patch covers that much. Kept if a case then has at least {rule.min_volume_ratio:g} times fewer "
            "voxels."
        ),
        inputs=inputs,
        changes_it="More GPU memory (a larger patch), smaller cases, or lowres.patch_share of the planner.",
    )


def _loss(training: TrainingPlan, facts: LossFacts | None) -> Explanation:
    """The planner's loss stays; what the dataset's labels would suggest stands beside it."""
    options = loss_options(training)
    value = ", ".join([training.loss, *(f"{name} {number:.4g}" for name, number in options.items())])
    if facts is None:
        inputs = "The fingerprint does not describe the labels (nnU-Net's never does), so no loss is suggested."
    else:
        inputs = _loss_inputs(facts)
        suggested, why = suggest_loss(facts)
        if suggested != training.loss:
            value, inputs = f"{value}; suggested: {suggested}", f"{inputs} {why}"
    return Explanation(
        configuration="dataset",
        quantity="loss",
        value=value,
        rule=(
            "The planner's, the same for all datasets; the dataset only suggests one. "
            f"cldice: elongation of a label from {ELONGATED:g} on (a ball has 2.1). "
            f"dice_focal: at most {100 * TINY_FOREGROUND:g} % of the voxels labelled; or a label absent from "
            f"{100 * OFTEN_ABSENT:g} % of the cases or more, with at most {100 * SMALL_FOREGROUND:g} % labelled; or the largest label "
            f"{UNEVEN_LABELS:g} times as large as the smallest or more. dice_ce otherwise."
        ),
        inputs=inputs,
        changes_it="training.loss and training.loss_options of the planner; other labels change what is suggested.",
    )


def _loss_inputs(facts: LossFacts) -> str:
    elongation = "unknown" if facts.elongation is None else f"{facts.elongation:.1f}"
    return (
        f"{100 * facts.foreground_share:.3g} % of the voxels of a median case are labelled; the largest label is "
        f"{facts.label_volume_ratio:,.1f} times as large as the smallest; the rarest label is absent from "
        f"{100 * facts.absent_share:.0f} % of the cases; elongation of the longest label: {elongation}."
    )


def _cascade(configuration: Configuration) -> Explanation:
    return Explanation(
        configuration=configuration.name,
        quantity="all numbers",
        value=f"as 3d_fullres, after {configuration.previous_stage}",
        rule="The cascade refines the low-resolution label map at full resolution, so its numbers are those of 3d_fullres.",
        inputs="3d_lowres is planned.",
        changes_it="Whatever changes 3d_fullres; without 3d_lowres there is no cascade.",
    )


def _configuration(
    configuration: Configuration, design: Design, plan: Plan, summary: DatasetSummary, planner: Planner, derivation: Derivation
) -> Iterator[Explanation]:
    def reason(quantity: str, value: object, rule: str, inputs: str, changes_it: str) -> Explanation:
        return Explanation(
            configuration=configuration.name, quantity=quantity, value=str(value), rule=rule, inputs=inputs, changes_it=changes_it
        )

    name = configuration.name
    names = [_axis_names(plan)[axis] for axis in plan.axis_order][3 - configuration.dimensions :]
    where = f"axes {' '.join(names)}"
    yield reason(
        "spacing",
        f"{_times(configuration.spacing, 4)} mm ({where})",
        {
            "2d": "The target spacing within the slice; slices are kept as they are.",
            "3d_lowres": "The finest spacing of the search for 3d_lowres at which the patch covers enough of a case.",
        }.get(name, "The target spacing."),
        f"Target spacing {_times([derivation.target.spacing[axis] for axis in plan.axis_order], 4)} mm in network order.",
        "Whatever changes the target spacing" + (", the GPU memory or the lowres numbers of the planner." if name == "3d_lowres" else "."),
    )
    yield reason(
        "median shape",
        f"{_times(configuration.median_shape)} voxels ({where})",
        "The median over cases of the shape after cropping to non-zero voxels and resampling to the spacing"
        + (", rounded." if name == "3d_lowres" else "; a half where the number of cases is even."),
        f"{counted(len(summary.cropped_shapes), 'case')}.",
        "Other cases, or another spacing.",
    )
    yield from _patch(reason, configuration, design, plan, planner)
    yield from _topology(reason, configuration, design, plan, planner)
    yield _batch(reason, configuration, design, plan, summary, planner)
    yield reason(
        "batch dice",
        "over the whole batch" if configuration.batch_dice else "per sample",
        "2d: over the batch, as single slices often lack a label. 3d_fullres: over the batch only if 3d_lowres exists, as its "
        "patches then see small parts of a case. 3d_lowres: per sample.",
        f"3d_lowres is {'planned' if '3d_lowres' in plan.configurations else 'not planned'}.",
        "Whether 3d_lowres is planned.",
    )
    yield from _data(reason, configuration, plan, summary, planner, names)
    yield _training(reason, configuration.training)


def _topology(reason: Reason, configuration: Configuration, design: Design, plan: Plan, planner: Planner) -> Iterator[Explanation]:
    network = configuration.network
    rule = planner.patch
    yield reason(
        "strides",
        ", ".join(_times(stride) for stride in network.strides),
        (
            "Between stages an axis is halved while it has at least "
            f"{2 * rule.min_feature_map_edge} voxels and its spacing is less than 2 times the finest of such axes; a lone axis "
            f"only from {rule.lone_axis_factor * rule.min_feature_map_edge} voxels on. So coarse axes join once the others have "
            "caught up."
        ),
        f"Patch {_times(configuration.patch_size)}, spacing {_times(configuration.spacing, 4)} mm: {len(network.strides)} "
        f"stages, total stride {_times(design.topology.divisor)}.",
        "A larger patch, another ratio of spacings, patch.min_feature_map_edge or patch.lone_axis_factor of the planner.",
    )
    yield reason(
        "kernels",
        ", ".join(_times(kernel) for kernel in network.kernel_sizes),
        f"{planner.network.kernel_edge} voxels along an axis as soon as its spacing at that stage is less than 2 times the "
        f"finest, 1 before that; {planner.network.kernel_edge} along all axes in the last stage.",
        f"Spacing {_times(configuration.spacing, 4)} mm and the strides.",
        "Another ratio of spacings, or network.kernel_edge of the planner.",
    )
    most = planner.network.max_features_3d if configuration.dimensions == 3 else planner.network.max_features_2d
    yield reason(
        "features",
        " ".join(map(str, network.features)),
        f"{planner.network.base_features} in the first stage, doubled in each further one, at most {most}.",
        f"{len(network.features)} stages.",
        "The number of stages; network.base_features and network.max_features_2d or _3d of the planner.",
    )
    yield reason(
        "network",
        f"{network.family}, encoder {' '.join(map(str, network.encoder_blocks))}, decoder "
        f"{' '.join(map(str, network.decoder_blocks)) or 'none'}",
        f"The planner's family and its numbers of blocks per stage, the last one repeated; "
        f"{network.in_channels} input channel{'s' if network.in_channels > 1 else ''}, "
        f"{network.num_classes} classes with background; deep supervision {'on' if network.deep_supervision else 'off'}.",
        f"Channels {', '.join(plan.channels)}; {len(network.features)} stages.",
        "Another planner, network.encoder_blocks or network.decoder_blocks.",
    )


def _data(
    reason: Reason, configuration: Configuration, plan: Plan, summary: DatasetSummary, planner: Planner, axes: Sequence[str]
) -> Iterator[Explanation]:
    for channel, normalization in zip(plan.channels, configuration.normalization, strict=True):
        yield reason(
            f"normalization of {channel}",
            _normalization(normalization),
            "By the channel's name: CT, nonorm, zscore, rescale_to_0_1 or rgb_to_0_1 choose themselves, every other name a "
            "z-score per image. A z-score leaves out the zeros around the body where cropping kept less than "
            f"{planner.normalization.mask_below_relative_size:.0%} of "
            "the median image.",
            (
                f"Channel name {channel!r}; cropping kept {summary.median_relative_size:.0%} of the median image. {plan.modality_reason}"
            ).strip(),
            "Another name of the channel (--channels), or normalization.mask_below_relative_size of the planner.",
        )
    resampling = configuration.resampling
    yield reason(
        "resampling",
        f"splines of order {resampling.image_order} for images, {resampling.label_order} for labels, {resampling.logits_order} "
        "for predictions",
        f"Where one axis is more than {resampling.separate_threshold:g} times as coarse as the finest, it is resampled apart, "
        f"with orders {resampling.image_coarse_order}, {resampling.label_coarse_order} and {resampling.logits_coarse_order}: "
        "between thick slices a spline would invent tissue.",
        "The spacing of each case and the target spacing.",
        "resampling.* of the planner.",
    )
    yield reason(
        "mirror axes",
        " ".join(axes[axis] for axis in configuration.mirror_axes) or "none",
        "Images are mirrored along all axes in training and prediction, but never from left to right where labels come in left "
        "and right pairs, nor, with mirroring.left_right of the planner at where_safe, where they could.",
        f"{len(plan.labels.pairs)} pairs of left and right labels; {'there could be some' if plan.left_right_doubt else 'no doubt'}.",
        "Other names of the labels, or mirroring.left_right of the planner.",
    )


def _training(reason: Reason, training: TrainingPlan) -> Explanation:
    momentum = f", momentum {training.momentum:g}" if training.optimizer == "sgd" else ""
    return reason(
        "training",
        f"{training.epochs} epochs of {training.iterations_per_epoch} iterations, {training.optimizer} with learning rate "
        f"{training.learning_rate:g}{momentum}, weight decay {training.weight_decay:g}, loss "
        f"{training.loss}, "
        f"{training.foreground_oversampling:.0%} of the patches on foreground, gradients clipped at {training.gradient_clip:g}",
        f"The planner's numbers, the same for all datasets; the learning rate {_schedule(training)}, and each epoch ends with "
        f"{training.validation_iterations} validation batches.",
        "The planner alone: nothing of the dataset enters.",
        "training.* of the planner, or --epochs and --iterations of train.",
    )


def _patch(reason: Reason, configuration: Configuration, design: Design, plan: Plan, planner: Planner) -> Iterator[Explanation]:
    is_3d = configuration.dimensions == 3
    edge = planner.patch.initial_edge_3d if is_3d else planner.patch.initial_edge_2d
    names = [_axis_names(plan)[axis] for axis in plan.axis_order][3 - configuration.dimensions :]
    batch = _fitting_batch(configuration, design, planner)
    steps = Counter(names[axis] for axis in design.shrunk_axes)
    yield reason(
        "initial patch",
        _times(design.initial_patch),
        f"A box as long in mm along all axes, with as many voxels as {edge}^{configuration.dimensions}, cut to the median case.",
        f"Spacing {_times(configuration.spacing, 4)} mm, median case {_times(configuration.median_shape)} voxels.",
        "Another spacing or larger cases.",
    )
    yield reason(
        "shrink steps",
        f"{len(design.shrunk_axes)}" + (f" ({', '.join(f'{n} along {axis}' for axis, n in steps.items())})" if steps else ""),
        f"While a batch of {batch} does not fit the memory, the axis that is longest relative to the median case loses one total stride.",
        f"The initial patch, padded, takes {_amount(design, design.first_estimate)}; what fits a batch of {batch} is "
        f"{_amount(design, _limit(design, configuration, planner))}.",
        "More GPU memory, a narrower network, fewer labels.",
    )
    padding, more = ("each axis padded up to a multiple of its total stride", "")
    if configuration.network.options.get("padding") == "valid":
        padding = "each axis padded up to a multiple of its total stride, and then the border that convolutions without padding lose"
        more = " The logits belong to its middle."
    yield reason(
        "patch size",
        _times(configuration.patch_size),
        f"The initial patch after the shrink steps, {padding}.{more}",
        f"Initial patch {_times(design.initial_patch)}, {len(design.shrunk_axes)} shrink steps, total stride "
        f"{_times(design.topology.divisor)}.",
        "GPU memory (--gpu-memory), the spacing, larger cases.",
    )


def _batch(
    reason: Reason, configuration: Configuration, design: Design, plan: Plan, summary: DatasetSummary, planner: Planner
) -> Explanation:
    memory, batch, is_3d = planner.memory, planner.batch, configuration.dimensions == 3
    reference_batch = memory.reference_batch_3d if is_3d else memory.reference_batch_2d
    decided = (
        "the minimum"
        if configuration.batch_size > min(design.batch_by_memory, design.batch_cap)
        else "the memory"
        if design.batch_by_memory <= design.batch_cap
        else "the share of the dataset"
    )
    if design.is_traced:
        rule = (
            f"As many patches as fit {plan.gpu_memory_gb:g} GB, {RESERVED_GB:g} GB of which the GPU keeps for itself, by the bytes "
            "that a training step of the real network keeps"
        )
        inputs = f"A step with {batch.min_size} patches takes {_amount(design, design.estimate)}"
    else:
        rule = (
            f"As many patches as the memory holds, where {reference_batch} patches of {design.reference:,.0f} feature-map elements "
            f"fit {plan.gpu_memory_gb:g} GB"
        )
        inputs = f"One patch has {design.estimate:,} elements (with {summary.num_label_entries} labels)"
    return reason(
        "batch size",
        configuration.batch_size,
        f"{rule}; at most {batch.max_dataset_share:.0%} of all training voxels in one batch; at least {batch.min_size}.",
        f"{inputs}, so the memory allows {design.batch_by_memory or 'less than one'}; the dataset allows "
        f"{design.batch_cap or 'less than one'}. Decided by {decided}.",
        {
            "the memory": "More GPU memory (--gpu-memory) or a smaller patch.",
            "the share of the dataset": "More cases, or batch.max_dataset_share of the planner.",
            "the minimum": "batch.min_size of the planner; more GPU memory enlarges the patch first.",
        }[decided],
    )


def _schedule(training: TrainingPlan) -> str:
    """How the learning rate runs, in words."""
    runs = {
        "poly": f"falls as (1 - progress) ** {training.poly_exponent:g}",
        "cosine": "falls along half a cosine to 0",
        "cosine_restarts": f"falls along half a cosine to 0, {training.cycles} times",
        "cyclical": f"rises and falls in {training.cycles} triangles",
    }[training.schedule]
    return f"rises over the first {training.warmup:.0%} of the run, then {runs}" if training.warmup else runs


def _amount(design: Design, number: float) -> str:
    return f"{number / GIB:.2f} GB" if design.is_traced else f"{number:,.0f} feature-map elements"


def _fitting_batch(configuration: Configuration, design: Design, planner: Planner) -> int:
    if design.is_traced or planner.memory.fit == "min_batch":
        return planner.batch.min_size
    return planner.memory.reference_batch_3d if configuration.dimensions == 3 else planner.memory.reference_batch_2d


def _limit(design: Design, configuration: Configuration, planner: Planner) -> float:
    if design.is_traced:
        return design.reference
    reference_batch = planner.memory.reference_batch_3d if configuration.dimensions == 3 else planner.memory.reference_batch_2d
    return design.reference * reference_batch / _fitting_batch(configuration, design, planner)


def _normalization(normalization: Normalization) -> str:
    if normalization.scheme == "ct":
        return (
            f"clipped to {normalization.lower:g} to {normalization.upper:g}, minus {normalization.mean:g}, divided by "
            f"{normalization.std:g} "
            "(percentiles 0.5 and 99.5, mean and standard deviation of the labelled regions of all cases)"
        )
    return {
        "zscore": "z-score per image" + (", inside the non-zero region only" if normalization.use_mask else ""),
        "rescale_0_1": "each image rescaled to 0 to 1",
        "rgb_0_1": "divided by 255",
        "none": "none",
    }[normalization.scheme]


def _axis_names(plan: Plan) -> tuple[str, str, str]:
    """Names of the axes of the cases: S, A, R, or those of the stored array."""
    return CANONICAL if plan.orientation == "canonical" else ("z", "y", "x")


def _times(numbers: Sequence[float], digits: int = 6) -> str:
    return " x ".join(f"{number:.{digits}g}" for number in numbers)


def _percentile(percentile: float) -> str:
    return "median" if percentile == 50 else f"{percentile:g}th percentile"


def _yes(statement: bool) -> str:
    return "yes" if statement else "no"
