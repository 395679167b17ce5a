"""Draw the network of every preset and count what it takes: presets go in; docs/images/networks/*.svg and Markdown tables come out.

Each network is built and run on tensors without data, and what its convolutions saw is what is drawn.

    python scripts/draw_networks.py                 # draws, and prints the tables
    python scripts/draw_networks.py --write-docs    # and writes the tables into docs/concepts/networks.md
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path

import torch
from draw_flow import FLOWS, draw_flow
from network_examples import (
    Example,
    count,
    example,
    example_of,
    millions,
    times,
    universal,
)
from network_layers import Layer, layers_of, trained
from network_tables import TABLES, with_tables
from svg_sheet import MARGIN, WIDTH, sheet, text

from medseg3d.networks.style import style_of
from medseg3d.networks.u2net import SHARING
from medseg3d.planning import load_planner

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs/images/networks"
PAGE = ROOT / "docs/concepts/networks.md"
DRAWN = ("default", "residual_m", "unet_2015", "unet_3d", "unet_wide", "vnet", "u2net")


def main() -> None:
    """Write the pictures, then print the tables or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-docs", action="store_true", help="write the tables into docs/concepts/networks.md")
    options = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, picture in {**pictures(), **flows()}.items():
        (PICTURES / f"{name}.svg").write_text(picture, encoding="utf-8")
    made = {name: make() for name, make in TABLES.items()}
    if options.write_docs:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    else:
        print("\n\n".join(f"<!-- table: {name} -->\n{table}" for name, table in made.items()))


def pictures() -> dict[str, str]:
    """The SVG of every preset that is drawn as a U, by its name."""
    return {**{name: draw(name) for name in DRAWN}, "universal": draw_universal()}


def flows() -> dict[str, str]:
    """The SVG of every other preset."""
    return {name: draw_flow(name) for name in FLOWS}


BOX, TALL, PITCH, TOP = 220, 76, 102, 134
HEAD, HEAD_TALL, HEAD_GAP = 112, 40, 26
BAR, BAR_GAP, GROUP_GAP, BAR_TALL = 8, 3, 6, 18
TITLES = {
    "default": "plain U-Net",
    "residual_m": "residual-encoder U-Net",
    "unet_2015": "U-Net of 2015, without padding",
    "unet_3d": "3D U-Net of 2016, without padding",
    "unet_wide": "wide U-Net",
    "vnet": "V-Net",
    "u2net": "3D U²-Net for one dataset",
}


def draw(name: str) -> str:
    """One network as a U: the encoder falls on the left, the decoder rises on the right."""
    made = example(name)
    network, layers = trained(made)
    num_levels = 1 + max(layer.level for layer in layers)
    last = num_levels - 1
    right_end = WIDTH - MARGIN - HEAD - HEAD_GAP
    middle = (MARGIN + right_end - BOX) / 2
    shift = (middle - MARGIN - (BOX - 44)) / (last - 1)

    def left(level: int) -> float:
        return middle if level == last else MARGIN + shift * level

    def right(level: int) -> float:
        return right_end - BOX - shift * level

    def top(level: int) -> float:
        return TOP + PITCH * level

    dimensions = "2D" if made.network.dimensions == 2 else "3D"
    parts = [
        text(MARGIN, 46, name, "accent", 20, weight=600),
        text(MARGIN, 70, f"{TITLES[name]}, {dimensions}", "soft", 13.5),
        text(WIDTH - MARGIN, 46, f"{millions(count(network.parameters()))} parameters", "ink", 16, weight=600, anchor="end"),
        text(WIDTH - MARGIN, 70, f"as planned for a patch of {times(made.patch)}", "soft", 13.5, anchor="end"),
        text(MARGIN + 26, TOP - 16, f"{made.network.in_channels} channel, {times(made.patch)}", "soft", 12.5),
        down_arrow(MARGIN + 14, TOP - 34, TOP - 3),
    ]
    for level in range(num_levels):
        encoder = [layer for layer in layers if layer.level == level and not layer.is_decoder]
        decoder = [layer for layer in layers if layer.level == level and layer.is_decoder]
        parts += [stage(left(level), top(level), encoder, made.network.family)]
        if level:
            start, end = left(level - 1), left(level)
            parts += [down_arrow((end + start + BOX) / 2, top(level - 1) + TALL + 3, top(level) - 3)]
        if level == last:
            continue
        parts += [stage(right(level), top(level), decoder, made.network.family)]
        below = right(level + 1) if level + 1 < last else middle
        parts += [up_arrow((right(level) + below + BOX) / 2, top(level + 1) - 3, top(level) + TALL + 3)]
        parts += [skip(left(level) + BOX, right(level), top(level) + TALL / 2, encoder, decoder)]
        heads = [layer for layer in decoder if layer.kind == "head"]
        if heads:
            parts += [head_box(right(level) + BOX, top(level) + TALL / 2, heads[-1])]
    if made.network.family == "u2net":
        heads_at = [layer.level for layer in layers if layer.kind == "head"]
        parts += [added_up(top(level), top(level - 1)) for level in heads_at if level]
    bottom = top(last) + TALL
    explained, end = legend(bottom + 44, items_of(made, layers))
    return sheet([*parts, explained], end + 30, f"{name}: {TITLES[name]}")


