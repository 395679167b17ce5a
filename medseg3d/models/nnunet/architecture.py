"""The network in nnU-Net's plans, in its present and its older form → our network plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval, Len

from medseg3d.errors import InputError, UnsupportedError
from medseg3d.networks.normalization import NORM_EPS
from medseg3d.networks.style import NEGATIVE_SLOPE
from medseg3d.plan import NetworkPlan
from medseg3d.ranges import MAX_STAGES
from medseg3d.records import from_plain

_PACKAGE = "dynamic_network_architectures.architectures"
FAMILIES = {
    f"{_PACKAGE}.unet.PlainConvUNet": "plain_unet",
    f"{_PACKAGE}.unet.ResidualEncoderUNet": "residual_unet",
    f"{_PACKAGE}.residual_unet.ResidualEncoderUNet": "residual_unet",
    "PlainConvUNet": "plain_unet",
    "ResidualEncoderUNet": "residual_unet",
}
"""By the class that the plans name, with its path or, in older plans, without."""
BLOCKS = {"plain_unet": "n_conv_per_stage", "residual_unet": "n_blocks_per_stage"}
"""What each family calls the number of its encoder blocks."""

Dimensions = Literal[2, 3]
Numbers = int | tuple[int, ...]
PerStageAndAxis = int | tuple[Numbers, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """The arguments that give the network its shape; a single number stands for all stages, or all axes."""

    n_stages: Annotated[int, Interval(ge=1, le=MAX_STAGES)]
    features_per_stage: Numbers
    kernel_sizes: PerStageAndAxis
    strides: PerStageAndAxis
    encoder_blocks: Numbers
    n_conv_per_stage_decoder: Numbers


def network_of(configuration: Mapping[str, Any], *, dimensions: Dimensions, in_channels: int, num_classes: int, source: str) -> NetworkPlan:
    """The plan of a configuration's network; ``source`` names it in errors.

    Raises :class:`UnsupportedError` listing every option that our families do not have, :class:`InputError` for broken plans.
    """
    class_name, arguments = _class_and_arguments(configuration, dimensions, source)
    if class_name not in FAMILIES:
        raise UnsupportedError(f"{source}: the network is {class_name}; only PlainConvUNet and ResidualEncoderUNet can be read.")
    family = FAMILIES[class_name]
    shape = from_plain({**arguments, "encoder_blocks": arguments.get(BLOCKS[family])}, _Shape, f"{source}.architecture")
    num_stages = shape.n_stages
    features = _per_stage(shape.features_per_stage, num_stages, "features_per_stage", source)
    kernel_sizes = _per_stage_and_axis(shape.kernel_sizes, num_stages, dimensions, "kernel_sizes", source)
    strides = _per_stage_and_axis(shape.strides, num_stages, dimensions, "strides", source)
    findings = _findings(arguments, family, dimensions, features)
    if num_stages < 2:
        findings.append(f"n_stages is {num_stages}, with which nnU-Net gives no logits")
    elif set(strides[0]) != {1}:
        findings.append(f"the first of the strides is {strides[0]}, with which nnU-Net's logits are smaller than the patch")
    if findings:
        raise UnsupportedError(
            f"{source}: {'; '.join(findings)}. Only the networks that nnU-Net's own planners make can be read; predict with nnU-Net."
        )
    return NetworkPlan(
        family=family,
        dimensions=dimensions,
        in_channels=in_channels,
        num_classes=num_classes,
        features=features,
        kernel_sizes=kernel_sizes,
        strides=strides,
        encoder_blocks=_per_stage(shape.encoder_blocks, num_stages, BLOCKS[family], source),
        decoder_blocks=_per_stage(shape.n_conv_per_stage_decoder, num_stages - 1, "n_conv_per_stage_decoder", source),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _OlderPlans:
    """How nnU-Net wrote networks before 2.4; everything else was fixed."""

    UNet_class_name: str
    UNet_base_num_features: int
    unet_max_num_features: int
    n_conv_per_stage_encoder: Annotated[tuple[int, ...], Len(1, MAX_STAGES)]
    n_conv_per_stage_decoder: tuple[int, ...]
    pool_op_kernel_sizes: PerStageAndAxis
    conv_kernel_sizes: PerStageAndAxis


def _class_and_arguments(configuration: Mapping[str, Any], dimensions: Dimensions, source: str) -> tuple[str, Mapping[str, Any]]:
    architecture = configuration.get("architecture")
    if isinstance(architecture, dict):
        name, arguments = architecture.get("network_class_name"), architecture.get("arch_kwargs")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise InputError(f"{source}.architecture: network_class_name or arch_kwargs is missing.")
        return name, arguments
    older = from_plain(configuration, _OlderPlans, source)
    num_stages = len(older.n_conv_per_stage_encoder)
    return older.UNet_class_name, {
        "n_stages": num_stages,
        "features_per_stage": [min(older.UNet_base_num_features * 2**stage, older.unet_max_num_features) for stage in range(num_stages)],
        "kernel_sizes": older.conv_kernel_sizes,
        "strides": older.pool_op_kernel_sizes,
        BLOCKS.get(FAMILIES.get(older.UNet_class_name, ""), "blocks"): older.n_conv_per_stage_encoder,
        "n_conv_per_stage_decoder": older.n_conv_per_stage_decoder,
        "conv_op": f"torch.nn.Conv{dimensions}d",
        "conv_bias": True,
        "norm_op": f"torch.nn.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": NORM_EPS, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
    }


_SHAPE_ARGUMENTS = ("n_stages", "features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder")
_HARMLESS_ARGUMENTS = ("deep_supervision", "dropout_op_kwargs")
"""Chosen anew for every use of a network; without effect, because there is no dropout."""
_LEFT_OUT = {"conv_bias": False, "nonlin_first": False}
"""What nnU-Net's constructors assume where an argument is missing; None for all others."""
_NORM_OPTIONS = {"eps": NORM_EPS, "affine": True, "track_running_stats": False}
_ACTIVATION_OPTIONS = {"negative_slope": NEGATIVE_SLOPE, "inplace": True}


