"""3D U2-Net (Huang et al. 2019): one network for many datasets, each with adapters of its own.

A convolution is a depthwise one, which belongs to a dataset (a domain), and a pointwise one, which all share. Every domain also has
its own normalization, stem and heads. Each domain keeps its own strides and kernels, as the shared tensors have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.errors import PlanError
from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.convolutions import convolution, convolve
from medseg3d.networks.family import Family, Sharing
from medseg3d.networks.style import Style, activation_layer, dropout_layer, gate_layer, norm_layer, style_of
from medseg3d.plan import NetworkPlan, Option

SUPERVISED_STAGES = (1, 2)
"""Decoder stages below the finest whose scores are added to the finest ones, as in the published code."""


class U2Net(nn.Module):
    """A 3D U2-Net for one or more domains, in 2D or 3D.

    ``plans`` maps a domain's name to its plan. The plans agree in features as far as both have stages, in dimensions and options;
    strides, kernels, number of stages, channels and classes are each domain's own. ``shared`` holds what all domains use,
    ``domains`` the rest. Raises :class:`PlanError` for plans that do not agree.

    Deep supervision is the published one: scores of the stages below the finest are added up the chain into the logits, so that
    there is one output.
    """

    def __init__(self, plans: Mapping[str, NetworkPlan]) -> None:
        super().__init__()
        longest = max(plans.values(), key=lambda plan: len(plan.features))
        self.style = style_of(longest.options)
        if self.style.separable:
            raise PlanError("network.options: u2net is separable by itself. Leave separable out, or choose adapters.")
        self.adapters = longest.options["adapters"] == "separable"
        self.separable_strides = self.adapters and bool(longest.options["separable_strides"])
        self.features, self.dimensions = longest.features, longest.dimensions
        self.options = longest.options
        self.kernel_size = _common_kernel(plans.values())
        self.shared = _Shared(self)
        self.domains = nn.ModuleDict()
        self.deep_supervision = False  # one output, see above; the attribute is what training switches
        self.domain = next(iter(plans))
        for name, plan in plans.items():
            self.add_domain(name, plan)

    def add_domain(self, name: str, plan: NetworkPlan) -> None:
        """Make the parts of one more domain, with fresh weights; what is there already is not touched.

        Raises :class:`PlanError` where its features are not the shared ones.
        """
        if plan.features != self.features[: len(plan.features)] or plan.dimensions != self.dimensions or plan.options != self.options:
            raise PlanError(
                f"{name}: its network has features {plan.features}, in {plan.dimensions}D, with options {plan.options}; the shared part "
                f"has {self.features}, in {self.dimensions}D, with {self.options}. Plan all datasets with the same planner."
            )
        if not self.adapters and _common_kernel([plan]) != self.kernel_size:
            raise PlanError(f"{name}: without adapters all domains share kernels of {self.kernel_size} voxels.")
        self.domains[name] = _Domain(plan, self)

    def begins_at_zero(self) -> tuple[nn.Module, ...]:
        """Without norms the shared convolutions at the end of the blocks; otherwise the domains' norms after them do."""
        return tuple(cast(_SharedConv, each).conv for each in self.shared.second) if self.style.norm == "none" else ()

    def forward(self, x: Tensor, domain: str | None = None) -> Tensor:
        """Logits ``(batch, num_classes, …)`` of a domain, of the attribute ``domain`` where none is named."""
        parts = cast(_Domain, self.domains[domain or self.domain])
        x = parts.stem(x)
        skips = []
        for stage, (first, second) in enumerate(zip(parts.first, parts.second, strict=True)):
            if stage:
                x = parts.activation(parts.down[stage - 1](x, self.shared.down[stage - 1]))
            out = parts.activation(first(x, self.shared.first[stage]))
            x = parts.activation(x + second(out, self.shared.second[stage]))
            skips.append(x)
        scores: Tensor | None = None
        for fine in reversed(range(len(skips) - 1)):
            x = F.interpolate(x, scale_factor=tuple(float(s) for s in parts.strides[fine + 1]))
            x = parts.activation(parts.up[fine](x, self.shared.up[fine]))
            x = torch.cat((x, skips[fine]), 1)
            x = parts.activation(parts.merge[fine](x, self.shared.merge[fine]))
            x = parts.activation(parts.refine[fine](x, self.shared.refine[fine]))
            if str(fine) in parts.side_heads:
                side = parts.side_heads[str(fine)](x)
                scores = side if scores is None else side + scores
                scores = F.interpolate(scores, scale_factor=tuple(float(s) for s in parts.strides[fine]))
        logits: Tensor = parts.head(x)
        return logits if scores is None else logits + scores


class _Shared(nn.Module):
    """The convolutions of all domains by place, finest stage first."""

    def __init__(self, network: U2Net) -> None:
        super().__init__()
        features, depth = network.features, len(network.features) - 1

        def conv(before: int, after: int, *, is_pointwise: bool = network.adapters) -> nn.Module:
            kernel_size = (1,) * network.dimensions if is_pointwise else network.kernel_size
            return _SharedConv(before, after, kernel_size)

        self.down = nn.ModuleList(
            conv(features[stage], features[stage + 1], is_pointwise=network.separable_strides) for stage in range(depth)
        )
        self.first = nn.ModuleList(conv(f, f) for f in features)
        self.second = nn.ModuleList(conv(f, f) for f in features)
        self.up = nn.ModuleList(conv(features[fine + 1], features[fine]) for fine in range(depth))
        self.merge = nn.ModuleList(conv(2 * f, f) for f in features[:-1])
        self.refine = nn.ModuleList(conv(f, f, is_pointwise=True) for f in features[:-1])


