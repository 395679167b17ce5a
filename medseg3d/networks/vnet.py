"""V-Net (Milletari et al. 2016): 5-voxel convolutions, residual sums in every stage, strided convolutions instead of pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.convolutions import convolution, transposed_convolution
from medseg3d.networks.family import Family
from medseg3d.networks.normalization import channels_last
from medseg3d.networks.style import Style, activation_layer, gate_layer, norm_layer, style_of
from medseg3d.plan import NetworkPlan, Option


class VNet(nn.Module):
    """The V-Net of the authors' published model, in 2D or 3D, with any number of stages, kernels and strides per axis.

    ``encoder_blocks`` and ``decoder_blocks`` count the convolutions of a stage (1, 2, 3, 3, 3 and 3, 2, 1, 1 in the paper's figure).
    The input is added to the first stage's convolutions by repeating its channels, where they divide the features, otherwise by a
    pointwise convolution. With ``deep_supervision``, which the paper does not have, every decoder stage has a head.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style = style_of(plan.options)
        self.deep_supervision = plan.deep_supervision
        features, depth = plan.features, len(plan.features) - 1
        unit = (1,) * plan.dimensions
        self.lift = None if features[0] % plan.in_channels == 0 else convolution(plan.in_channels, features[0], unit, unit)
        self.repeats = features[0] // plan.in_channels
        self.down = nn.ModuleList(
            _Scaled(
                convolution(features[stage - 1], features[stage], plan.strides[stage], plan.strides[stage], is_padded=False),
                features[stage],
                style,
            )
            for stage in range(1, depth + 1)
        )
        self.encoder = nn.ModuleList(
            _ResidualConvs(features[stage] if stage else plan.in_channels, features[stage], plan.kernel_sizes[stage], num, style)
            for stage, num in enumerate(plan.encoder_blocks)
        )
        widths = [2 * features[fine] for fine in range(depth)] + [features[depth]]
        coarse_to_fine = list(reversed(range(depth)))
        self.up = nn.ModuleList(
            _Scaled(transposed_convolution(widths[fine + 1], features[fine], plan.strides[fine + 1]), features[fine], style)
            for fine in coarse_to_fine
        )
        self.decoder = nn.ModuleList(
            _ResidualConvs(widths[fine], widths[fine], plan.kernel_sizes[fine], num, style)
            for fine, num in zip(coarse_to_fine, plan.decoder_blocks, strict=True)
        )

        def head(fine: int) -> nn.Module:
            if plan.options["head"] == "pointwise":
                return convolution(widths[fine], plan.num_classes, unit, unit)
            return nn.Sequential(
                ConvBlock(widths[fine], plan.num_classes, plan.kernel_sizes[fine], unit, style),
                convolution(plan.num_classes, plan.num_classes, unit, unit),
            )

        self.heads = nn.ModuleList(head(fine) for fine in (coarse_to_fine if plan.deep_supervision else coarse_to_fine[-1:]) or [0])

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits; while training with deep supervision a list of them, finest first."""
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=channels_last(x))  # convolutions are several times faster so
        lifted = x.repeat_interleave(self.repeats, 1) if self.lift is None else self.lift(x)
        x = self.encoder[0](x, lifted)
        skips = [x]
        for down, convs in zip(self.down, self.encoder[1:], strict=True):
            x = down(x)
            x = convs(x, x)
            skips.append(x)
        decoded = [] if len(self.decoder) else [x]
        for place, (up, convs) in enumerate(zip(self.up, self.decoder, strict=True)):
            x = torch.cat((up(x), skips[-2 - place]), 1)
            x = convs(x, x)
            decoded.append(x)
        if self.training and self.deep_supervision:
            return [head(features) for head, features in zip(self.heads, decoded, strict=True)][::-1]
        logits: Tensor = self.heads[-1](x)
        return logits


class _ResidualConvs(nn.Module):
    """Convolutions whose last one is added to ``skip`` before its activation."""

    def __init__(self, in_channels: int, features: int, kernel_size: Sequence[int], num_convs: int, style: Style) -> None:
        super().__init__()
        unit = (1,) * len(kernel_size)
        last = num_convs - 1
        self.convs = nn.Sequential(
            *(
                ConvBlock(features if i else in_channels, features, kernel_size, unit, style, is_activated=i < last)
                for i in range(num_convs)
            )
        )
        self.gate = gate_layer(style, features, len(kernel_size))
        self.activation = activation_layer(style, features)

    def begins_at_zero(self) -> tuple[nn.Module, ...]:
        """The end of the convolutions, so that the block begins as its skip."""
        return (cast(ConvBlock, self.convs[-1]).end,)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.convs(x)
        activated: Tensor = self.activation((x if self.gate is None else self.gate(x)) + skip)
        return activated


class _Scaled(nn.Module):
    """A strided or transposed convolution, norm, activation."""

    def __init__(self, conv: nn.Module, features: int, style: Style) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm_layer(style, features, 2 if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) else 3)
        self.activation = activation_layer(style, features)

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = self.activation(self.norm(self.conv(x)))
        return activated


OPTIONS: dict[str, Option] = {
    "norm": "none",
    "activation": "prelu",
    "head": "convolved",
}
CHOICES: dict[str, tuple[Option, ...]] = {
    # a convolution to the classes and a pointwise one, as in the published model; or only the latter, as in the paper's figure
    "head": ("convolved", "pointwise"),
}
FAMILY = Family(name="vnet", build=VNet, options=OPTIONS, choices=CHOICES)