def stage(x: float, y: float, layers: Sequence[Layer], family: str) -> str:
    """A box for the convolutions of one resolution on one side."""
    shown = [layer for layer in layers if layer.kind not in ("head", "up", "down")]
    features = shown[-1].after
    parts = [
        f'<rect class="box" x="{x:g}" y="{y:g}" width="{BOX}" height="{TALL}" rx="9"/>',
        text(x + 12, y + 21, f"{features} channels", "ink", 13.5, weight=600),
        text(x + BOX - 12, y + 21, times(shown[-1].size), "soft", 12, anchor="end"),
        bars(x + 12, y + 48, shown),
        text(x + 12, y + 67, caption(shown, family), "soft", 11.5),
    ]
    return "\n".join(parts)


def bars(x: float, bottom: float, layers: Sequence[Layer]) -> str:
    """A bar for each convolution, as high as its output is wide beside the stage; an arc over those that are summed with their input."""
    parts, groups, before = [], {}, None
    widest = max(layer.after for layer in layers)
    for layer in layers:
        if before is not None:
            x += BAR + (BAR_GAP if layer.summed == before.summed else GROUP_GAP)
        before = layer
        tall = BAR_TALL * max(0.35, layer.after / widest)
        fill = layer.kind
        parts.append(f'<rect class="{fill}" x="{x:g}" y="{bottom - tall:g}" width="{BAR}" height="{tall:g}" rx="1.5"/>')
        if layer.summed is not None:
            groups.setdefault(layer.summed, [x, x])[1] = x + BAR
    for start, end in groups.values():
        parts.append(f'<path class="outline" stroke-width="1.2" d="M{start:g},{bottom + 1:g}v3.5H{end:g}v-3.5"/>')
    return "".join(parts)


def caption(layers: Sequence[Layer], family: str) -> str:
    """The convolutions of a stage in words."""
    kernel = kernel_of(layers)
    num_full = sum(layer.kind == "full" for layer in layers)
    num_separable = sum(layer.kind == "depthwise" for layer in layers)
    num_sums = len({layer.summed for layer in layers if layer.summed})
    if family == "residual_unet" and num_sums:
        stem = "stem, " if any(layer.name.startswith("stem") for layer in layers) else ""
        return f"{stem}{plural(num_sums, 'residual block')} {kernel}"
    if num_separable:
        stem = "stem, " if num_full else ""
        return f"{stem}{plural(num_separable, 'separable convolution')}"
    return f"{plural(num_full, 'convolution')} {kernel}"


def kernel_of(layers: Sequence[Layer]) -> str:
    """The largest kernel."""
    return times(max((layer.kernel for layer in layers), key=prod))


def plural(number: int, word: str) -> str:
    """Two convolutions, one convolution."""
    return f"{number} {word}{'' if number == 1 else 'es' if word.endswith('s') else 's'}"


def skip(start: float, end: float, y: float, encoder: Sequence[Layer], decoder: Sequence[Layer]) -> str:
    """The features that the decoder gets beside its own; raises ValueError where it did not get them."""
    given = [layer for layer in encoder if layer.kind != "head"][-1]
    convs = [layer for layer in decoder if layer.kind != "head"]
    taker = next((b for a, b in pairwise(convs) if b.before == a.after + given.after), None)
    if taker is None:
        raise ValueError(f"no convolution of the decoder at level {given.level} takes the {given.after} channels of the encoder")
    came = convs[convs.index(taker) - 1].size
    middle = (start + end) / 2
    parts = [
        f'<path class="outline" stroke-width="1.4" d="M{start + 4:g},{y:g}H{end - 10:g}"/>',
        f'<path class="soft" d="M{end - 4:g},{y:g}l-9,-4.5v9z"/>',
        text(middle, y - 8, f"{given.after} channels", "soft", 12, anchor="middle"),
    ]
    if came != given.size:
        parts.append(text(middle, y + 17, f"cut to {times(came)}", "soft", 11.5, anchor="middle"))
    return "".join(parts)