class _SharedConv(nn.Module):
    """A convolution that all domains share, pointwise or full; the stride is the domain's."""

    reads_weights_itself = True

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        unit = (1,) * len(kernel_size)
        self.conv = convolution(in_channels, out_channels, kernel_size, unit)

    def forward(self, x: Tensor, stride: Sequence[int]) -> Tensor:
        if all(s == 1 for s in stride):
            convolved: Tensor = self.conv(x)
            return convolved
        conv = self.conv
        if not isinstance(conv, nn.Conv2d | nn.Conv3d):
            raise TypeError(f"a convolution is expected here, found {type(conv).__name__}")
        return convolve(x, conv.weight, conv.bias, tuple(stride), tuple((k - 1) // 2 for k in conv.kernel_size))


class _Domain(nn.Module):
    """What belongs to one domain: stem, depthwise convolutions, norms, heads; the lists are by place, finest stage first."""

    def __init__(self, plan: NetworkPlan, network: U2Net) -> None:
        super().__init__()
        self.strides = plan.strides
        style, features, depth = network.style, plan.features, len(plan.features) - 1
        unit = (1,) * plan.dimensions
        self.activation = activation_layer(style, 1)

        def unit_of(stage: int, before: int, after: int, stride: Sequence[int] = unit, *, is_last: bool = False) -> _Unit:
            is_strided = any(s != 1 for s in stride)
            has_adapter = network.adapters and (not is_strided or network.separable_strides)
            return _Unit(before, after, plan.kernel_sizes[stage], stride, style, has_adapter=has_adapter, is_last=is_last)

        self.stem = ConvBlock(plan.in_channels, features[0], plan.kernel_sizes[0], unit, style)
        self.down = nn.ModuleList(
            unit_of(stage + 1, features[stage], features[stage + 1], plan.strides[stage + 1]) for stage in range(depth)
        )
        self.first = nn.ModuleList(unit_of(stage, f, f) for stage, f in enumerate(features))
        self.second = nn.ModuleList(unit_of(stage, f, f, is_last=True) for stage, f in enumerate(features))
        self.up = nn.ModuleList(unit_of(fine, features[fine + 1], features[fine]) for fine in range(depth))
        self.merge = nn.ModuleList(unit_of(fine, 2 * features[fine], features[fine]) for fine in range(depth))
        self.refine = nn.ModuleList(unit_of(fine, features[fine], features[fine], is_last=True) for fine in range(depth))
        self.side_heads = nn.ModuleDict(
            {
                str(fine): ConvBlock(features[fine], plan.num_classes, unit, unit, style)
                for fine in SUPERVISED_STAGES
                if plan.deep_supervision and fine < depth
            }
        )
        self.head = convolution(features[0], plan.num_classes, unit, unit)

    def begins_at_zero(self) -> tuple[nn.Module, ...]:
        """The norms that begin at zero, so that each block of the encoder begins as its skip."""
        return tuple(cast(_Unit, unit).norm for unit in self.second)


class _Unit(nn.Module):
    """A domain's part of one convolution: its depthwise convolution (or only the stride), and the norms around the shared part.

    The last one of a block carries the style's gate.
    """

    def __init__(
        self, before: int, after: int, kernel_size: Sequence[int], stride: Sequence[int], style: Style, *, has_adapter: bool, is_last: bool
    ) -> None:
        super().__init__()
        dimensions = len(kernel_size)
        self.stride = tuple(stride)
        depthwise: Any = convolution(before, before, kernel_size, stride, groups=before)
        depthwise.keeps_size = style.norm == "none"
        self.depthwise = (
            nn.Sequential(
                depthwise,
                norm_layer(style, before, dimensions),
                activation_layer(style, before),
            )
            if has_adapter
            else None
        )
        self.dropout = dropout_layer(style, dimensions)
        self.norm = norm_layer(style, after, dimensions)
        self.gate = gate_layer(style, after, dimensions) if is_last else None

    def forward(self, x: Tensor, shared: nn.Module) -> Tensor:
        if self.depthwise is not None:  # it carries the stride
            x = self.depthwise(x)
        stride = (1,) * len(self.stride) if self.depthwise is not None else self.stride
        x = shared(x, stride)
        normalized: Tensor = self.norm(x if self.dropout is None else self.dropout(x))
        return normalized if self.gate is None else self.gate(normalized)


def _common_kernel(plans: Iterable[NetworkPlan]) -> tuple[int, ...]:
    """The largest kernel of any stage of any plan, which convolutions without adapters share."""
    sizes = [kernel for plan in plans for kernel in plan.kernel_sizes]
    return tuple(max(axis) for axis in zip(*sizes, strict=True))


OPTIONS: dict[str, Option] = {
    "adapters": "separable",
    "separable_strides": True,
}
CHOICES: dict[str, tuple[Option, ...]] = {
    "adapters": ("separable", "none"),  # none: all convolutions are shared and full, only norms, stem and heads belong to a domain
    "separable_strides": (True, False),  # false as in the published code: strided convolutions are full and shared
}
SHARING = Sharing(build=U2Net, own="domains", only="only")
FAMILY = Family(name="u2net", build=lambda plan: U2Net({SHARING.only: plan}), options=OPTIONS, choices=CHOICES, sharing=SHARING)
