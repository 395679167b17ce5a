"""What feeds what in a network: a network in, its blocks with their inputs out, read off the graph that torch keeps for the backward pass.

A block is a module whose convolutions all give one size; the network runs without data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from network_examples import Example
from torch import nn

from medseg3d.networks.build import family_of

LAYERS = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear
FEW_BLOCKS, MANY_LAYERS = 9, 24
"""With fewer blocks those of more layers are shown in their parts, so that a picture says more than the name of an encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part of a network: ``inputs`` are the names of the blocks that it reads, ``reads_image`` whether it reads the image as well.

    ``row`` counts the sizes from the finest on, ``column`` how many blocks lie before it at least. ``kernel`` is its largest.
    """

    name: str
    layers: int
    kernel: tuple[int, ...]
    channels: int
    size: tuple[int, ...]
    inputs: tuple[str, ...]
    reads_image: bool
    is_head: bool
    is_attention: bool
    row: int = 0
    column: int = 0


Results = dict[Any, list[range]]
"""By the node of a result, the layers of each module that gives it, the innermost module first."""


@dataclass(slots=True, kw_only=True)
class _Leaf:
    name: str
    module: Any
    node: Any
    size: tuple[int, ...]
    order: int


def flow_of(made: Example) -> tuple[Block, ...]:
    """The blocks of a network in training, where all heads are used, in the order in which they first ran."""
    with torch.device("meta"):
        network = family_of(made.network).build(made.network).train()
        image = torch.empty(2, made.network.in_channels, *made.patch)
    leaves, known = _run(network, image)
    group_of, sources = _groups(leaves, known)
    return _placed(_blocks(leaves, sources, group_of, num_classes=made.network.num_classes))


def _run(network: nn.Module, image: torch.Tensor) -> tuple[list[_Leaf], Results]:
    """The layers, and by the node of each module's result the layers in it: what a block sums up is its own result."""
    leaves: list[_Leaf] = []
    known: Results = {}
    starts: dict[str, int] = {}

    def before(name: str) -> Any:
        def note(module: Any, inputs: Any) -> None:
            starts[name] = len(leaves)

        return note

    def after(name: str) -> Any:
        def note(module: Any, inputs: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor) or output.grad_fn is None:
                return
            if _is_layer(module):
                size = (leaves[-1].size if leaves else ()) if isinstance(module, nn.Linear) else tuple(output.shape[2:])
                leaves.append(_Leaf(name=name, module=_described(module), node=output.grad_fn, size=size, order=len(leaves)))
            if name and len(leaves) > starts[name]:
                known.setdefault(output.grad_fn, []).append(range(starts[name], len(leaves)))

        return note

    inner = {child for module in network.modules() if getattr(module, "reads_weights_itself", False) for child in module.children()}
    hooks = []
    for name, module in network.named_modules():
        if module not in inner:
            hooks += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    network(image)
    for handle in hooks:
        handle.remove()
    return leaves, known


def _described(module: nn.Module) -> nn.Module:
    """The convolution whose numbers a module of another kind uses."""
    return next(module.children()) if getattr(module, "reads_weights_itself", False) else module


def _is_layer(module: nn.Module) -> bool:
    """A convolution of any kind, or a matrix product."""
    return isinstance(module, LAYERS) or getattr(module, "reads_weights_itself", False)


