"""Ways up: from coarse features to finer ones, in 2D and 3D, by a whole factor per axis.

Each is a module ``(batch, in_channels, n0, …)`` → ``(batch, out_channels, n0 · factor, …)``. Interpolations project first, on the coarse
grid: a pointwise convolution and an interpolation may change places, and there are ``prod(factors)`` times fewer voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg3d.networks.convolutions import convolution, transposed_convolution
from medseg3d.plan import Option

Factors = Sequence[int]


class Builder(Protocol):
    """Makes a way up."""

    def __call__(self, in_channels: int, out_channels: int, factors: Factors) -> nn.Module: ...


class Interpolation(nn.Module):
    """A pointwise convolution, then an interpolation."""

    def __init__(
        self, in_channels: int, out_channels: int, factors: Factors, interpolate: Callable[[Tensor, tuple[int, ...]], Tensor]
    ) -> None:
        super().__init__()
        unit = (1,) * len(factors)
        self.project = convolution(in_channels, out_channels, unit, unit)
        self.factors, self.interpolate = tuple(factors), interpolate

    def forward(self, x: Tensor) -> Tensor:
        """As the module's docstring says."""
        return self.interpolate(self.project(x), self.factors)


def nearest(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Every voxel repeated."""
    for axis, factor in enumerate(factors, start=2):
        x = x if factor == 1 else x.repeat_interleave(factor, axis)
    return x


def linear(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Between the centers of voxels, an axis after the other."""
    size = tuple(length * factor for length, factor in zip(x.shape[2:], factors, strict=True))
    return F.interpolate(x, size, mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False)


CUBIC = -0.75
"""The slope at 1 of the cubic kernel (Keys 1981), as torch has it in 2D."""


def cubic(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """Keys' cubic convolution between the centers of voxels, an axis after the other; in 2D torch's ``bicubic``."""
    for axis, factor in enumerate(factors, start=2):
        if factor > 1:
            x = _cubic_along(x, axis, factor)
    return x


def _cubic_along(x: Tensor, axis: int, factor: int) -> Tensor:
    length = x.shape[axis]
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, length - 1, 1)
    padded = torch.cat((first, first, x, last, last), axis)
    phases = []
    for phase in range(factor):
        place = (phase + 0.5) / factor - 0.5  # of the new voxel, from the center of the old one
        start, rest = math.floor(place), place - math.floor(place)
        taps = [_cubic_weight(rest + 1 - tap) for tap in range(4)]
        phases.append(sum(weight * padded.narrow(axis, start + 1 + tap, length) for tap, weight in enumerate(taps)))
    return torch.stack([torch.as_tensor(phase) for phase in phases], axis + 1).flatten(axis, axis + 1)


def _cubic_weight(distance: float) -> float:
    d = abs(distance)
    if d <= 1:
        return (CUBIC + 2) * d**3 - (CUBIC + 3) * d**2 + 1
    return CUBIC * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def shuffled(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    """``(batch, channel · prod(factors), n0, …)`` → ``(batch, channel, n0 · factor, …)``; with equal factors torch's pixel shuffle."""
    dimensions = len(factors)
    batch, channels, *size = x.shape
    x = x.reshape(batch, channels // math.prod(factors), *factors, *size)
    order = [0, 1, *(place for axis in range(dimensions) for place in (2 + dimensions + axis, 2 + axis))]
    return x.permute(order).reshape(batch, -1, *(n * f for n, f in zip(size, factors, strict=True)))


class PixelShuffle(nn.Module):
    """A convolution makes all voxels between as channels (Shi et al. 2016).

    It begins with all of them alike, without a checkerboard (Aitken et al. 2017).
    With a ``kernel`` of 1 this is DUpsampling (Tian et al. 2019), without its reconstruction loss.
    """

    def __init__(self, in_channels: int, out_channels: int, factors: Factors, *, kernel: int = 3) -> None:
        super().__init__()
        self.factors = tuple(factors)
        edges = tuple(kernel if factor > 1 else 1 for factor in factors)
        self.conv = convolution(in_channels, out_channels * math.prod(factors), edges, (1,) * len(factors))

    def after_initialization(self) -> None:
        """Let all voxels between begin alike."""
        weight: Tensor = self.conv.weight  # type: ignore[assignment]
        with torch.no_grad():
            weight.copy_(weight[:: math.prod(self.factors)].repeat_interleave(math.prod(self.factors), 0))

    def forward(self, x: Tensor) -> Tensor:
        """As the module's docstring says."""
        return shuffled(self.conv(x), self.factors)


class MetaUpscale(nn.Module):
    """A small perceptron predicts the weights for each voxel between from where it lies, so that any factor has weights (Hu et al. 2019).

    The weights are kernels of 3 voxels on projected channels, each by itself: the published full ones would be ``out_channels`` times more.
    """

    HIDDEN = 64

    def __init__(self, in_channels: int, out_channels: int, factors: Factors) -> None:
        super().__init__()
        unit = (1,) * len(factors)
        self.factors, self.kernel = tuple(factors), tuple(3 if factor > 1 else 1 for factor in factors)
        self.project = convolution(in_channels, out_channels, unit, unit)
        num_weights = out_channels * math.prod(self.kernel)
        self.predict = nn.Sequential(nn.Linear(2 * len(factors), self.HIDDEN), nn.ReLU(), nn.Linear(self.HIDDEN, num_weights))

    def after_initialization(self) -> None:
        """Begin as nearest."""
        last: nn.Linear = self.predict[-1]  # type: ignore[assignment]
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.zero_()
            last.bias.view(-1, math.prod(self.kernel))[:, math.prod(self.kernel) // 2] = 1

    def forward(self, x: Tensor) -> Tensor:
        """As the module's docstring says."""
        x = self.project(x)
        channels, conv = x.shape[1], F.conv2d if len(self.factors) == 2 else F.conv3d
        places = [
            [value for phase, factor in zip(phases, self.factors, strict=True) for value in ((phase + 0.5) / factor - 0.5, 1 / factor)]
            for phases in product(*map(range, self.factors))
        ]
        weights: Tensor = self.predict(torch.tensor(places, device=x.device))
        kernels = weights.view(len(places), channels, 1, *self.kernel).transpose(0, 1).flatten(0, 1)  # all places of a channel together
        padding = tuple((k - 1) // 2 for k in self.kernel)
        return shuffled(conv(x, kernels.to(x.dtype), padding=padding, groups=channels), self.factors)


class Carafe(nn.Module):
    """Every new voxel is a mean over its neighborhood, with weights that the features predict (Wang et al. 2019).

    Compressed to 64 channels, a kernel of 3 predicts the weights, of 5 voxels per axis that grows (3 in 3D, where 125 weights per voxel
    would take more memory than all features).
    """

    COMPRESSED = 64

    def __init__(self, in_channels: int, out_channels: int, factors: Factors) -> None:
        super().__init__()
        unit, edge = (1,) * len(factors), 5 if len(factors) == 2 else 3
        self.factors, self.kernel = tuple(factors), tuple(edge if factor > 1 else 1 for factor in factors)
        compressed = min(self.COMPRESSED, in_channels)
        self.project = convolution(in_channels, out_channels, unit, unit)
        self.compress = convolution(in_channels, compressed, unit, unit)
        num = math.prod(self.kernel) * math.prod(factors)
        self.encode = convolution(compressed, num, tuple(3 if factor > 1 else 1 for factor in factors), unit)

    def forward(self, x: Tensor) -> Tensor:
        """As the module's docstring says."""
        weights = shuffled(self.encode(self.compress(x)), self.factors).softmax(1)
        x = self.project(x)
        size = x.shape[2:]
        padded = F.pad(x, [side for k in reversed(self.kernel) for side in ((k - 1) // 2,) * 2])
        result = torch.zeros((), device=x.device, dtype=x.dtype)
        for number, offsets in enumerate(product(*map(range, self.kernel))):
            shifted = padded
            for axis, (offset, length) in enumerate(zip(offsets, size, strict=True), start=2):
                shifted = shifted.narrow(axis, offset, length)
            result = result + nearest(shifted, self.factors) * weights[:, number : number + 1]
        return result


class Unprojected(nn.Module):
    """An interpolation alone: all channels stay."""

    def __init__(self, factors: Factors, interpolate: Callable[[Tensor, tuple[int, ...]], Tensor]) -> None:
        super().__init__()
        self.factors, self.interpolate = tuple(factors), interpolate

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, n0, …)`` → ``(batch, channels, n0 · factor, …)``."""
        return self.interpolate(x, self.factors)


def _interpolation(how: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Builder:
    def build(in_channels: int, out_channels: int, factors: Factors) -> nn.Module:
        return Interpolation(in_channels, out_channels, factors, how)

    return build


def _transposed(in_channels: int, out_channels: int, factors: Factors) -> nn.Module:
    return transposed_convolution(in_channels, out_channels, factors)


def _dupsampling(in_channels: int, out_channels: int, factors: Factors) -> nn.Module:
    return PixelShuffle(in_channels, out_channels, factors, kernel=1)


INTERPOLATIONS = {"nearest": nearest, "linear": linear, "cubic": cubic}
"""Those of the ways up that need no weights."""
UPSAMPLING: dict[str, Builder] = {
    "transposed": _transposed,
    **{name: _interpolation(how) for name, how in INTERPOLATIONS.items()},
    "pixel_shuffle": PixelShuffle,
    "dupsampling": _dupsampling,
    "meta_upscale": MetaUpscale,
    "carafe": Carafe,
}
"""The ways up by their name in a plan. Max-unpooling needs the places of the maxima and is a network of its own, SegNet."""


def way_up(name: str, in_channels: int, out_channels: int, factors: Factors, *, projects: bool) -> tuple[nn.Module, int]:
    """A way up and the channels that it gives: ``out_channels``, or those that come in where it does not project them."""
    if projects:
        return UPSAMPLING[name](in_channels, out_channels, factors), out_channels
    return Unprojected(factors, INTERPOLATIONS[name]), in_channels


def unprojected(options: Mapping[str, Option]) -> Iterable[str]:
    """The problem of a plan that leaves out a projection which is part of its way up."""
    if not options["up_projection"] and options["upsampling"] not in INTERPOLATIONS:
        yield f"up_projection = false needs an upsampling of {', '.join(INTERPOLATIONS)}, found {options['upsampling']}"
