"""Attention U-Net: gates on the skips that a coarser, grid-like signal opens (Oktay et al. 2018, Schlemper et al. 2019).

As in the authors' code: max pooling down, linear interpolation up; the finest skip has no gate; the logits of all decoder stages are
brought to full size and merged by a last pointwise convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg3d.networks.attention_gates import GatedSkip
from medseg3d.networks.blocks import ConvBlock, ConvStack
from medseg3d.networks.convolutions import convolution
from medseg3d.networks.encoders import STAGES
from medseg3d.networks.family import Family
from medseg3d.networks.normalization import channels_last
from medseg3d.networks.resizing import pooled, resized
from medseg3d.networks.style import style_of
from medseg3d.plan import NetworkPlan, Option


class AttentionUNet(nn.Module):
    """A U-Net with gated skips.

    ``gates`` 0, 1 or 2 per skip. With ``heads`` ``merged`` the logits are the merged ones of all decoder stages, as published; with
    ``finest`` those of the finest. With ``deep_supervision`` the stages' own logits follow in the list.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, unit = style_of(plan.options), (1,) * plan.dimensions
        features, depth = plan.features, len(plan.features) - 1
        num_gates, self.is_merged = GATES.index(plan.options["gates"]), plan.options["heads"] == "merged" and depth > 0
        self.deep_supervision, self.strides = plan.deep_supervision, plan.strides
        stage_of = STAGES[str(plan.options["encoder"])]
        self.encoder = nn.ModuleList(
            stage_of(features[stage - 1] if stage else plan.in_channels, features[stage], plan.kernel_sizes[stage], unit, num, style)
            for stage, num in enumerate(plan.encoder_blocks)
        )
        coarse_to_fine = tuple(reversed(range(depth)))
        self.gating = ConvBlock(features[-1], features[-1], unit, unit, style) if num_gates and depth > 1 else None
        self.gates = nn.ModuleList(
            GatedSkip(features[fine], features[fine + 1], plan.strides[fine + 1], num_gates, style) if fine and num_gates else nn.Identity()
            for fine in coarse_to_fine
        )
        self.decoder = nn.ModuleList(
            ConvStack(
                features[fine + 1] + features[fine],
                features[fine],
                plan.kernel_sizes[fine],
                unit,
                plan.decoder_blocks[depth - 1 - fine],
                style,
            )
            for fine in coarse_to_fine
        )
        stages = coarse_to_fine if self.is_merged or plan.deep_supervision else coarse_to_fine[-1:]
        self.heads = nn.ModuleList(convolution(features[fine], plan.num_classes, unit, unit) for fine in stages or (0,))
        self.merge = convolution(depth * plan.num_classes, plan.num_classes, unit, unit) if self.is_merged else None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits; while training with deep supervision a list of them, finest first."""
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=channels_last(x))  # convolutions are several times faster so
        skips = []
        for stage, convs in enumerate(self.encoder):
            x = convs(pooled(x, self.strides[stage]) if stage else x)
            skips.append(x)
        signal = x if self.gating is None else self.gating(x)
        decoded = [] if len(self.decoder) else [x]
        for place, (gate, convs) in enumerate(zip(self.gates, self.decoder, strict=True)):
            skip = skips[-2 - place]
            gated = gate(skip, signal) if isinstance(gate, GatedSkip) else skip
            signal = x = convs(torch.cat((gated, resized(x, skip.shape[2:])), 1))
            decoded.append(x)
        logits = [head(features) for head, features in zip(self.heads, decoded[-len(self.heads) :], strict=True)][::-1]
        finest = logits[0] if self.merge is None else self.merge(torch.cat([resized(own, logits[0].shape[2:]) for own in logits[::-1]], 1))
        return [finest, *logits[1:]] if self.training and self.deep_supervision else finest


GATES: tuple[Option, ...] = (0, 1, 2)
OPTIONS: dict[str, Option] = {"norm": "batch", "activation": "relu", "encoder": "plain", "gates": 1, "heads": "merged"}
CHOICES: dict[str, tuple[Option, ...]] = {
    "encoder": tuple(STAGES),  # of what its stages are made; plain as published
    "gates": GATES,  # per skip: none, one, or two side by side, as in the authors' three networks
    "heads": ("merged", "finest"),
}
FAMILY = Family(name="attention_unet", build=AttentionUNet, options=OPTIONS, choices=CHOICES)
