"""nnU-Net's ``plans.json`` with the ``dataset.json`` beside it → our plan, with one configuration.

nnU-Net writes spacings, shapes and patches in its transposed order of axes, which is our network order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medseg3d.axes import AxisOrder
from medseg3d.errors import InputError, UnsupportedError
from medseg3d.files import file_digest
from medseg3d.models.nnunet.architecture import network_of
from medseg3d.models.nnunet.labels import Description, labels_of, read_description
from medseg3d.models.nnunet.resampling import resampling_of
from medseg3d.plan import Configuration, Normalization, Plan, TrainingPlan
from medseg3d.records import from_plain, read_json, to_plain

ORIENTATIONS: dict[str, Literal["canonical", "as_stored"]] = {
    "SimpleITKIO": "as_stored",
    "NibabelIO": "as_stored",
    "NibabelIOWithReorient": "canonical",
    "SimpleITKIOWithReorient": "canonical",
}
"""By nnU-Net's reader: how its arrays lie. All of them come with the axes (z, y, x)."""
SCHEMES: dict[str, Literal["ct", "zscore", "rescale_0_1", "rgb_0_1", "none"]] = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "RescaleTo01Normalization": "rescale_0_1",
    "RGBTo01Normalization": "rgb_0_1",
    "NoNormalization": "none",
}
"""By nnU-Net's class; the formulas are the same in float32, sums aside, which we add up in float64."""
UNKNOWN_MEMORY = 0.0
"""The plans do not say for how many GB they were made."""


