"""The first U-Nets: max pooling, no residuals, with padding or, as published, without (overlap-tile).

U-Net (Ronneberger et al. 2015), 3D U-Net (Çiçek et al. 2016), and the U-Net and wide U-Net that UNet++ is compared with (Zhou et
al. 2018) differ in features and options only; the presets in ``planners/`` hold them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from medseg3d.errors import PlanError
from medseg3d.networks.attention_gates import GatedSkip
from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.convolutions import convolution, transposed_convolution
from medseg3d.networks.family import Family, Size
from medseg3d.networks.normalization import channels_last
from medseg3d.networks.resizing import pooled
from medseg3d.networks.style import gate_layer, style_of
from medseg3d.networks.upsampling import unprojected, way_up
from medseg3d.plan import NetworkPlan, Option


class ClassicUNet(nn.Module):
    """Convolutions and max pooling down, transposed convolutions, concatenated skips and convolutions up.

    With ``padding`` ``valid`` the logits belong to the middle of the input, :func:`unpadded_output_size` says how much of it, and skips are
    cropped; such a network has one head. Otherwise sizes must be divisible by the total stride, and with ``deep_supervision``
    there is a head on every decoder stage.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        style, options = style_of(plan.options), plan.options
        is_padded = _is_padded(plan)
        if plan.deep_supervision and not is_padded:
            raise PlanError(
                "network.deep_supervision: the coarse stages of a network without padding see other parts of the patch than the "
                'finest. Set deep_supervision = false, or options.padding = "same".'
            )
        if style.attention_gates and not is_padded:
            raise PlanError(
                "network.options: attention_gates lay coarse features over fine ones, which without padding show other parts of the patch. "
                'Set attention_gates = 0, or padding = "same".'
            )
        self.deep_supervision = plan.deep_supervision
        self.strides = plan.strides
        features, depth = plan.features, len(plan.features) - 1

        def stack(stage: int, in_channels: int, num_convs: int, first: int) -> nn.Sequential:
            widths = (in_channels, *(first,) * (num_convs > 1), *(features[stage],) * max(1, num_convs - 1))
            unit = (1,) * plan.dimensions
            gate = gate_layer(style, features[stage], plan.dimensions)
            return nn.Sequential(
                *(
                    ConvBlock(before, after, plan.kernel_sizes[stage], unit, style, is_padded=is_padded)
                    for before, after in pairwise(widths)
                ),
                *([] if gate is None else [gate]),
            )

        is_half = options["first_conv"] == "half"
        self.encoder = nn.ModuleList(
            stack(stage, features[stage - 1] if stage else plan.in_channels, num, features[stage] // 2 if is_half else features[stage])
            for stage, num in enumerate(plan.encoder_blocks)
        )
        keeps = options["up_features"] == "keep" or not options["up_projection"]
        fine_to_up = [features[fine + 1] if keeps else features[fine] for fine in range(depth)]
        self.up = nn.ModuleList(
            transposed_convolution(features[fine + 1], fine_to_up[fine], plan.strides[fine + 1], bias=bool(options["up_bias"]))
            if style.upsampling == "transposed"
            else way_up(
                style.upsampling, features[fine + 1], fine_to_up[fine], plan.strides[fine + 1], projects=bool(options["up_projection"])
            )[0]
            for fine in reversed(range(depth))
        )
        self.decoder = nn.ModuleList(
            stack(fine, fine_to_up[fine] + features[fine], plan.decoder_blocks[depth - 1 - fine], features[fine])
            for fine in reversed(range(depth))
        )
        self.gates = nn.ModuleList(
            GatedSkip(features[fine], features[fine + 1], plan.strides[fine + 1], style.attention_gates, style) if fine else nn.Identity()
            for fine in reversed(range(depth if style.attention_gates else 0))
        )
        unit = (1,) * plan.dimensions
        heads = [fine for fine in reversed(range(depth)) if plan.deep_supervision or fine == 0] or [0]
        self.heads = nn.ModuleList(convolution(features[fine], plan.num_classes, unit, unit) for fine in heads)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits; while training with deep supervision a list of them, finest first."""
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=channels_last(x))  # convolutions are several times faster so
        skips = []
        for stage, convs in enumerate(self.encoder):
            x = convs(pooled(x, self.strides[stage]) if stage else x)
            skips.append(x)
        decoded = [] if len(self.decoder) else [x]
        for place, (up, convs) in enumerate(zip(self.up, self.decoder, strict=True)):
            skip, gate = skips[-2 - place], self.gates[place] if len(self.gates) else None
            skip = gate(skip, x) if isinstance(gate, GatedSkip) else skip
            x = up(x)
            x = convs(torch.cat((center_crop(skip, x.shape[2:]), x), 1))
            decoded.append(x)
        if self.training and self.deep_supervision:
            return [head(features) for head, features in zip(self.heads, decoded, strict=True)][::-1]
        logits: Tensor = self.heads[-1](x)
        return logits


def center_crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The middle ``size`` of the spatial axes, which come last; the same tensor where it has that size."""
    for axis, (have, wanted) in enumerate(zip(x.shape[-len(size) :], size, strict=True)):
        if have != wanted:
            x = x.narrow(axis - len(size), (have - wanted) // 2, wanted)
    return x


def unpadded_output_size(plan: NetworkPlan, size: Size) -> Size:
    """The size of the logits for an input; without padding smaller. Raises :class:`PlanError` for sizes that do not pass.

    The U-Net of 2015 turns 572 into 388.
    """
    if _is_padded(plan):
        return size
    result = []
    for axis, voxels in enumerate(size):
        lost_down, lost_up = _losses(plan, axis)
        n = voxels
        for stage, lost in enumerate(lost_down):
            stride = plan.strides[stage][axis]
            if n % stride:
                raise PlanError(f"A patch of {voxels} voxels along axis {axis} cannot be pooled evenly; {input_size(plan, size)} can.")
            n = n // stride - lost
        for stage in reversed(range(len(lost_up))):
            n = n * plan.strides[stage + 1][axis] - lost_up[stage]
        if n < 1:
            raise PlanError(f"A patch of {voxels} voxels along axis {axis} is too small for a network without padding.")
        result.append(n)
    return tuple(result)


def input_size(plan: NetworkPlan, wanted: Size) -> Size:
    """The smallest input whose logits cover ``wanted`` voxels and more."""
    if _is_padded(plan):
        return wanted
    result = []
    for axis, least in enumerate(wanted):
        lost_down, lost_up = _losses(plan, axis)
        bottleneck, given, needed = 0, 0, 0
        while given < least:
            bottleneck += 1
            given = needed = bottleneck
            for stage in reversed(range(len(lost_up))):
                given = given * plan.strides[stage + 1][axis] - lost_up[stage]
            for stage in reversed(range(len(lost_down))):
                needed = (needed + lost_down[stage]) * plan.strides[stage][axis]
        result.append(needed)
    return tuple(result)


def _losses(plan: NetworkPlan, axis: int) -> tuple[list[int], list[int]]:
    """Voxels that the convolutions of each stage take from an axis: of the encoder and of the decoder, finest first."""
    kernel = [sizes[axis] - 1 for sizes in plan.kernel_sizes]
    down = [num * lost for num, lost in zip(plan.encoder_blocks, kernel, strict=True)]
    up = [num * lost for num, lost in zip(plan.decoder_blocks[::-1], kernel, strict=False)]
    return down, up


def _is_padded(plan: NetworkPlan) -> bool:
    return plan.options.get("padding", OPTIONS["padding"]) == "same"


def _problems(plan: NetworkPlan) -> Iterable[str]:
    yield from unprojected(plan.options)


OPTIONS: dict[str, Option] = {
    "norm": "none",
    "activation": "relu",
    "padding": "same",
    "first_conv": "full",
    "up_features": "half",
    "up_bias": True,
    "up_projection": True,
}
CHOICES: dict[str, tuple[Option, ...]] = {
    "padding": ("same", "valid"),  # valid: as published, each convolution loses its border
    "first_conv": ("full", "half"),  # half: the first convolution of a stage has half of its features (3D U-Net)
    "up_features": ("half", "keep"),  # keep: the transposed convolution keeps its input's features (3D U-Net)
    "up_bias": (True, False),
    "up_projection": (True, False),  # False: an interpolation keeps all channels, as in ports of the UNet++ paper
}
FAMILY = Family(
    name="classic_unet",
    build=ClassicUNet,
    options=OPTIONS,
    choices=CHOICES,
    output_size=unpadded_output_size,
    input_size=input_size,
    problems=_problems,
)
