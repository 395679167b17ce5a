"""Attention of every voxel over all voxels, in 2D and 3D: what it looks for is projected from some features, what it finds from others."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.style import Style


class CrossAttention(nn.Module):
    """Two pointwise convolutions to the queries, two to the keys, one to the values, one to the result, each with norm and activation.

    The work grows with the square of the voxels, so it belongs on coarse features.
    """

    def __init__(self, of_query: int, of_key: int, inner: int, width: int, dimensions: int, style: Style) -> None:
        super().__init__()
        self.query = _projection((of_query, inner, inner), dimensions, style)
        self.key = _projection((of_key, inner, inner), dimensions, style)
        self.value = _projection((of_key, inner), dimensions, style)
        self.out = _projection((inner, width), dimensions, style)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """``x`` ``(batch, of_query, …)`` asks, ``seen`` ``(batch, of_key, …)`` answers → ``(batch, width, …)`` of the size of ``x``."""
        parts = ((self.query, x), (self.key, seen), (self.value, seen))
        query, key, value = (part(y).flatten(2).transpose(1, 2).unsqueeze(1) for part, y in parts)  # one head: ONNX wants four axes
        attended = F.scaled_dot_product_attention(query, key, value).squeeze(1).transpose(1, 2).unflatten(2, tuple(x.shape[2:]))
        found: Tensor = self.out(attended)
        return found


def _projection(widths: tuple[int, ...], dimensions: int, style: Style) -> nn.Sequential:
    unit = (1,) * dimensions
    return nn.Sequential(*(ConvBlock(before, after, unit, unit, style, bias=False) for before, after in pairwise(widths)))
