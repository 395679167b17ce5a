"""Draw what feeds what in a network: its blocks by resolution and by order, read off the code. A preset goes in, an SVG comes out."""

from __future__ import annotations

from html import escape
from math import prod

import torch
from network_examples import count, example, millions, times
from network_flow import Block, flow_of
from svg_sheet import MARGIN, WIDTH, sheet, text

from medseg3d.networks.build import family_of

FLOWS = {
    "unet_plus_plus": "UNet++: a triangle of nodes, a head of each level",
    "unet_plus": "UNet+: a node sees the one before it in its row",
    "unet_e": "U-Net^e: U-Nets of all depths with one encoder",
    "attention_unet": "Attention U-Net: gates on the skips",
    "fcn": "FCN-8s: scores of three stages, added on the way up",
    "segnet": "SegNet: the places of the maxima cross over, no features",
    "dla": "Deep Layer Aggregation: trees, and an aggregating way up",
    "transunet": "TransUNet: a transformer between encoder and decoder",
    "deeplab_v3": "DeepLabv3: stages that dilate, and a pyramid of dilations",
    "pspnet": "PSPNet: means over grids of four sizes",
    "isnet": "ISNet: context of the image and of the classes",
    "mcibi": "MCIBI: a memory of the classes beyond the image",
    "icnet": "ICNet: the image at three resolutions",
    "bisenet": "BiSeNet: a path for details, one for context",
    "dfanet": "DFANet: one light encoder three times",
    "espnet": "ESPNet: pyramids of dilated convolutions",
    "swiftnet": "SwiftNet: a light ladder on ResNet-18",
    "fast_scnn": "Fast-SCNN: a common stem, two branches",
    "dfnet": "DF-Net: a searched encoder, a light decoder",
    "msfnet": "MSFNet: all stages fused, and boundaries",
    "dynunet": "MONAI's DynUNet",
    "segresnet": "MONAI's SegResNet",
    "monai_attention_unet": "MONAI's Attention U-Net",
    "mednext": "MONAI's MedNeXt",
}
"""By preset; the others are drawn as a U by ``draw_networks``. MONAI's Swin UNETR does not run without data, and is not drawn."""
LABELS = 112
"""Room for the sizes of the rows."""
TOP, ROW, BOX_TALL = 118, 74, 36
MOST_WIDE = 92
GAP = 16
"""Between two boxes: room for a line and its tip."""
SUPERSCRIPT = {2: "²", 3: "³"}


def draw_flow(name: str) -> str:
    """The picture of a preset."""
    made = example(name)
    blocks = flow_of(made)
    pitch = min(MOST_WIDE + GAP, (WIDTH - 2 * MARGIN - LABELS) / (1 + max(block.column for block in blocks)))
    wide = pitch - GAP
    sizes = {block.row: block.size for block in blocks}
    by_name = {block.name: block for block in blocks}
    with torch.device("meta"):
        parameters = millions(count(family_of(made.network).build(made.network).parameters()))
    dimensions = "2D" if made.network.dimensions == 2 else "3D"
    parts = [
        text(MARGIN, 46, name, "accent", 20, weight=600),
        text(MARGIN, 70, f"{FLOWS[name]}, {dimensions}", "soft", 13.5),
        text(WIDTH - MARGIN, 46, f"{parameters} parameters", "ink", 16, weight=600, anchor="end"),
        text(WIDTH - MARGIN, 70, f"as planned for a patch of {times(made.patch)}", "soft", 13.5, anchor="end"),
    ]

    def left(block: Block) -> float:
        return MARGIN + LABELS + pitch * block.column

    def middle(block: Block) -> float:
        return TOP + ROW * block.row + BOX_TALL / 2

    for row, size in sizes.items():
        parts.append(text(MARGIN, TOP + ROW * row + BOX_TALL / 2 + 4, times(size) if prod(size) > 1 else "one voxel", "soft", 12))
    for block in blocks:
        parts += [_line(left(by_name[each]) + wide, middle(by_name[each]), left(block), middle(block), pitch) for each in block.inputs]
        if block.reads_image and not block.inputs:
            parts.append(_line(left(block) - GAP, middle(block), left(block), middle(block), pitch))
    for block in blocks:
        parts.append(_box(block, left(block), TOP + ROW * block.row, wide))
    bottom = TOP + ROW * (1 + max(sizes)) + 6
    words = (
        "A box: the channels of its result; its layers, and their largest kernel (none: matrix products). A row: the size of the result. "
        "Gray lines pass over boxes."
    )
    parts.append(text(MARGIN, bottom, words, "soft", 12))
    return sheet(parts, bottom + 26, f"{name}: {FLOWS[name]}")


def _box(block: Block, x: float, y: float, wide: float) -> str:
    kind = "leaf" if block.is_head else "shared" if block.is_attention else "box"
    words = f"{block.channels} classes" if block.is_head and wide > 70 else str(block.channels)
    small = min(11.0, 1.75 * wide / max(1, len(_inside(block))))
    return "".join(
        [
            f'<g><title>{escape(block.name)}</title><rect class="{kind}" x="{x:g}" y="{y:g}" width="{wide:g}" height="{BOX_TALL}" rx="7"/>',
            text(x + wide / 2, y + 15, words, "ink", 12.5 if wide > 40 else 11, weight=600, anchor="middle"),
            text(x + wide / 2, y + 29, _inside(block), "soft", small, anchor="middle"),
            "</g>",
        ]
    )


def _inside(block: Block) -> str:
    """3×3³: three layers of which the largest has a kernel of three voxels per axis."""
    if not block.kernel:
        return f"{block.layers} layers"
    edges = set(block.kernel)
    kernel = f"{block.kernel[0]}{SUPERSCRIPT[len(block.kernel)]}" if len(edges) == 1 else "×".join(map(str, block.kernel))
    return f"{block.layers} × {kernel}"


def _line(x0: float, y0: float, x1: float, y1: float, pitch: float) -> str:
    """From the right of a box to the left of another: straight to the next one, over the boxes between otherwise."""
    tip = f"M{x1:g},{y1:g}l-7,-3.5v7z"
    end = x1 - 6
    if x1 - x0 <= pitch:
        bend = (end - x0) / 2
        line = f"M{x0:g},{y0:g}C{x0 + bend:g},{y0:g} {end - bend:g},{y1:g} {end:g},{y1:g}"
        return f'<path class="line" stroke-width="1.3" d="{line}"/><path class="accent" d="{tip}"/>'
    if y0 == y1:  # higher, the farther
        lane, start, turn = y0 - BOX_TALL / 2 - min(26, 5 + (x1 - x0) / pitch * 2.2), y0 - 6, 26.0
    else:
        lane, start, turn = max(y0, y1) - ROW / 2, y0, 18.0
    half = turn / 2
    out = f"M{x0:g},{start:g}C{x0 + half:g},{start:g} {x0 + half:g},{lane:g} {x0 + turn:g},{lane:g}"
    line = f"{out}H{end - turn:g}C{end - 8:g},{lane:g} {end - 8:g},{y1:g} {end:g},{y1:g}"
    return f'<path class="outline" stroke-width="1.1" d="{line}"/><path class="soft" d="{tip}"/>'