def _sources(leaf: _Leaf, known: Results, group_of: Mapping[int, str]) -> set[int]:
    """The layers whose results a layer reads; the result of a module that lies in one block stands for all that is in its sum."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting = [node for node, _ in leaf.node.next_functions if node is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        inside = [layers for layers in known.get(node, ()) if leaf.order not in layers and len({group_of[each] for each in layers}) == 1]
        if inside:
            found.add(inside[0][-1])
        else:
            waiting += [before for before, _ in node.next_functions if before is not None]
    return found


def _groups(leaves: Sequence[_Leaf], known: Results) -> tuple[dict[int, str], dict[int, set[int]]]:
    """The block of each layer, the shortest part of its name that gives one size and no circle with other blocks; and what each reads."""
    depth = {leaf.order: 1 for leaf in leaves}

    def names() -> dict[int, str]:
        return {leaf.order: ".".join(leaf.name.split(".")[: depth[leaf.order]]) for leaf in leaves}

    while True:
        now = names()
        sources = {leaf.order: _sources(leaf, known, now) for leaf in leaves}
        deeper: list[_Leaf] = []
        for wrong in (_of_several_sizes(leaves, sources, now), _in_circles(now, sources), _large(now)):
            deeper = [leaf for leaf in leaves if now[leaf.order] in wrong and depth[leaf.order] < len(leaf.name.split("."))]
            if deeper:  # of a circle only the coarsest: that may open it
                shallowest = min(depth[leaf.order] for leaf in deeper)
                deeper = [leaf for leaf in deeper if depth[leaf.order] == shallowest]
                break
        if not deeper:
            return now, sources
        for leaf in deeper:
            depth[leaf.order] += 1


def _large(group_of: Mapping[int, str]) -> set[str]:
    """The blocks to show in their parts, where there are few."""
    counts = Counter(group_of.values())
    return {name for name, count in counts.items() if count > MANY_LAYERS} if len(counts) < FEW_BLOCKS else set()


def _of_several_sizes(leaves: Sequence[_Leaf], sources: Mapping[int, set[int]], group_of: Mapping[int, str]) -> set[str]:
    """The blocks that give results of several sizes, or are of more than two inside: one, and what a stride makes of it."""
    read_outside = {before for order, found in sources.items() for before in found if group_of[before] != group_of[order]}
    inside: dict[str, set[tuple[int, ...]]] = {}
    given: dict[str, set[tuple[int, ...]]] = {}
    for leaf in leaves:
        inside.setdefault(group_of[leaf.order], set()).add(leaf.size)
        if leaf.order in read_outside:
            given.setdefault(group_of[leaf.order], set()).add(leaf.size)
    return {name for name, sizes in inside.items() if len(sizes) > 2 or len(given.get(name, ())) > 1}


def _edges(group_of: Mapping[int, str], sources: Mapping[int, set[int]]) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {name: set() for name in group_of.values()}
    for order, before in sources.items():
        edges[group_of[order]] |= {group_of[each] for each in before} - {group_of[order]}
    return edges


def _in_circles(group_of: Mapping[int, str], sources: Mapping[int, set[int]]) -> set[str]:
    """The blocks that read what was made of their own results."""
    edges = _edges(group_of, sources)
    left = dict(edges)
    while free := [name for name, before in left.items() if not before & left.keys()]:
        for name in free:
            del left[name]
    while free := [name for name in left if not any(name in before for other, before in left.items() if other != name)]:
        for name in free:
            del left[name]
    return set(left)


def _blocks(leaves: Sequence[_Leaf], sources: Mapping[int, set[int]], group_of: Mapping[int, str], *, num_classes: int) -> dict[str, Block]:
    edges = _edges(group_of, sources)
    blocks = {}
    for name in dict.fromkeys(group_of[leaf.order] for leaf in leaves):
        own = [leaf for leaf in leaves if group_of[leaf.order] == name]
        convolutions = [leaf for leaf in own if not isinstance(leaf.module, nn.Linear)]
        shown = (convolutions or own)[-1]
        channels = _channels(shown.module)
        kernels = [tuple(leaf.module.weight.shape[2:]) for leaf in convolutions]
        blocks[name] = Block(
            name=name,
            layers=len(own),
            kernel=max(kernels, key=prod) if kernels else (),
            channels=channels,
            size=own[-1].size,
            inputs=tuple(sorted(edges[name] - {first for first in edges[name] if _is_summed_on(first, edges[name], edges)})),
            reads_image=not sources[own[0].order] or any(not sources[leaf.order] for leaf in own),
            is_head=channels == num_classes and len(own) == 1,
            is_attention=not convolutions,
        )
    return blocks


def _is_summed_on(first: str, inputs: set[str], edges: Mapping[str, set[str]]) -> bool:
    """A block of a chain whose result a later block of the chain has in its sum, and so stands for it."""
    chain = first.rpartition(".")[0]
    is_number = first.rpartition(".")[2].isdigit()
    return is_number and any(other.rpartition(".")[0] == chain and first in edges[other] for other in inputs - {first})


def _channels(module: Any) -> int:
    """Of the result."""
    given = getattr(module, "out_channels", None) or getattr(module, "out_features", None)
    return int(given or module.weight.shape[0])


def _placed(blocks: Mapping[str, Block]) -> tuple[Block, ...]:
    sizes = sorted({block.size for block in blocks.values()}, key=lambda size: -prod(size))
    column: dict[str, int] = {}

    def place(name: str) -> int:
        if name not in column:
            column[name] = 1 + max((place(before) for before in blocks[name].inputs), default=-1)
        return column[name]

    taken: set[tuple[int, int]] = set()
    placed = []
    for name in sorted(blocks, key=lambda each: (place(each), list(blocks).index(each))):
        row, at = sizes.index(blocks[name].size), max([place(name), *(1 + column[before] for before in blocks[name].inputs)])
        while (row, at) in taken:
            at += 1
        taken.add((row, at))
        column[name] = at
        placed.append(replace(blocks[name], row=row, column=at))
    return tuple(placed)
