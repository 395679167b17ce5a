"""Networks whose convolutions hold their weights as the CPU's kernels want them, for prediction.

A trained network goes in, a copy with the same numbers but for rounding comes out. torch prepacks the weights of a convolution anew in
every call, casts them anew in mixed precision, and leaves small convolutions of a single sample to a slow kernel; oneDNN, which it calls,
can keep them prepacked.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from medseg3d.networks.blocks import ConvBlock
from medseg3d.networks.convolutions import (
    DepthwiseConv3d,
    PlaneConv2d,
    SlicewiseConv3d,
    VolumeConv3d,
    as_slices,
    as_volumes,
    convolve,
    lone_axis,
)
from medseg3d.networks.normalization import InstanceNorm, channels_last
from medseg3d.networks.winograd import FOUR

PACKED_KINDS = (PlaneConv2d, VolumeConv3d, DepthwiseConv3d, SlicewiseConv3d)
"""Kernels of one voxel are matrix products already."""

MIN_CHANNELS = 16
"""With fewer, in or out, the sums around a convolution cost more than the products that they spare."""
MIN_SLICES = 2.8
"""Of the four that are computed at once, in the mean: 1.4 times fewer products at least."""
CACHED_NUMBERS = 2**19
"""Sums of slices that are made and convolved together (2 MiB)."""
_ARRANGING = threading.Lock()


def can_pack() -> bool:
    """Whether this torch has oneDNN and its (private) operators for prepacked weights."""
    names = ("mkldnn_reorder_conv2d_weight", "mkldnn_reorder_conv3d_weight")
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and all(hasattr(torch._C._nn, name) for name in names)
    )


def packed(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a network for prediction on a CPU that convolves in ``dtype``, float32 or bfloat16; ask :func:`can_pack` first.

    Its convolutions have no parameters any more; what other modules have is shared with the network, which is not changed. A module
    whose ``reads_weights_itself`` is True keeps its convolutions as they are.
    """
    tensors = [*network.parameters(), *network.buffers()]
    copy = deepcopy(network, {id(tensor): tensor for tensor in tensors}).eval()  # modules of its own around the same tensors
    done: dict[nn.Module, PackedConvolution] = {}
    everything = dict(copy.named_modules(remove_duplicate=False))
    for name, module in everything.items():
        if isinstance(module, ConvBlock) and isinstance(module.norm, InstanceNorm):
            module.norm.may_overwrite = True  # nothing else reads the convolution's result
        keeps_its_own = getattr(everything[name.rpartition(".")[0]], "reads_weights_itself", False)
        if name and not keeps_its_own and isinstance(module, nn.Conv2d | nn.Conv3d) and _is_packed(module, dtype):
            copy.set_submodule(name, done.setdefault(module, PackedConvolution(module, dtype)))
    return copy


def _is_packed(conv: nn.Conv2d | nn.Conv3d, dtype: torch.dtype) -> bool:
    # of a single channel some strided and flat shapes come out wrong (torch 2.13); in bfloat16 there is nothing to gain either
    is_doubtful = conv.in_channels == 1 and (dtype != torch.float32 or any(s != 1 for s in conv.stride))
    return type(conv) in PACKED_KINDS and conv.padding_mode == "zeros" and not is_doubtful


class PackedConvolution(nn.Module):
    """A convolution ``(batch, in_channels, …)`` → ``(batch, out_channels, …)`` without gradients, in one type; in the channels-last layout.

    The weights are prepacked in the first call, for the size that comes then. In float32, padded kernels of 3x3x3 go by Winograd's
    minimal filtering along the first axis, see :class:`_SlicesOfFour`, where that size has slices enough for it.
    """

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, dtype: torch.dtype) -> None:
        super().__init__()
        self.is_slicewise = isinstance(conv, SlicewiseConv3d)
        first = 1 if self.is_slicewise else 0
        weight = conv.weight[:, :, 0] if self.is_slicewise else conv.weight
        self.unpacked = weight.detach()
        self.weight = self.unpacked.to(dtype)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.padding, self.stride, self.dilation = ([int(n) for n in sizes[first:]] for sizes in (conv.padding, conv.stride, conv.dilation))
        self.groups, self.dtype = conv.groups, dtype
        self.fewer_products: _SlicesOfFour | None = None
        self.is_prepacked = False

    def forward(self, x: Tensor) -> Tensor:
        """As the convolution it was made of."""
        batch = len(x)
        if self.is_slicewise:
            x = as_slices(x)
        x = x.to(self.dtype).contiguous(memory_format=channels_last(x))
        if x.ndim == 5 and lone_axis(x, self.unpacked) is not None:
            return convolve(x, self.unpacked.to(self.dtype), self.bias, self.stride, self.padding, self.dilation, self.groups)
        if not self.is_prepacked:
            with _ARRANGING:
                if not self.is_prepacked:
                    self._prepack(x)
                    self.is_prepacked = True
        if self.fewer_products is not None:
            return self.fewer_products(x)
        convolved = _convolve(x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)
        return as_volumes(convolved, batch) if self.is_slicewise else convolved

    def _prepack(self, x: Tensor) -> None:
        weight = self.weight
        is_suited = self.dtype == torch.float32 and weight.shape[2:] == (3, 3, 3) and {*self.stride, *self.dilation, self.groups} == {1}
        # padded on all sides: elsewhere a constant region stays exactly constant, and an instance norm would blow up its rounding
        if is_suited and {*self.padding} == {1} and min(weight.shape[:2]) >= MIN_CHANNELS and _share_of_four(x.shape[2]) >= MIN_SLICES:
            self.fewer_products = _SlicesOfFour(weight, self.bias, x)
            self.weight = weight.new_empty(0)
        else:
            self.weight = _prepacked(weight, self.padding, self.stride, self.dilation, self.groups, x.shape)


