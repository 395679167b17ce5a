"""3D convolutions of a training step in fewer products: Winograd's minimal filtering along the first axis, forward and backward.

A padded 3x3x3 convolution goes in, the same numbers but for rounding come out, with the gradients of input, weights and bias. Neighboring
slices are added up, 2D convolutions of the sums take the place of 3D ones, and their results are added up to slices again (Winograd,
Arithmetic complexity of computations, 1980; Lavin and Gray 2016 for the matrices).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_CHANNELS = 32
"""With fewer, in or out, the sums around a convolution and its gradients cost more than the products that they spare."""
NUMBERS_AT_ONCE = 2**23
"""Of the sums of one kind that are made before they are convolved: tens of MiB, however large the patch is."""

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How ``slices`` neighboring slices of the result are made together.

    ``of_slices`` makes sums of the ``slices + 2`` slices that they see, ``of_kernel`` of the three slices of the kernel; ``of_sums`` makes
    the slices from the convolved sums.
    """

    slices: int
    of_slices: Rows
    of_kernel: Rows
    of_sums: Rows


TWO = Scheme(
    slices=2,
    of_slices=((1.0, 0.0, -1.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, -1.0, 1.0, 0.0), (0.0, 1.0, 0.0, -1.0)),
    of_kernel=((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0)),
    of_sums=((1.0, 1.0, 1.0, 0.0), (0.0, 1.0, -1.0, -1.0)),
)
"""F(2, 3): four products in the place of six."""
FOUR = Scheme(
    slices=4,
    of_slices=(
        (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
        (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
        (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
        (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
        (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
        (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
    ),
    of_kernel=(
        (1 / 4, 0.0, 0.0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0.0, 0.0, 1.0),
    ),
    of_sums=(
        (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
        (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
        (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
        (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
    ),
)
"""F(4, 3): six products in the place of twelve."""
COUNTS_IN_ALL = 1
"""The sum that is in every slice of the result once, in both schemes: a bias added to it is added to each."""


def scheme_for(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Scheme | None:
    """How to convolve in float32 while gradients are recorded on a CPU; None where a convolution gains nothing, or is not of this kind.

    The number of slices must be a multiple of those that are made together. What is traced or compiled stays as it is written. In bf16 the
    products take half of the time and the sums as long as ever: a twentieth to a seventh of a step is gained, for twice the rounding.
    """
    is_suited = weight.shape[2:] == (3, 3, 3) and {*stride, *padding, *dilation, groups} == {1} and min(weight.shape[:2]) >= MIN_CHANNELS
    if not is_suited or x.device.type != "cpu" or type(x) is not Tensor or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return None
    return next((scheme for scheme in (FOUR, TWO) if x.shape[2] % scheme.slices == 0), None)


def convolve_in_tiles(x: Tensor, weight: Tensor, bias: Tensor | None, scheme: Scheme) -> Tensor:
    """``(batch, in_channels, n0, n1, n2)`` → ``(batch, out_channels, n0, n1, n2)`` in the channels-last layout, with gradients."""
    convolved: Tensor = _InTiles.apply(x, weight, bias, scheme)
    return convolved


class _InTiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scheme: Scheme) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        ctx.save_for_backward(x, weight)
        ctx.scheme = scheme
        return _convolved(x, weight, bias, scheme)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        is_wanted = ctx.needs_input_grad
        gradient = gradients[0].contiguous(memory_format=torch.channels_last_3d)
        of_input = _convolved(gradient, weight.transpose(0, 1).flip(2, 3, 4), None, ctx.scheme) if is_wanted[0] else None
        of_weight, of_bias = _parameter_gradients(x, gradient, weight, ctx.scheme) if is_wanted[1] or is_wanted[2] else (None, None)
        return of_input, of_weight if is_wanted[1] else None, of_bias if is_wanted[2] else None, None


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, scheme: Scheme) -> Tensor:
    kernels = _combined_kernel(weight, scheme)
    voxels = x.movedim(1, -1)
    convolved = torch.empty((len(x), len(weight), *x.shape[2:]), memory_format=torch.channels_last_3d)
    out = convolved.movedim(1, -1)  # no view leaves: what follows may change the result in place
    for tiles in _parts(voxels, scheme):
        made = []
        for number, (sums, kernel) in enumerate(zip(_sums_of_slices(voxels, tiles, scheme), kernels, strict=True)):
            images = F.conv2d(_as_images(sums), kernel, bias if number == COUNTS_IN_ALL else None, padding=1)
            made.append(images.movedim(1, -1).view(*sums.shape[:-1], len(weight)))
        for place, row in enumerate(scheme.of_sums):
            _weighted_sum(row, made, out=out[:, scheme.slices * tiles.start + place : scheme.slices * tiles.stop : scheme.slices])
    return convolved


def _parameter_gradients(x: Tensor, gradient: Tensor, weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Of weights and bias: the transposes of what :func:`_convolved` does, in reverse order."""
    voxels, wanted = x.movedim(1, -1), gradient.movedim(1, -1)
    of_kernels, of_bias = weight.new_zeros(len(scheme.of_kernel), *weight.shape[:2], *weight.shape[3:]), weight.new_zeros(len(weight))
    kernel = weight[:, :, 0]  # only its size counts
    for tiles in _parts(voxels, scheme):
        slices = [
            wanted[:, scheme.slices * tiles.start + place : scheme.slices * tiles.stop : scheme.slices] for place in range(scheme.slices)
        ]
        for number, sums in enumerate(_sums_of_slices(voxels, tiles, scheme)):
            of_sum = _weighted_sum([row[number] for row in scheme.of_sums], slices)
            _, of_kernel, of_offset = torch.ops.aten.convolution_backward(
                _as_images(of_sum), _as_images(sums), kernel, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
                [False, True, number == COUNTS_IN_ALL],
            )  # fmt: skip
            of_kernels[number] += of_kernel
            if number == COUNTS_IN_ALL:
                of_bias += of_offset
    return torch.einsum("kj,koiyx->oijyx", torch.tensor(scheme.of_kernel, dtype=weight.dtype), of_kernels), of_bias


def _combined_kernel(weight: Tensor, scheme: Scheme) -> Tensor:
    """The sums of a kernel's slices, ``(sum, out_channels, in_channels, 3, 3)``."""
    return torch.einsum("kj,oijyx->koiyx", torch.tensor(scheme.of_kernel, dtype=weight.dtype), weight)


def _parts(voxels: Tensor, scheme: Scheme) -> Iterator[range]:
    """All tiles, so many at once as :data:`NUMBERS_AT_ONCE` allows."""
    num_tiles = voxels.shape[1] // scheme.slices
    at_once = max(1, NUMBERS_AT_ONCE * num_tiles // max(1, voxels.numel() // scheme.slices))
    for first in range(0, num_tiles, at_once):
        yield range(first, min(first + at_once, num_tiles))


def _sums_of_slices(voxels: Tensor, tiles: range, scheme: Scheme) -> Iterator[Tensor]:
    """Of ``(batch, n0, n1, n2, channel)`` the sums of each kind, ``(batch, tile, n1, n2, channel)``; slices beyond the volume are zero."""
    first, last = scheme.slices * tiles.start - 1, scheme.slices * tiles.stop + 1
    before, after = max(0, -first), max(0, last - voxels.shape[1])
    block = F.pad(voxels[:, first + before : last - after], (0, 0, 0, 0, 0, 0, before, after))
    width = scheme.slices * (len(tiles) - 1) + 1
    slices = [block[:, place : place + width : scheme.slices] for place in range(scheme.slices + 2)]
    return (_weighted_sum(row, slices) for row in scheme.of_slices)


def _weighted_sum(weights: Sequence[float], parts: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """The sum of those parts whose weight is not 0; begins with one whose weight is 1, where there is one."""
    terms = sorted(((weight, part) for weight, part in zip(weights, parts, strict=True) if weight), key=lambda term: term[0] != 1)
    (scale, first), *others = terms
    if not others:
        return first if scale == 1 and out is None else torch.mul(first, scale, out=out)
    begun = first if scale == 1 else torch.mul(first, scale)
    (weight, part), *rest = others
    total = torch.add(begun, part, alpha=weight, out=out)
    for weight, part in rest:
        total.add_(part, alpha=weight)
    return total


def _as_images(slices: Tensor) -> Tensor:
    """``(batch, tile, n1, n2, channel)`` → ``(batch * tile, channel, n1, n2)`` in the channels-last layout."""
    return slices.flatten(0, 1).movedim(-1, 1)
