"""MONAI's networks as families: what a plan says becomes their arguments, and what they cannot be is said before anything is built.

Their weights begin as MONAI begins them, and have MONAI's names. None takes the shared style options. Three of them (SegResNet, Swin
UNETR, MedNeXt) halve all axes alike, whatever the spacing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from medseg3d.networks.family import Family, Pooling, deep_supervision, too_few_stages
from medseg3d.plan import NetworkPlan, Option


class _StagedDynUNet(nn.Module):
    """The parts of MONAI's DynUNet; while training with deep supervision, logits at the decoder stages' own sizes, finest first.

    MONAI's own forward pass makes them all as large as the finest, and computes them for predictions as well.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        from monai.networks.nets import DynUNet

        super().__init__()
        has_heads = plan.deep_supervision and len(plan.features) > 2
        made = DynUNet(
            spatial_dims=plan.dimensions,
            in_channels=plan.in_channels,
            out_channels=plan.num_classes,
            kernel_size=plan.kernel_sizes,
            strides=plan.strides,
            upsample_kernel_size=plan.strides[1:],
            filters=plan.features,
            dropout=cast(float, plan.options["dropout"]) or None,
            deep_supervision=has_heads,
            deep_supr_num=len(plan.features) - 2,
            res_block=bool(plan.options["residual"]),
        )
        self.deep_supervision = plan.deep_supervision
        self.input_block, self.downsamples, self.bottleneck = made.input_block, made.downsamples, made.bottleneck
        self.upsamples, self.output_block = made.upsamples, made.output_block
        self.deep_supervision_heads = made.deep_supervision_heads if has_heads else nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits; a list of them while training with deep supervision."""
        skips = [self.input_block(x)]
        for down in self.downsamples:
            skips.append(down(skips[-1]))
        decoded = [self.bottleneck(skips[-1])]
        for up, skip in zip(self.upsamples, reversed(skips), strict=True):
            decoded.append(up(decoded[-1], skip))
        logits: Tensor = self.output_block(decoded[-1])
        if not (self.training and self.deep_supervision):
            return logits
        return [logits, *(head(each) for head, each in zip(self.deep_supervision_heads, decoded[-2:0:-1], strict=True))]


class _StagedMedNeXt(nn.Module):
    """The parts of MONAI's MedNeXt; while training with deep supervision a list of logits, also of the bottleneck, finest first.

    MONAI's own forward pass computes them for predictions as well.
    """

    def __init__(self, plan: NetworkPlan) -> None:
        from monai.networks.nets import MedNeXt

        super().__init__()
        made = MedNeXt(
            spatial_dims=plan.dimensions,
            init_filters=plan.features[0],
            in_channels=plan.in_channels,
            out_channels=plan.num_classes,
            encoder_expansion_ratio=cast(int, plan.options["expansion"]),
            decoder_expansion_ratio=cast(int, plan.options["expansion"]),
            bottleneck_expansion_ratio=cast(int, plan.options["expansion"]),
            kernel_size=plan.kernel_sizes[0][0],
            deep_supervision=plan.deep_supervision,
            use_residual_connection=True,
            blocks_down=plan.encoder_blocks[:-1],
            blocks_bottleneck=plan.encoder_blocks[-1],
            blocks_up=plan.decoder_blocks,
            global_resp_norm=bool(plan.options["response_norm"]),
        )
        self.deep_supervision = plan.deep_supervision
        self.stem, self.enc_stages, self.down_blocks, self.bottleneck = made.stem, made.enc_stages, made.down_blocks, made.bottleneck
        self.up_blocks, self.dec_stages, self.out_0 = made.up_blocks, made.dec_stages, made.out_0
        self.out_blocks = made.out_blocks if plan.deep_supervision else nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits; a list of them while training with deep supervision."""
        x, skips = self.stem(x), []
        for stage, down in zip(self.enc_stages, self.down_blocks, strict=True):
            skips.append(stage(x))
            x = down(skips[-1])
        decoded = [self.bottleneck(x)]
        for up, skip, stage in zip(self.up_blocks, reversed(skips), self.dec_stages, strict=True):
            decoded.append(stage(up(decoded[-1]) + skip))
        logits: Tensor = self.out_0(decoded[-1])
        if not (self.training and self.deep_supervision):
            return logits
        return [logits, *(head(each) for head, each in zip(reversed(self.out_blocks), decoded[-2::-1], strict=True))]


def _seg_res_net(plan: NetworkPlan) -> nn.Module:
    from monai.networks.nets import SegResNet

    network: nn.Module = SegResNet(
        spatial_dims=plan.dimensions,
        init_filters=plan.features[0],
        in_channels=plan.in_channels,
        out_channels=plan.num_classes,
        dropout_prob=cast(float, plan.options["dropout"]) or None,
        blocks_down=plan.encoder_blocks,
        blocks_up=plan.decoder_blocks,
        upsample_mode=cast(str, plan.options["upsample"]),
    )
    return network


def _attention_unet(plan: NetworkPlan) -> nn.Module:
    from monai.networks.nets import AttentionUnet

    network: nn.Module = AttentionUnet(
        spatial_dims=plan.dimensions,
        in_channels=plan.in_channels,
        out_channels=plan.num_classes,
        channels=plan.features,
        strides=plan.strides[1:],
        kernel_size=plan.kernel_sizes[0],
        up_kernel_size=plan.kernel_sizes[0],
        dropout=cast(float, plan.options["dropout"]),
    )
    return network