def _share_of_four(num_slices: int) -> float:
    """How many of the four slices that are computed at once are wanted, in the mean."""
    return num_slices / -(-num_slices // 4)


class _SlicesOfFour:
    """A padded 3D convolution of stride 1 with a kernel of 3x3x3, four slices at once in half the products: Winograd's F(4, 3).

    Six 2D convolutions of sums of six slices take the place of twelve (Winograd, Arithmetic complexity of computations, 1980; Lavin and
    Gray 2016 for the matrices). The sums are made while the caches hold the slices. The rounding error is larger than
    that of the direct computation; tests hold it below 3e-5 of the standard deviation.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> None:
        kernels = torch.einsum("kj,oijyx->koiyx", torch.tensor(FOUR.of_kernel, dtype=torch.float64), weight.double()).float()
        size = (1, x.shape[1], *x.shape[3:])
        self.bias, self.out_channels = bias, len(weight)
        self.weights = [_prepacked(kernel, [1, 1], [1, 1], [1, 1], 1, size) for kernel in kernels]
        self.of_slices, self.of_sums = torch.tensor(FOUR.of_slices), torch.tensor(FOUR.of_sums)

    def __call__(self, x: Tensor) -> Tensor:
        volumes = [self._of_sample(sample) for sample in x.movedim(1, -1)]
        return (volumes[0][None] if len(volumes) == 1 else torch.stack(volumes)).movedim(-1, 1)

    def _of_sample(self, x: Tensor) -> Tensor:
        """``(n0, n1, n2, in_channels)`` → the same with ``out_channels``."""
        slices = x.reshape(len(x), -1)
        num_tiles = -(-len(x) // 4)
        tiles_at_once = min(num_tiles, max(1, CACHED_NUMBERS // (6 * slices.shape[1])))
        out = x.new_empty(*x.shape[:3], self.out_channels)
        rows = out.view(len(x), -1)
        sums, convolved = x.new_empty(6, tiles_at_once, slices.shape[1]), x.new_empty(6, tiles_at_once, rows.shape[1])
        for first in range(0, num_tiles, tiles_at_once):
            tiles = range(first, min(first + tiles_at_once, num_tiles))
            for place, tile in enumerate(tiles):
                start = 4 * tile - 1
                low, high = max(0, start), min(len(x), start + 6)  # what lies beyond the image is zero
                torch.mm(self.of_slices[:, low - start : high - start], slices[low:high], out=sums[:, place])
            for number, each in enumerate(sums[:, : len(tiles)]):
                of_tiles = self._convolved(number, each.view(len(tiles), *x.shape[1:]))
                convolved[number, : len(tiles)] = of_tiles.reshape(len(tiles), -1)
            for place, tile in enumerate(tiles):
                wanted = rows[4 * tile : 4 * tile + 4]
                torch.mm(self.of_sums[: len(wanted)], convolved[:, place], out=wanted)
        return out

    def _convolved(self, number: int, x: Tensor) -> Tensor:
        bias = self.bias if number == 1 else None  # the second sum counts once in each slice
        return _convolve(x.movedim(-1, 1), self.weights[number], bias, [1, 1], [1, 1], [1, 1], 1).movedim(1, -1)


def _prepacked(
    weight: Tensor, padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int, size: Sequence[int]
) -> Tensor:
    prepack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight if weight.ndim == 4 else torch._C._nn.mkldnn_reorder_conv3d_weight
    prepacked: Tensor = prepack(weight.contiguous().to_mkldnn(), padding, stride, dilation, groups, list(size))
    return prepacked


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, padding, stride, dilation, groups, "none", [], "")
    return convolved