def head_box(x: float, y: float, layer: Layer) -> str:
    """The classes that a stage gives."""
    start = WIDTH - MARGIN - HEAD
    line = f'<path class="line" stroke-width="1.4" d="M{x + 4:g},{y:g}H{start - 10:g}"/>'
    tip = f'<path class="accent" d="M{start - 4:g},{y:g}l-9,-4.5v9z"/>'
    box = f'<rect class="leaf" x="{start}" y="{y - HEAD_TALL / 2:g}" width="{HEAD}" height="{HEAD_TALL}" rx="8"/>'
    words = [text(start + HEAD / 2, y - 2, f"{layer.after} classes", "ink", 13, weight=600, anchor="middle")]
    words += [text(start + HEAD / 2, y + 13, times(layer.size), "soft", 11.5, anchor="middle")]
    return line + tip + box + "".join(words)


def added_up(below: float, above: float) -> str:
    """The scores of a stage, added to those of the next finer one."""
    x = WIDTH - MARGIN - HEAD / 2
    start, end = below + TALL / 2 - HEAD_TALL / 2 - 3, above + TALL / 2 + HEAD_TALL / 2 + 3
    return up_arrow(x, start, end) + text(x + 10, (start + end) / 2 + 5, "+", "accent", 16, weight=600)


NORMS = {"none": "", "instance": "instance norm, ", "batch": "batch norm, ", "group": "group norm, "}
ACTIVATIONS = {"leaky_relu": "leaky ReLU", "relu": "ReLU", "prelu": "PReLU", "elu": "ELU", "gelu": "GELU", "silu": "SiLU"}


def items_of(made: Example, layers: Sequence[Layer]) -> list[tuple[str, str]]:
    """What the legend explains: symbols and words."""
    style = style_of(made.network.options)
    after = NORMS[style.norm] + ACTIVATIONS[style.activation]
    kinds = {layer.kind for layer in layers}
    if "depthwise" in kinds:
        items = [("full", "convolution"), ("depthwise", f"{kernel_of(layers)} depthwise"), ("pointwise", f"pointwise; after each {after}")]
    else:
        dropout = f"dropout {style.dropout:g}, " if style.dropout else ""
        items = [("full", f"convolution, {dropout}{after}")]
        items += [("pointwise", "1×1×1 on the skip of a block")] if "pointwise" in kinds else []
    if any(layer.summed for layer in layers):
        items += [("sum", "their input is added to the last")]
    strided = next((layer for layer in layers if layer.is_strided), None)
    if strided is None:
        items += [("down", "max pooling " + times((2,) * made.network.dimensions))]
    elif strided.kind == "down":
        items += [("down", f"{times(strided.kernel)} convolution, stride 2")]
    else:
        items += [("down", "stride 2 in the first convolution")]
    up = next((layer for layer in layers if layer.kind == "up"), None)
    items += [("up", f"{times(up.kernel)} transposed convolution" if up else "nearest neighbors")]
    items += [("skip", "skip, put beside the decoder's features")]
    heads = [layer for layer in layers if layer.kind == "head"]
    if made.network.family == "u2net":
        items += [("head", "scores, added up")]
    elif len({layer.level for layer in heads}) > 1:
        items += [("head", "a loss at each in training, but at the coarsest")]
    elif len(heads) > 1:
        items += [("head", " and ".join(times(layer.kernel) for layer in heads) + " convolution")]
    return items


def legend(y: float, items: Sequence[tuple[str, str]]) -> tuple[str, float]:
    """Symbols and words in as many lines as they need, and where the last line lies."""
    parts, x = [], float(MARGIN)
    for symbol, words in items:
        wide = 28 + sum(4.4 if letter in "fijlrt,. " else 8.0 for letter in words)  # of the widest of the fonts
        if x + wide > WIDTH - MARGIN:
            x, y = float(MARGIN), y + 28
        parts.append(symbol_at(symbol, x, y) + text(x + 28, y + 4.5, words, "soft", 12.5))
        x += wide + 22
    return "".join(parts), y