def _swin_unetr(plan: NetworkPlan) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    heads = cast(int, plan.options["heads"])
    with torch.device("cpu"):  # its constructor looks at numbers, which the meta device does not have
        network: nn.Module = SwinUNETR(
            in_channels=plan.in_channels,
            out_channels=plan.num_classes,
            depths=plan.encoder_blocks[:SWIN_STAGES],
            num_heads=[heads * 2**stage for stage in range(SWIN_STAGES)],
            window_size=cast(int, plan.options["window"]),
            feature_size=plan.features[0],
            dropout_path_rate=cast(float, plan.options["drop_path"]),
            spatial_dims=plan.dimensions,
        )
    return network


SWIN_STAGES = 4
"""Stages of transformer blocks; the first begins at half of the size, and below the last lies a stage of convolutions."""


# ---- what they cannot be


def _not_alike(plan: NetworkPlan, first: int = 1) -> Iterator[str]:
    """Of networks that halve all axes alike and double the features."""
    expected = ((first,) * plan.dimensions, *((2,) * plan.dimensions,) * (len(plan.strides) - 1))
    if plan.strides != expected:
        yield f"it halves all axes alike, so strides must be {expected}, found {plan.strides}"
    doubled = tuple(plan.features[0] * 2**stage for stage in range(len(plan.features)))
    if plan.features != doubled:
        yield f"its features double from stage to stage, expected {doubled}, found {plan.features}; raise network.max_features"


def _kernels(plan: NetworkPlan, edges: tuple[int, ...]) -> Iterator[str]:
    found = {edge for kernel in plan.kernel_sizes for edge in kernel}
    if len(found) > 1 or not found <= set(edges):
        yield f"all its kernels have {' or '.join(map(str, edges))} voxels along every axis, found {sorted(found)}"


def _blocks(plan: NetworkPlan, encoder: int, decoder: int) -> Iterator[str]:
    if set(plan.encoder_blocks) != {encoder} or not set(plan.decoder_blocks) <= {decoder}:
        yield f"it has {encoder} convolutions per stage going down and {decoder} going up; set network.encoder_blocks and decoder_blocks"


def _share(plan: NetworkPlan, name: str) -> Iterator[str]:
    value = plan.options[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        yield f"options.{name} is {value!r}, expected a number from 0 to below 1"


def _whole(plan: NetworkPlan, name: str, most: int) -> Iterator[str]:
    value = plan.options[name]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        yield f"options.{name} is {value!r}, expected a whole number from 1 to {most}"


def _seg_res_net_problems(plan: NetworkPlan) -> Iterator[str]:
    yield from (*_not_alike(plan), *_kernels(plan, (3,)), *deep_supervision(plan), *_share(plan, "dropout"))
    if plan.features[0] % 8:
        yield f"its norms have 8 groups, so network.base_features must be a multiple of 8, found {plan.features[0]}"


def _attention_unet_problems(plan: NetworkPlan) -> Iterator[str]:
    yield from (*too_few_stages(plan, 2), *_kernels(plan, (3, 5)), *deep_supervision(plan), *_blocks(plan, 2, 1), *_share(plan, "dropout"))


def _dynunet_problems(plan: NetworkPlan) -> Iterator[str]:
    yield from (*too_few_stages(plan, 3), *_blocks(plan, 2, 2), *_share(plan, "dropout"))


def _swin_unetr_problems(plan: NetworkPlan) -> Iterator[str]:
    yield from (
        *_not_alike(plan, first=2),
        *deep_supervision(plan),
        *_share(plan, "drop_path"),
        *_whole(plan, "window", 32),
        *_whole(plan, "heads", 64),
    )
    if len(plan.features) != SWIN_STAGES + 1:
        yield f"it has {SWIN_STAGES + 1} stages, found {len(plan.features)}; set network.max_stages = 0"
    heads = plan.options["heads"]
    if plan.features[0] % 12 or (isinstance(heads, int) and heads > 0 and plan.features[0] % heads):
        yield f"network.base_features must be a multiple of 12 and of options.heads, found {plan.features[0]} and {heads}"
    if set(plan.decoder_blocks) != {1}:
        yield "it has one block per decoder stage; set network.decoder_blocks = [1]"


def _mednext_problems(plan: NetworkPlan) -> Iterator[str]:
    yield from (*too_few_stages(plan, 2), *_not_alike(plan), *_kernels(plan, (3, 5, 7)), *_whole(plan, "expansion", 16))


def _family(name: str, build: Any, problems: Any, pooling: Pooling, options: dict[str, Option], **choices: tuple[Option, ...]) -> Family:
    return Family(
        name=name,
        build=build,
        options=options,
        choices=choices,
        problems=problems,
        pooling=pooling,
        keeps_weights=True,
        has_style=False,
    )


ALIKE = Pooling(all_axes=True, same_kernels=True)
YES_OR_NO: tuple[Option, ...] = (True, False)
FAMILIES = (
    _family(
        "segresnet",
        _seg_res_net,
        _seg_res_net_problems,
        ALIKE,
        {"dropout": 0.0, "upsample": "nontrainable"},
        upsample=("nontrainable", "deconv", "pixelshuffle"),
    ),
    _family("monai_attention_unet", _attention_unet, _attention_unet_problems, Pooling(same_kernels=True), {"dropout": 0.0}),
    _family("dynunet", _StagedDynUNet, _dynunet_problems, Pooling(), {"residual": False, "dropout": 0.0}, residual=YES_OR_NO),
    _family(
        "swinunetr",
        _swin_unetr,
        _swin_unetr_problems,
        Pooling(all_axes=True, same_kernels=True, first_stride=2, num_stages=SWIN_STAGES + 1),
        {"window": 7, "heads": 3, "drop_path": 0.0},
    ),
    _family("mednext", _StagedMedNeXt, _mednext_problems, ALIKE, {"expansion": 2, "response_norm": False}, response_norm=YES_OR_NO),
)
