"""What surrounds the convolutions of a network: normalization, activation, dropout; and how a convolution is built.

Options of a plan go in, modules come out. Every family takes these options, with defaults of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, cast

from torch import nn

from medseg3d.errors import PlanError
from medseg3d.networks.normalization import InstanceNorm
from medseg3d.plan import Option

NEGATIVE_SLOPE = 0.01
"""Of the leaky ReLU and of the He initialization that belongs to it."""
GROUPS = 8
"""Channels per statistics of a group norm are ``channels / 8`` where 8 divides them, otherwise the largest divisor below."""

NormName = Literal["instance", "batch", "group", "none"]
ActivationName = Literal["leaky_relu", "relu", "prelu", "elu", "gelu", "silu"]
DropoutOf = Literal["channels", "voxels"]
UpsamplingName = Literal["transposed", "nearest", "linear", "cubic", "pixel_shuffle", "dupsampling", "meta_upscale", "carafe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """The options that all families share.

    ``separable``: a convolution is a depthwise and a pointwise one, with norm and activation after each (MobileNet, Howard et
    al. 2017). ``dropout``: share of what a convolution gives that is zeroed, and ``dropout_of``: whole channels, or single voxels of
    channels. ``squeeze_excitation``: reduction of the
    channel gate at the end of every block, 0 for none (Hu et al. 2018). ``upsampling``: the way from a decoder stage to the next finer
    one, see :mod:`~medseg3d.networks.upsampling`; families that interpolate have their own. ``attention_gates``: how many stand on each
    skip of a U-Net but the finest, 0, 1 or 2 (Oktay et al. 2018).
    """

    norm: NormName = "instance"
    activation: ActivationName = "leaky_relu"
    dropout: float = 0.0
    dropout_of: DropoutOf = "channels"
    separable: bool = False
    squeeze_excitation: int = 0
    upsampling: UpsamplingName = "transposed"
    attention_gates: int = 0


STYLE_OPTIONS: dict[str, Option] = {field.name: cast(Option, field.default) for field in fields(Style)}
"""Names and defaults; a family lays its own defaults over them."""
CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("instance", "batch", "group", "none"),
    "activation": ("leaky_relu", "relu", "prelu", "elu", "gelu", "silu"),
    "dropout_of": ("channels", "voxels"),
    "upsampling": ("transposed", "nearest", "linear", "cubic", "pixel_shuffle", "dupsampling", "meta_upscale", "carafe"),
}


def style_of(options: Mapping[str, Option]) -> Style:
    """The style among a family's options, which may hold others; raises :class:`PlanError` for values that cannot be built."""
    chosen = {**STYLE_OPTIONS, **{name: value for name, value in options.items() if name in STYLE_OPTIONS}}
    wrong = [
        f"{name} is {chosen[name]!r}, expected one of {', '.join(values)}" for name, values in CHOICES.items() if chosen[name] not in values
    ]
    dropout, reduction = chosen["dropout"], chosen["squeeze_excitation"]
    if not isinstance(dropout, int | float) or isinstance(dropout, bool) or not 0 <= dropout < 1:
        wrong.append(f"dropout is {dropout!r}, expected a number from 0 to below 1")
    if not isinstance(chosen["separable"], bool):
        wrong.append(f"separable is {chosen['separable']!r}, expected true or false")
    if not isinstance(reduction, int) or isinstance(reduction, bool) or reduction < 0:
        wrong.append(f"squeeze_excitation is {reduction!r}, expected a whole number, 0 for none")
    if isinstance(chosen["attention_gates"], bool) or chosen["attention_gates"] not in (0, 1, 2):
        wrong.append(f"attention_gates is {chosen['attention_gates']!r}, expected 0, 1 or 2")
    if wrong:
        raise PlanError(f"network.options: {'; '.join(wrong)}. Correct the planner file, or plan again.")
    return Style(**chosen)  # type: ignore[arg-type]


def whole(options: Mapping[str, Option], name: str) -> int:
    """An option that is a whole number of at least 1; raises :class:`PlanError` for anything else."""
    value = options[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(f"network.options: {name} is {value!r}, expected a whole number of at least 1. Correct the planner file.")
    return value


def share(options: Mapping[str, Option], name: str) -> float:
    """An option that is a number from 0 to below 1; raises :class:`PlanError` for anything else."""
    value = options[name]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise PlanError(f"network.options: {name} is {value!r}, expected a number from 0 to below 1. Correct the planner file.")
    return float(value)


def norm_layer(style: Style, channels: int, dimensions: int) -> nn.Module:
    """The normalization of ``channels`` feature maps."""
    if style.norm == "instance":
        return InstanceNorm(channels)
    if style.norm == "batch":
        return nn.BatchNorm2d(channels) if dimensions == 2 else nn.BatchNorm3d(channels)
    if style.norm == "group":
        return nn.GroupNorm(max(n for n in range(1, GROUPS + 1) if channels % n == 0), channels)
    return nn.Identity()


def activation_layer(style: Style, channels: int) -> nn.Module:
    """The activation; in place where the backward pass allows it. A PReLU learns one slope per channel."""
    match style.activation:
        case "leaky_relu":
            return nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True)
        case "relu":
            return nn.ReLU(inplace=True)
        case "prelu":
            return nn.PReLU(channels)
        case "elu":
            return nn.ELU()
        case "gelu":
            return nn.GELU()
        case "silu":
            return nn.SiLU()


def dropout_layer(style: Style, dimensions: int) -> nn.Module | None:
    """Dropout of whole feature maps or of their voxels, None where the style has none."""
    if not style.dropout:
        return None
    if style.dropout_of == "voxels":
        return nn.Dropout(style.dropout)
    return nn.Dropout2d(style.dropout) if dimensions == 2 else nn.Dropout3d(style.dropout)


def gate_layer(style: Style, channels: int, dimensions: int) -> nn.Module | None:
    """MONAI's squeeze-and-excitation gate, None where the style has none."""
    if not style.squeeze_excitation:
        return None
    from monai.networks.blocks import ChannelSELayer

    return ChannelSELayer(dimensions, channels, r=min(style.squeeze_excitation, channels))


def gates(style: Style, channels: int, dimensions: int) -> tuple[nn.Module, ...]:
    """:func:`gate_layer` as part of a row of modules, in which there may be none."""
    gate = gate_layer(style, channels, dimensions)
    return () if gate is None else (gate,)