def symbol_at(symbol: str, x: float, y: float) -> str:
    """One symbol of the legend, 20 wide, around y."""
    match symbol:
        case "sum":
            boxes = "".join(f'<rect class="full" x="{x + 3 + 9 * i:g}" y="{y - 8:g}" width="6" height="11" rx="1"/>' for i in range(2))
            return boxes + f'<path class="outline" stroke-width="1.2" d="M{x + 3:g},{y + 5:g}v3.5h15v-3.5"/>'
        case "down":
            return down_arrow(x + 10, y - 10, y + 10)
        case "up":
            return up_arrow(x + 10, y + 10, y - 10)
        case "skip":
            return f'<path class="outline" stroke-width="1.4" d="M{x:g},{y:g}h12"/><path class="soft" d="M{x + 20:g},{y:g}l-9,-4.5v9z"/>'
        case "head":
            return f'<rect class="leaf" x="{x:g}" y="{y - 7:g}" width="20" height="14" rx="4"/>'
        case "own" | "shared":
            return f'<rect class="{symbol}" x="{x:g}" y="{y - 7:g}" width="20" height="14" rx="4"/>'
        case _:
            return f'<rect class="{symbol}" x="{x + 6:g}" y="{y - 9:g}" width="{BAR}" height="{BAR_TALL}" rx="1.5"/>'


def down_arrow(x: float, start: float, end: float) -> str:
    """Into a coarser stage."""
    return f'<path class="line" stroke-width="1.6" d="M{x:g},{start:g}V{end - 7:g}"/><path class="accent" d="M{x:g},{end:g}l-4.5,-8h9z"/>'


def up_arrow(x: float, start: float, end: float) -> str:
    """Into a finer stage."""
    return f'<path class="line" stroke-width="1.6" d="M{x:g},{start:g}V{end + 7:g}"/><path class="accent" d="M{x:g},{end:g}l-4.5,8h9z"/>'


DOMAINS = (
    ("A", "abdominal CT", 1, 3, (128, 128, 128), (1.5, 1.5, 1.5)),
    ("B", "prostate, thick slices", 2, 3, (16, 256, 256), (3.6, 0.6, 0.6)),
    ("C", "hippocampus, small", 1, 3, (40, 56, 40), (1.0, 1.0, 1.0)),
)
"""Letter, words, channels, classes, patch and spacing of the datasets in the picture."""


def draw_universal() -> str:
    """Three datasets, the stages that they share, and one convolution in detail."""
    planner = load_planner("universal")
    made = {
        letter: replace(example_of(planner, patch, spacing, classes).network, in_channels=channels)
        for letter, _, channels, classes, patch, spacing in DOMAINS
    }
    network = universal(made).train()
    seen = {}
    for letter, _, channels, _, patch, _ in DOMAINS:
        image = torch.empty(1, channels, *patch, device="meta")
        seen[letter] = layers_of(network, "u2net", lambda built, letter=letter, image=image: built(image, letter))
    shared = count(SHARING.shared_parameters(network))
    parts = [
        text(MARGIN, 46, "universal", "accent", 20, weight=600),
        text(MARGIN, 70, "one 3D U²-Net for several datasets", "soft", 13.5),
        text(WIDTH - MARGIN, 46, f"{shared / 1e6:.2f} M parameters are shared", "ink", 16, weight=600, anchor="end"),
    ]
    parts += [text(WIDTH - MARGIN, 70, "each dataset has its own beside them, counted on the right", "soft", 13.5, anchor="end")]
    tall, pitch, top = 84, 104, 104
    block_left, block_right = 420, 760
    for number, (letter, words, channels, classes, patch, _) in enumerate(DOMAINS):
        y = top + pitch * number
        middle = y + tall / 2
        own = count(network.domains[letter].parameters())
        parts += [
            f'<rect class="box" x="{MARGIN}" y="{y}" width="220" height="{tall}" rx="9"/>',
            text(MARGIN + 14, y + 27, f"{letter}: {words}", "ink", 13.5, weight=600),
            text(MARGIN + 14, y + 48, f"{plural(channels, 'channel')}, {plural(classes, 'class')}", "soft", 12.5),
            text(MARGIN + 14, y + 67, times(patch), "soft", 12.5),
            across(MARGIN + 222, 282, middle),
            f'<rect class="own" x="284" y="{middle - 22:g}" width="106" height="44" rx="8"/>',
            text(337, middle - 3, f"stem of {letter}", "ink", 13, weight=600, anchor="middle"),
            text(337, middle + 14, f"{channels} → {seen[letter][0].after}", "soft", 12, anchor="middle"),
            across(392, block_left - 2, middle),
            across(block_right + 2, 792, middle),
            f'<rect class="own" x="794" y="{middle - 22:g}" width="118" height="44" rx="8"/>',
            text(853, middle - 3, f"heads of {letter}", "ink", 13, weight=600, anchor="middle"),
            text(853, middle + 14, f"{classes} classes", "soft", 12, anchor="middle"),
            text(WIDTH - MARGIN, middle - 3, f"{own:,}", "ink", 14, weight=600, anchor="end"),
            text(WIDTH - MARGIN, middle + 15, f"parameters of {letter}'s own", "soft", 12, anchor="end"),
        ]
    block_tall = pitch * (len(DOMAINS) - 1) + tall
    parts += [f'<rect class="shared" x="{block_left}" y="{top}" width="{block_right - block_left}" height="{block_tall}" rx="12"/>']
    parts += shared_stages(block_left, block_right, top, block_tall, seen)
    parts += one_convolution(top + block_tall + 40)
    bottom = top + block_tall + 40 + 196
    items = [
        ("shared", "shared: pointwise convolutions of all stages"),
        ("own", "a dataset's own: stem, depthwise convolutions, norms, heads"),
    ]
    explained, end = legend(bottom, items)
    return sheet([*parts, explained], end + 30, "universal: one 3D U2-Net for several datasets")