def _findings(arguments: Mapping[str, Any], family: str, dimensions: Dimensions, features: Sequence[int]) -> list[str]:
    """One sentence for each argument that is not what our families build."""
    conv, norm = f"Conv{dimensions}d", f"InstanceNorm{dimensions}d"
    allowed: dict[str, tuple[object, ...]] = {
        "conv_op": (f"torch.nn.modules.conv.{conv}", f"torch.nn.{conv}"),
        "conv_bias": (True,),
        "norm_op": (f"torch.nn.modules.instancenorm.{norm}", f"torch.nn.{norm}"),
        "dropout_op": (None,),
        "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"),
        "nonlin_first": (False,),
        "block": (None,),
        "bottleneck_channels": (None,),
        "stem_channels": (None, features[0]),
    }
    found = []
    for key, values in allowed.items():
        value = arguments.get(key, _LEFT_OUT.get(key))
        if value not in values:
            found.append(f"{key} is {value!r}, not {values[0]!r}")
    norm_options = {**_NORM_OPTIONS, "affine": False, **(arguments.get("norm_op_kwargs") or {})}
    if norm_options != _NORM_OPTIONS:
        found.append(f"norm_op_kwargs are {norm_options}, not {_NORM_OPTIONS}")
    activation_options = {**_ACTIVATION_OPTIONS, **(arguments.get("nonlin_kwargs") or {}), "inplace": True}
    if activation_options != _ACTIVATION_OPTIONS:
        found.append(f"nonlin_kwargs are {activation_options}, not {_ACTIVATION_OPTIONS}")
    known = {*allowed, *_SHAPE_ARGUMENTS, *_HARMLESS_ARGUMENTS, BLOCKS[family], "norm_op_kwargs", "nonlin_kwargs"}
    return found + [f"{key} is {value!r}, which is not known" for key, value in arguments.items() if key not in known]


def _per_stage(value: Numbers, num_stages: int, key: str, source: str) -> tuple[int, ...]:
    values = (value,) * num_stages if isinstance(value, int) else value
    if len(values) != num_stages or any(v < 1 for v in values):
        raise InputError(f"{source}.architecture: {key} is {value}; expected {num_stages} numbers above 0.")
    return values


def _per_stage_and_axis(value: PerStageAndAxis, num_stages: int, dimensions: int, key: str, source: str) -> tuple[tuple[int, ...], ...]:
    stages = (value,) * num_stages if isinstance(value, int) else value
    if len(stages) != num_stages:
        raise InputError(f"{source}.architecture: {key} is {value}; expected {num_stages} entries.")
    return tuple(_per_stage(stage, dimensions, key, source) for stage in stages)
