"""Instance norm, on the fastest kernel of the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5
"""Added to the variance (nnU-Net's value, torch's default)."""
BLOCK = 256
"""Voxels whose float32 sum is still exact to a few units in the last place."""
PART = 2**18
"""Numbers that a cache holds (1 MiB)."""


class InstanceNorm(nn.Module):
    """Instance norm with learned scale and offset, in any number of dimensions and on the fastest kernel of the device.

    On a CPU it brings the activations into the channels-last layout, in which convolutions are up to three times faster, and
    runs as one batch norm per sample: the same numbers as torch's instance norm but for rounding, several times faster in that
    layout. That kernel adds up a channel one by one, which loses digits in large volumes: training does not mind,
    prediction in float32 goes by blocks and is exact. A single spatial element has no statistics; it is only scaled and
    shifted, where torch raises an error.

    Where ``may_overwrite`` is True, prediction in float32 on a CPU leaves the result in the memory of its input.
    """

    may_overwrite = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each channel of each sample over its spatial axes."""
        if x.shape[2:].numel() == 1:
            ones = (1,) * (x.ndim - 2)
            return torch.addcmul(self.bias.view(1, -1, *ones).to(x.dtype), x, self.weight.view(1, -1, *ones).to(x.dtype))
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=NORM_EPS)
        samples = x.contiguous(memory_format=channels_last(x)).split(1)
        if x.dtype == torch.float32 and not torch.is_grad_enabled():
            normalized = [self._by_blocks(sample) for sample in samples]
            return normalized[0] if len(normalized) == 1 else torch.cat(normalized)
        normalized = [F.batch_norm(s, None, None, self.weight, self.bias, training=True, eps=NORM_EPS) for s in samples]
        return normalized[0] if len(normalized) == 1 else torch.cat(normalized)

    def _by_blocks(self, x: Tensor) -> Tensor:
        """One sample in the channels-last layout: sums of ``BLOCK`` voxels in float32, sums of these in float64."""
        voxels = x.movedim(1, -1).reshape(-1, self.channels)
        mean = (_sum_of_blocks(voxels) / len(voxels)).float()
        per_part = max(1, PART // (BLOCK * self.channels)) * BLOCK
        parts = [_sum_of_blocks((part - mean).square_()) for part in voxels.split(per_part)]  # squared while the cache holds them
        deviation = torch.sqrt(torch.stack(parts).sum(0) / len(voxels) + NORM_EPS)
        scale = self.weight.double() / deviation
        offset = (self.bias.double() - mean.double() * scale).float()
        normalized = torch.addcmul(offset, voxels, scale.float(), out=voxels if self.may_overwrite else None)
        return normalized.view(1, *x.shape[2:], self.channels).movedim(-1, 1)

    def extra_repr(self) -> str:
        """The number of channels."""
        return str(self.channels)


def _sum_of_blocks(voxels: Tensor) -> Tensor:
    """The float64 sum of each channel over the first axis."""
    whole = len(voxels) // BLOCK * BLOCK
    total = voxels[:whole].view(-1, BLOCK, voxels.shape[1]).sum(1).double().sum(0)
    return total if whole == len(voxels) else total + voxels[whole:].sum(0).double()


def channels_last(x: Tensor) -> torch.memory_format:
    """The layout of ``x``'s number of dimensions in which the channels of a voxel lie beside each other."""
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d
