"""Gates on the skips of a U-Net that a coarser, grid-like signal opens (Oktay et al. 2018, Schlemper et al. 2019), in 2D and 3D."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.convolutions import Sizes, convolution
from medseg3d.networks.resizing import resized
from medseg3d.networks.style import Style, norm_layer


class GatedSkip(nn.Module):
    """One or two gates on a skip, and a pointwise convolution that merges what they let through."""

    def __init__(self, channels: int, signal_channels: int, stride: Sizes, num_gates: int, style: Style) -> None:
        super().__init__()
        unit = (1,) * len(stride)
        self.gates = nn.ModuleList(GridGate(channels, signal_channels, stride, style) for _ in range(num_gates))
        self.merge = ConvBlock(num_gates * channels, channels, unit, unit, style)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """``skip`` ``(batch, channels, …)``, ``signal`` a stage coarser; the result as ``skip``."""
        merged: Tensor = self.merge(torch.cat([gate(skip, signal) for gate in self.gates], 1))
        return merged


class GridGate(nn.Module):
    """Additive attention: where the skip and the coarser signal agree on something, the skip passes."""

    def __init__(self, channels: int, signal_channels: int, stride: Sizes, style: Style) -> None:
        super().__init__()
        unit = (1,) * len(stride)
        kind = nn.Conv2d if len(stride) == 2 else nn.Conv3d
        self.of_skip = kind(channels, channels, tuple(stride), tuple(stride), bias=False)  # type: ignore[arg-type]
        self.of_signal = convolution(signal_channels, channels, unit, unit)
        self.strength = convolution(channels, 1, unit, unit)
        self.out = nn.Sequential(convolution(channels, channels, unit, unit), norm_layer(style, channels, len(stride)))

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """``skip`` times a number between 0 and 1 per voxel, then convolved."""
        reduced = self.of_skip(skip)
        strength = torch.sigmoid(self.strength(F.relu(reduced + resized(self.of_signal(signal), reduced.shape[2:]))))
        passed: Tensor = self.out(resized(strength, skip.shape[2:]) * skip)
        return passed