def read_plan(folder: Path, configuration: str, *, mirror_axes: tuple[int, ...]) -> Plan:
    """The plan of a result folder for one of its configurations.

    Raises :class:`InputError` for damaged files, :class:`UnsupportedError` for what we would not predict exactly as nnU-Net does.
    """
    path = folder / "plans.json"
    plans = from_plain(read_json(path), _Plans, str(path))
    description = read_description(folder / "dataset.json")
    labels = labels_of(description, folder / "dataset.json")
    if sorted(plans.transpose_forward) != [0, 1, 2]:
        raise InputError(f"{path}: transpose_forward is {plans.transpose_forward}; expected an order of the axes 0, 1, 2.")
    plan = Plan(
        dataset=plans.dataset_name,
        planner=plans.plans_name,
        orientation=_known(ORIENTATIONS, plans.image_reader_writer, "image_reader_writer", path),
        axis_order=plans.transpose_forward,
        channels=description.channels,
        modality_reason="The channels are named in nnU-Net's dataset.json.",
        labels=labels,
        num_training=description.numTraining,
        gpu_memory_gb=UNKNOWN_MEMORY,
        configurations={configuration: _configuration(configuration, plans, description, labels.num_outputs, path, mirror_axes)},
        recommended=configuration,
        recommended_reason="The configuration that nnU-Net trained.",
        fingerprint_digest=file_digest(path),
        notes=("Planned and trained by nnU-Net.",),
    )
    return from_plain(to_plain(plan), Plan, str(path))  # its numbers have the ranges of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class _Intensities:
    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plans:
    """The file, under its own names; ``…_by_modality`` is an older name."""

    dataset_name: str
    plans_name: str
    image_reader_writer: str
    transpose_forward: AxisOrder
    configurations: dict[str, dict[str, Any]]
    label_manager: str = "LabelManager"
    foreground_intensity_properties_per_channel: dict[int, _Intensities] | None = None
    foreground_intensity_properties_by_modality: dict[int, _Intensities] | None = None

    @property
    def intensities(self) -> Mapping[int, _Intensities]:
        return self.foreground_intensity_properties_per_channel or self.foreground_intensity_properties_by_modality or {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A configuration with what it inherits; the network and the resampling are read apart."""

    patch_size: tuple[int, ...]
    spacing: tuple[float, ...]
    median_image_size_in_voxels: tuple[float, ...]
    batch_size: int
    batch_dice: bool
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    preprocessor_name: str = "DefaultPreprocessor"
    data_identifier: str = ""
    previous_stage: str | None = None


def _configuration(
    name: str, plans: _Plans, description: Description, num_outputs: int, path: Path, mirror_axes: tuple[int, ...]
) -> Configuration:
    source = f"{path}: configurations.{name}"
    merged = _inherited(name, plans.configurations, path)
    entry = from_plain(merged, _Entry, source)
    for key, found, expected in (
        ("preprocessor_name", entry.preprocessor_name, "DefaultPreprocessor"),
        ("label_manager", plans.label_manager, "LabelManager"),
    ):
        if found != expected:
            raise UnsupportedError(f"{path}: {key} is {found}; only models of nnU-Net's own {expected} can be read. Predict with nnU-Net.")
    dimensions: Literal[2, 3] = 2 if len(entry.patch_size) == 2 else 3
    if not len(entry.patch_size) == len(entry.spacing) == dimensions:
        raise InputError(f"{source}: patch_size {entry.patch_size} and spacing {entry.spacing}; expected two or three numbers each.")
    if any(axis >= dimensions for axis in mirror_axes):
        raise InputError(f"{path.parent}: the checkpoint mirrors the axes {mirror_axes}, but {name} has {dimensions} of them.")
    num_previous = 0 if entry.previous_stage is None else _num_previous_channels(description, path)
    return Configuration(
        name=name,
        spacing=entry.spacing,
        median_shape=entry.median_image_size_in_voxels,
        patch_size=entry.patch_size,
        batch_size=entry.batch_size,
        batch_dice=entry.batch_dice,
        network=network_of(
            merged, dimensions=dimensions, in_channels=len(description.channels) + num_previous, num_classes=num_outputs, source=source
        ),
        normalization=_normalization(entry, plans.intensities, len(description.channels), source),
        resampling=resampling_of(merged, source=source),
        training=TrainingPlan(),
        mirror_axes=mirror_axes,
        previous_stage=entry.previous_stage,
        data=entry.data_identifier,
    )


def _inherited(name: str, configurations: Mapping[str, Mapping[str, Any]], path: Path) -> dict[str, Any]:
    """A configuration over all that it inherits from."""
    merged: dict[str, Any] = {}
    visited: list[str] = []
    following: Any = name
    while following is not None:
        if following in visited:
            raise InputError(f"{path}: the configurations {' → '.join([*visited, following])} inherit from each other in a circle.")
        if following not in configurations:
            raise InputError(f"{path}: has no configuration {following!r}; it has {', '.join(configurations)}.")
        visited.append(following)
        entry = configurations[following]
        merged = {**entry, **merged}
        following = entry.get("inherits_from")
    return merged


def _num_previous_channels(description: Description, path: Path) -> int:
    """Raises :class:`UnsupportedError` where our indices, in the order of regions, are not nnU-Net's, in the order of values."""
    values = description.foreground_values
    if description.regions_class_order is not None and description.regions_class_order != values:
        raise UnsupportedError(
            f"{path}: a cascade with the region class order {description.regions_class_order}, not that of the values {values}, "
            "is not supported. Predict with nnU-Net."
        )
    return len(values)


def _normalization(entry: _Entry, intensities: Mapping[int, _Intensities], num_channels: int, source: str) -> tuple[Normalization, ...]:
    if not len(entry.normalization_schemes) == len(entry.use_mask_for_norm) == num_channels:
        raise InputError(
            f"{source}: {len(entry.normalization_schemes)} normalization_schemes and {len(entry.use_mask_for_norm)} use_mask_for_norm; "
            f"dataset.json has {num_channels} channels."
        )
    rules = []
    for channel, (name, use_mask) in enumerate(zip(entry.normalization_schemes, entry.use_mask_for_norm, strict=True)):
        scheme = _known(SCHEMES, name, "normalization_schemes", source)
        if scheme != "ct":
            rules.append(Normalization(scheme=scheme, use_mask=use_mask and scheme == "zscore"))
            continue
        if channel not in intensities:
            raise InputError(f"{source}: channel {channel} is CT, but foreground_intensity_properties_per_channel lacks it.")
        values = intensities[channel]
        rules.append(
            Normalization(scheme="ct", mean=values.mean, std=values.std, lower=values.percentile_00_5, upper=values.percentile_99_5)
        )
    return tuple(rules)


def _known(choices: Mapping[str, Any], name: str, key: str, source: object) -> Any:
    if name not in choices:
        raise UnsupportedError(f"{source}: {key} is {name}; known: {', '.join(choices)}. Predict with nnU-Net.")
    return choices[name]
