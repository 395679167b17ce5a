"""Plan a dataset as a model was planned, so that its weights fit: all but labels, channels and what follows from them is the model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from medseg3d.axes import AxisOrder, permute, triple
from medseg3d.errors import PlanError
from medseg3d.fingerprint.make_fingerprint import in_frame
from medseg3d.fingerprint.records import Fingerprint
from medseg3d.plan import Configuration, Normalization, Plan
from medseg3d.planning.planner import Planner
from medseg3d.planning.preprocessing_rules import data_name, mirror_axes, normalizations
from medseg3d.planning.reasons import Decided, Explanation, times
from medseg3d.planning.spacing import median_shape
from medseg3d.planning.summary import DatasetSummary


def inherited_plan(own: Decided[Plan], summary: DatasetSummary, planner: Planner, model: Plan, source: str) -> Decided[Plan]:
    """The plan of a dataset with the configurations of a model; ``own`` is what the planner made of it, ``source`` names the model.

    Cascades are left out: their stages belong to a dataset. Raises :class:`PlanError` where nothing of the model can be used: volumes for a
    dataset of single slices.
    """
    is_flat = all(min(shape) == 1 for shape in summary.cropped_shapes)
    usable = {
        name: configuration
        for name, configuration in model.configurations.items()
        if configuration.previous_stage is None and not (is_flat and configuration.dimensions == 3)
    }
    if not usable:
        why = (
            "the cases are single slices, and it was planned for volumes" if is_flat else "all of its configurations are stages of cascades"
        )
        raise PlanError(f"--inherit-plan {source}: {summary.dataset} cannot be planned as this model was: {why}. Leave --inherit-plan out.")
    made = {name: _configuration(each, summary, planner, model, source) for name, each in usable.items()}
    recommended = model.recommended if model.recommended in made else next(iter(made))
    plan = replace(
        own.value,
        axis_order=model.axis_order,
        configurations={name: each.value for name, each in made.items()},
        recommended=recommended,
        recommended_reason=f"{source} recommends it.",
        gpu_memory_gb=model.gpu_memory_gb or own.value.gpu_memory_gb,
        notes=(*summary.notes, f"Planned as {source} was ({model.dataset}), so that its weights fit: train with --init."),
        inherits=source,
    )
    kept = [reason for reason in own.reasons if reason.configuration == "dataset" and reason.quantity in OF_DATASET]
    return Decided(plan, (*kept, *(replace(reason, configuration=name) for name, each in made.items() for reason in each.reasons)))


def with_axes_of(model: Plan, fingerprint: Fingerprint) -> tuple[Plan, Fingerprint]:
    """The model's plan and the fingerprint of the dataset with one assignment of axes: its thick slices lie where the model's do.

    A model whose axes are those of the files as they are stored (nnU-Net's) is taken to have seen files that are stored as most of the
    dataset are.
    """
    if model.orientation == "as_stored":
        return replace(model, orientation="canonical", axis_order=_of_stored_axes(model.axis_order, fingerprint)), fingerprint
    theirs, ours = model.frame, fingerprint.frame
    if theirs.directions == ours.directions and (None in (theirs.slice_axis, ours.slice_axis) or theirs.slice_axis == ours.slice_axis):
        return model, fingerprint
    return model, replace(fingerprint, frame=theirs, cases=tuple(in_frame(case, theirs) for case in fingerprint.cases))


def _of_stored_axes(order: AxisOrder, fingerprint: Fingerprint) -> AxisOrder:
    """An order of the axes (z, y, x) of files as one of (S, A, R)."""
    found = Counter(tuple(2 - ras for ras, _ in reversed(case.axes)) for case in fingerprint.cases if case.axes is not None)
    stored = found.most_common(1)[0][0] if found else (0, 1, 2)
    first, second, third = (stored[axis] for axis in order)
    return first, second, third


OF_DATASET = ("left and right labels", "loss", "sampling")
"""What is said of the dataset whatever its network is."""


def _configuration(each: Configuration, summary: DatasetSummary, planner: Planner, model: Plan, source: str) -> Decided[Configuration]:
    axes = model.axis_order[3 - each.dimensions :]
    normalized, new = _normalization(each, summary, planner, model)
    network = replace(each.network, in_channels=len(summary.channel_names), num_classes=summary.labels.num_outputs)
    made = replace(
        each,
        median_shape=_median_shape(each, summary, model.axis_order),
        network=network,
        normalization=normalized,
        mirror_axes=mirror_axes(axes, summary, planner).value,
        data=data_name(each.spacing, normalized, model.axis_order, summary, each.resampling),
    )
    return Decided(made, tuple(_reasons(made, new, summary, source)))


def _median_shape(each: Configuration, summary: DatasetSummary, order: AxisOrder) -> tuple[float, ...]:
    """Of our cases at the model's spacing; a slice's own spacing stays as it is."""
    own = [float(sorted(spacing[axis] for spacing in summary.spacings)[len(summary.spacings) // 2]) for axis in range(3)]
    for axis, mm in zip(order[3 - each.dimensions :], each.spacing, strict=True):
        own[axis] = mm
    return tuple(permute(median_shape(summary.spacings, summary.cropped_shapes, triple(own)), order)[3 - each.dimensions :])


def _normalization(
    each: Configuration, summary: DatasetSummary, planner: Planner, model: Plan
) -> tuple[tuple[Normalization, ...], list[str]]:
    """The model's by the name of the channel, as its weights expect it, and the planner's for channels that the model does not have."""
    theirs = {name.strip().lower(): norm for name, norm in zip(model.channels, each.normalization, strict=True)}
    names = [name.strip().lower() for name in summary.channel_names]
    new = [name for name, plain in zip(summary.channel_names, names, strict=True) if plain not in theirs]
    ours: Sequence[Normalization] = normalizations(summary, planner.normalization).value
    return tuple(theirs.get(name, norm) for name, norm in zip(names, ours, strict=True)), new


def _reasons(made: Configuration, new: Sequence[str], summary: DatasetSummary, source: str) -> list[Explanation]:
    rule = f"As {source} was planned, so that its weights fit and see what they were trained on."
    change = "Another model to inherit from; without --inherit-plan the dataset is planned by its own fingerprint."
    channels, training = ", ".join(summary.channel_names), made.training
    found = [
        ("spacing", f"{times(made.spacing, 4)} mm", f"A median case has {times(made.median_shape)} voxels there."),
        ("patch size", times(made.patch_size), f"A median case has {times(made.median_shape)} voxels."),
        ("batch size", str(made.batch_size), "The memory of a step is that of the model's, but for the labels."),
        (
            "network",
            f"{made.network.family}, features {' '.join(map(str, made.network.features))}",
            f"{made.network.in_channels} channels ({channels}) and {made.network.num_classes} outputs are those of this dataset.",
        ),
        (
            "normalization",
            ", ".join(each.scheme for each in made.normalization),
            f"By the name of the channel; the planner's for {', '.join(new)}." if new else "By the name of the channel.",
        ),
        (
            "training",
            f"{training.epochs} epochs, {training.optimizer} with learning rate {training.learning_rate:g}",
            "The model alone.",
        ),
    ]
    return [Explanation(quantity=name, value=value, rule=rule, inputs=inputs, changes_it=change) for name, value, inputs in found]
