"""TransUNet: a convolutional stem, a transformer over its coarsest features, and a U-Net's decoder (Chen et al. 2021), in 2D and 3D.

A plan's first stage is the image itself and exists in the decoder only; the second is the stem, the others are residual blocks of ResNetV2
(weight standardization and group norm); on the coarsest stage every voxel is a token. R50-ViT-B/16 is five stages with the features
(16, 64, 256, 512, 1024) and 3, 4, 9 blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.convolutions import Sizes, convolution, convolve
from medseg3d.networks.family import Family, deep_supervision, too_few_stages
from medseg3d.networks.resizing import overlapping_pooled, resized
from medseg3d.networks.style import Style, gates, share, style_of, whole
from medseg3d.plan import NetworkPlan, Option

STEM_KERNEL, EXPANSION, GROUPS = 7, 4, 32


class TransUNet(nn.Module):
    """Logits of the input's size, which must be divisible by the total stride.

    Positions are learned on a grid of ``positions`` tokens per axis and interpolated to that of the window, so that any window works.
    """

    deep_supervision = False

    def __init__(self, plan: NetworkPlan) -> None:
        super().__init__()
        features, unit, depth = plan.features, (1,) * plan.dimensions, len(plan.features) - 1
        width = whole(plan.options, "token_features")
        self.strides = plan.strides
        stem = tuple(STEM_KERNEL if kernel > 1 else 1 for kernel in plan.kernel_sizes[1])
        self.stem = nn.Sequential(
            StandardizedConv(plan.in_channels, features[1], stem, plan.strides[1]), group_norm(features[1]), nn.ReLU()
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    Bottleneck(
                        features[stage] if number else features[stage - 1],
                        features[stage],
                        plan.kernel_sizes[stage],
                        unit if number or stage == 2 else plan.strides[stage],  # max pooling makes the third stage
                    )
                    for number in range(plan.encoder_blocks[stage])
                )
            )
            for stage in range(2, depth + 1)
        )
        self.embed = convolution(features[-1], width, unit, unit)
        self.positions = nn.Parameter(torch.zeros(1, width, *(whole(plan.options, "positions"),) * plan.dimensions))
        self.dropout = nn.Dropout(share(plan.options, "token_dropout"))
        self.layers = nn.ModuleList(
            TransformerLayer(width, whole(plan.options, "heads"), whole(plan.options, "mlp_features"), share(plan.options, "token_dropout"))
            for _ in range(whole(plan.options, "layers"))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        style = style_of(plan.options)
        top = features[-1] // 2
        self.project = _stack(width, top, plan.kernel_sizes[-1], 1, style)
        widths = [max(1, min(features[stage], top >> (depth - stage))) for stage in range(depth)]
        self.decoder = nn.ModuleList(
            _stack(
                (widths[stage + 1] if stage + 1 < depth else top) + (features[stage] if stage else 0),
                widths[stage],
                plan.kernel_sizes[stage],
                plan.decoder_blocks[depth - 1 - stage],
                style,
            )
            for stage in reversed(range(depth))
        )
        self.head = convolution(widths[0], plan.num_classes, plan.kernel_sizes[0], unit)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, in_channels, …)`` → ``(batch, num_classes, …)``."""
        sizes = [x.shape[2:]]
        x = self.stem(x)
        skips = [x]
        for place, stage in enumerate(self.stages):
            x = stage(x if place else overlapping_pooled(x, self.strides[2]))
            skips.append(x)
        sizes += [skip.shape[2:] for skip in skips]
        tokens = self.embed(x)
        grid = tuple(tokens.shape[2:])
        sequence = self.dropout((tokens + resized(self.positions, grid)).flatten(2).transpose(1, 2))
        for layer in self.layers:
            sequence = layer(sequence)
        x = self.project(self.norm(sequence).transpose(1, 2).unflatten(2, grid))
        for place, stage in enumerate(self.decoder):
            x = resized(x, sizes[-2 - place])
            is_image = place == len(self.decoder) - 1
            x = stage(x if is_image else torch.cat((x, skips[-2 - place]), 1))
        logits: Tensor = self.head(x)
        return logits


class TransformerLayer(nn.Module):
    """Self-attention and a perceptron, each with a norm before and a sum behind (ViT)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm_of_attention, self.norm_of_perceptron = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.perceptron = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, width)`` → the same."""
        y = self.norm_of_attention(x)
        query, key, value = (part(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(attended))
        summed: Tensor = x + self.perceptron(self.norm_of_perceptron(x))
        return summed


class StandardizedConv(nn.Module):
    """A convolution whose weights have mean 0 and variance 1 per output channel (Qiao et al. 2019)."""

    reads_weights_itself = True

    def __init__(self, before: int, width: int, kernel: Sizes, stride: Sizes) -> None:
        super().__init__()
        self.conv = convolution(before, width, kernel, stride, bias=False)
        self.stride = tuple(stride)
        self.padding = tuple((k - 1) // 2 for k in kernel)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, …)`` → ``(batch, width, … / stride)``."""
        weight: Tensor = self.conv.weight  # type: ignore[assignment]
        axes = tuple(range(1, weight.ndim))
        variance, mean = torch.var_mean(weight, dim=axes, keepdim=True, unbiased=False)
        return convolve(x, (weight - mean) * torch.rsqrt(variance + 1e-5), None, self.stride, self.padding)


class Bottleneck(nn.Module):
    """Three standardized convolutions beside a projected skip; the stride is the middle one's."""

    def __init__(self, before: int, width: int, kernel: Sizes, stride: Sizes) -> None:
        super().__init__()
        unit, inner = (1,) * len(kernel), max(1, width // EXPANSION)
        self.convs = nn.Sequential(
            *(StandardizedConv(before, inner, unit, unit), group_norm(inner), nn.ReLU()),
            *(StandardizedConv(inner, inner, kernel, stride), group_norm(inner), nn.ReLU()),
            *(StandardizedConv(inner, width, unit, unit), group_norm(width)),
        )
        is_same = before == width and all(s == 1 for s in stride)
        self.projection = None if is_same else nn.Sequential(StandardizedConv(before, width, unit, stride), nn.GroupNorm(width, width))

    def begins_at_zero(self) -> tuple[nn.Module, ...]:
        """What begins at zero, see :func:`~medseg3d.networks.blocks.initialize`."""
        return (self.convs[-1],)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, before, …)`` → ``(batch, width, … / stride)``."""
        skip = x if self.projection is None else self.projection(x)
        return F.relu(self.convs(x) + skip)


def _stack(before: int, width: int, kernel: Sizes, num_convs: int, style: Style) -> nn.Sequential:
    unit = (1,) * len(kernel)
    convs = (ConvBlock(width if i else before, width, kernel, unit, style, bias=False) for i in range(num_convs))
    return nn.Sequential(*convs, *gates(style, width, len(kernel)))


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, or as many as divide the channels."""
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels, eps=1e-6)


def _problems(plan: NetworkPlan) -> Iterable[str]:
    yield from too_few_stages(plan, 3)
    yield from deep_supervision(plan)
    if whole(plan.options, "token_features") % whole(plan.options, "heads"):
        yield f"token_features {plan.options['token_features']} must be a multiple of heads {plan.options['heads']}"


OPTIONS: dict[str, Option] = {
    "norm": "batch",
    "activation": "relu",
    "token_features": 768,
    "layers": 12,
    "heads": 12,
    "mlp_features": 3072,
    "token_dropout": 0.1,
    "positions": 14,
}
FAMILY = Family(name="transunet", build=TransUNet, options=OPTIONS, problems=_problems)
