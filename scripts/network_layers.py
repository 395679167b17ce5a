"""What the convolutions of a network saw: a network in, a record for each convolution out, in the order in which they ran."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from network_examples import (
    Example,
)
from torch import nn

from medseg3d.networks.build import family_of

Kind = Literal["full", "depthwise", "pointwise", "down", "up", "head"]
SUMS = {
    "residual_unet": r"encoder\.(\d+\.\d+)\.",
    "vnet": r"((?:encoder|decoder)\.\d+)\.",
    "u2net": r"(?:first|second)\.(\d+)\.",
}
"""Convolutions whose names agree in the group are summed with what went into the first of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A convolution as it ran. ``level`` counts the halvings before its output; ``summed`` names the sum it belongs to, if any."""

    name: str
    kind: Kind
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    before: int
    after: int
    size: tuple[int, ...]
    level: int
    is_decoder: bool
    summed: str | None

    @property
    def is_strided(self) -> bool:
        """Halves an axis."""
        return self.kind != "up" and max(self.stride) > 1


def layers_of(network: nn.Module, family: str, run: Callable[[nn.Module], object]) -> tuple[Layer, ...]:
    """The convolutions of a network in the order in which ``run`` called them."""
    seen: list[tuple[str, nn.Module, tuple[int, ...], tuple[int, ...]]] = []

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        return lambda module, inputs, output: seen.append((name, module, tuple(inputs[0].shape[2:]), tuple(output.shape[2:])))

    kinds = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d
    hooks = [module.register_forward_hook(hook(name)) for name, module in network.named_modules() if isinstance(module, kinds)]
    run(network)
    for handle in hooks:
        handle.remove()
    layers, level, last = [], 0, seen[0][2]
    for name, module, size_in, size_out in seen:
        if size_in != last:  # pooled, or enlarged, between the two convolutions
            level += 1 if all(n <= before for n, before in zip(size_in, last, strict=True)) else -1
        kind = _kind(name, module)
        if kind == "up":
            level -= 1
        elif max(module.stride) > 1:
            level += 1
        found = re.search(SUMS.get(family, "$^"), name)
        layer = Layer(
            name=name,
            kind=kind,
            kernel=tuple(module.kernel_size),
            stride=tuple(module.stride),
            before=module.in_channels,
            after=module.out_channels,
            size=size_out,
            level=level,
            is_decoder=False,
            summed=found[1] if found else None,
        )
        layers.append(layer)
        last = size_out
    deepest = max(layer.level for layer in layers)
    turn = max(place for place, layer in enumerate(layers) if layer.level == deepest)
    return tuple(replace(layer, is_decoder=place > turn) for place, layer in enumerate(layers))


def _kind(name: str, module: nn.Module) -> Kind:
    if "head" in name:
        return "head"
    if isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
        return "up"
    if module.groups > 1:
        return "depthwise"
    if max(module.stride) > 1 and module.kernel_size == module.stride:
        return "down"
    return "pointwise" if max(module.kernel_size) == 1 else "full"


def trained(made: Example) -> tuple[nn.Module, tuple[Layer, ...]]:
    """A network without data, and what its convolutions see in training, where all heads are used."""
    with torch.device("meta"):
        network = family_of(made.network).build(made.network).train()
        image = torch.empty(1, made.network.in_channels, *made.patch)
    return network, layers_of(network, made.network.family, lambda built: built(image))