def shared_stages(left: float, right: float, top: float, tall: float, seen: Mapping[str, Sequence[Layer]]) -> list[str]:
    """A small U: a box per stage with its channels, and the datasets that went through it."""
    users: dict[int, list[str]] = {}
    channels: dict[int, int] = {}
    for letter, layers in seen.items():
        for layer in layers:
            if layer.name.startswith("shared.first"):
                channels[layer.level] = layer.after
                users.setdefault(layer.level, []).append(letter)
    parts = [text((left + right) / 2, top + 26, "shared stages and their channels", "accent", 14, weight=600, anchor="middle")]
    pitch = (tall - 62) / len(channels)
    middle = (left + right) / 2
    for level, features in sorted(channels.items()):
        y = top + 42 + pitch * level
        half = 104 - 13 * level
        outline = f"M{middle - half:g},{y:g}h{2 * half:g}l-9,{pitch - 8:g}h{18 - 2 * half:g}z"
        parts.append(f'<path class="pointwise" d="{outline}" opacity="0.18"/>')
        parts.append(text(middle, y + pitch / 2 + 1, f"{features}", "ink", 13, weight=600, anchor="middle"))
        parts.append(text(right - 14, y + pitch / 2 + 1, " ".join(users[level]), "soft", 12.5, anchor="end"))
        parts.append(text(left + 14, y + pitch / 2 + 1, f"stage {level + 1}", "soft", 12.5))
    parts.append(text(middle, top + tall - 10, "of encoder and decoder", "soft", 12, anchor="middle"))
    return parts


def one_convolution(top: float) -> list[str]:
    """Every convolution between stem and heads: a dataset's depthwise one, then the shared pointwise one."""
    parts = [text(MARGIN, top + 6, "Every convolution between stem and heads", "ink", 14.5, weight=600)]
    pitch, tall = 44, 34
    middle = top + 26 + pitch + tall / 2
    for number, (letter, *_) in enumerate(DOMAINS):
        y = top + 26 + pitch * number
        for x, wide, words in (
            (150, 264, f"depthwise of {letter}, norm, leaky ReLU"),
            (700, 214, f"norm of {letter}, leaky ReLU"),
        ):
            parts.append(f'<rect class="own" x="{x}" y="{y}" width="{wide}" height="{tall}" rx="8"/>')
            parts.append(text(x + wide / 2, y + 22, words, "ink", 12.5, anchor="middle"))
        parts.append(text(MARGIN, y + 22, f"features of {letter}", "soft", 12.5))
        parts.append(across(MARGIN + 88, 148, y + tall / 2))
        parts.append(across(416, 460, y + tall / 2))
        parts.append(across(654, 698, y + tall / 2))
        parts.append(across(916, 960, y + tall / 2))
        parts.append(text(968, y + 22, f"features of {letter}", "soft", 12.5))
    parts.append(f'<rect class="shared" x="462" y="{top + 26}" width="190" height="{2 * pitch + tall}" rx="10"/>')
    parts.append(text(557, middle - 2, "pointwise, shared", "ink", 13.5, weight=600, anchor="middle"))
    parts.append(text(557, middle + 17, "the same numbers for all", "soft", 12, anchor="middle"))
    return parts


def across(start: float, end: float, y: float) -> str:
    """An arrow to the right."""
    return f'<path class="line" stroke-width="1.4" d="M{start:g},{y:g}H{end - 7:g}"/><path class="accent" d="M{end:g},{y:g}l-8,-4.5v9z"/>'


if __name__ == "__main__":
    main()
