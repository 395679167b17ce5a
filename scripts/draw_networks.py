"""Draw the network of every preset and count what it takes: presets go in; docs/images/networks/*.svg and Markdown tables come out.

Each network is built and run on tensors without data, and what its convolutions saw is what is drawn.

    python scripts/draw_networks.py                 # draws, and prints the tables
    python scripts/draw_networks.py --write-docs    # and writes the tables into docs/concepts/networks.md
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from html import escape
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from medseg3d.errors import PlanError
from medseg3d.networks.build import NETWORKS, build_universal, checked_plan, family_of, output_size
from medseg3d.networks.cost import StepCost, step_cost
from medseg3d.networks.style import style_of
from medseg3d.networks.u2net import SHARING, U2Net
from medseg3d.plan import NetworkPlan, Option
from medseg3d.planning import load_planner, read_nnunet_fingerprint
from medseg3d.planning.patch import design_configuration
from medseg3d.planning.planner import Planner
from medseg3d.planning.stages import network_plan_of
from medseg3d.planning.summary import DatasetSummary
from medseg3d.planning.topology import derive_topology

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs/images/networks"
PAGE = ROOT / "docs/concepts/networks.md"
GIB = 2**30

CUBE, SLICE = (128, 128, 128), (512, 512)
EXAMPLES: dict[str, tuple[int, ...]] = {
    "default": CUBE,
    "small": CUBE,
    "residual_m": CUBE,
    "unet_2015": (572, 572),  # as published
    "unet_3d": (116, 132, 132),  # as published, slices first
    "unet_wide": SLICE,
    "vnet": CUBE,
    "vnet_batch_norm": CUBE,
    "u2net": CUBE,
}
"""The patch of each preset's example plan: one channel, three classes, and voxels of equal edges."""
DRAWN = ("default", "residual_m", "unet_2015", "unet_3d", "unet_wide", "vnet", "u2net")
BATCH = 2
FAMILY_TABLES = {
    "plain": ("default", "small"),
    "residual": ("residual_m",),
    "classic": ("unet_2015", "unet_3d", "unet_wide"),
    "vnet": ("vnet", "vnet_batch_norm"),
    "u2net": ("u2net",),
}
SPACING, SHAPE, CASES = (2.5, 0.8, 0.8), (200, 512, 512), 40
FINGERPRINT = {
    "spacings": [SPACING] * 3,
    "shapes_after_crop": [SHAPE] * 3,
    "median_relative_size_after_cropping": 1.0,
    "foreground_intensity_properties_per_channel": {
        "0": {"mean": 90.0, "median": 95.0, "std": 40.0, "min": -200.0, "max": 400.0, "percentile_00_5": -30.0, "percentile_99_5": 210.0}
    },
}
DESCRIPTION = {
    "name": "abdominal CT",
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "spleen": 2},
    "numTraining": CASES,
    "file_ending": ".nii.gz",
}
PLANNED = (
    ("default", "3d_fullres"),
    ("default", "2d"),
    ("small", "3d_fullres"),
    ("residual_m", "3d_fullres"),
    ("residual_l", "3d_fullres"),
    ("residual_xl", "3d_fullres"),
    ("unet_2015", "2d"),
    ("unet_3d", "3d_fullres"),
    ("unet_wide", "2d"),
    ("vnet", "3d_fullres"),
    ("vnet_batch_norm", "3d_fullres"),
    ("u2net", "3d_fullres"),
)
"""The configurations that the table of the made-up dataset shows."""


def main() -> None:
    """Write the pictures, then print the tables or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-docs", action="store_true", help="write the tables into docs/concepts/networks.md")
    options = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        (PICTURES / f"{name}.svg").write_text(picture, encoding="utf-8")
    made = {**quick_tables(), "plans": plans_table()}
    if options.write_docs:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    else:
        print("\n\n".join(f"<!-- table: {name} -->\n{table}" for name, table in made.items()))


def pictures() -> dict[str, str]:
    """The SVG of every preset that is drawn, by its name."""
    return {**{name: draw(name) for name in DRAWN}, "universal": draw_universal()}


def quick_tables() -> dict[str, str]:
    """Every table but that of the made-up dataset's plans, by the name of its place in the page."""
    return {
        **{name: examples_table(presets) for name, presets in FAMILY_TABLES.items()},
        "multipliers": multipliers_table(),
        "options": options_table(),
        "effects": effects_table(),
        "universal": universal_table(),
    }


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """A page with its tables replaced; each stands between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    for name, table in tables.items():
        place = re.compile(rf"(<!-- table: {name} -->\n)(?:(?!<!--).)*(<!-- end -->)", re.DOTALL)
        text, found = place.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if found != 1:
            raise ValueError(f"the page has {found} places for the table {name}, expected one")
    return text


# The plans


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A network with the patch and the batch that it is counted and drawn for."""

    planner: Planner
    network: NetworkPlan
    patch: tuple[int, ...]
    batch: int = BATCH

    def cost(self) -> StepCost:
        """A training step in bf16."""
        return step_cost(self.network, self.patch, self.batch, optimizer=self.planner.training.optimizer)


@cache
def example(name: str) -> Example:
    """The network that a preset plans for its example patch."""
    return example_of(load_planner(name), EXAMPLES[name])


def example_of(planner: Planner, patch: tuple[int, ...], spacing: Sequence[float] | None = None, classes: int = 3) -> Example:
    """The network that a planner's rules give for a patch, whatever the memory."""
    rule = planner.patch
    topology = derive_topology(
        spacing or (1.0,) * len(patch),
        patch,
        min_edge=rule.min_feature_map_edge,
        lone_axis_factor=rule.lone_axis_factor,
        kernel_edge=planner.network.kernel_edge,
        max_stages=planner.network.max_stages,
    )
    network = network_plan_of(planner.network, dataset(), topology=topology, dimensions=len(patch), num_classes=classes)  # type: ignore[arg-type]
    return Example(planner=planner, network=checked_plan(network), patch=patch)


@cache
def dataset() -> DatasetSummary:
    """The made-up dataset, read as ``medseg3d plan --fingerprint`` reads it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dataset_fingerprint.json"
        path.write_text(json.dumps(FINGERPRINT), encoding="utf-8")
        path.with_name("dataset.json").write_text(json.dumps(DESCRIPTION), encoding="utf-8")
        return read_nnunet_fingerprint(path)


@cache
def planned(name: str, configuration: str) -> Example:
    """A configuration of the preset's plan for the made-up dataset, without the search for ``3d_lowres`` that a whole plan makes."""
    planner = load_planner(name)
    first = 1 if configuration == "2d" else 0
    design = design_configuration(
        SPACING[first:],
        SHAPE[first:],
        dataset(),
        planner,
        dataset_voxels=float(prod(SHAPE) * CASES),
        gpu_memory_gb=planner.memory.gpu_memory_gb,
        axes=dataset().axis_names[first:],
    ).value
    return Example(planner=planner, network=checked_plan(design.network), patch=design.topology.patch_size, batch=design.batch_size)


# The tables


def examples_table(presets: Iterable[str]) -> str:
    """One row per preset at its example plan."""
    header = ("preset", "patch", "logits for", "parameters", "multiply-adds of a patch", f"memory of a step of {BATCH}")
    return markdown(header, [(f"`{name}`", *_sizes(example(name)), *_costs(example(name))) for name in presets])


def plans_table(configurations: Sequence[tuple[str, str]] = PLANNED) -> str:
    """One row per configuration of the made-up dataset's plans."""
    header = ("preset", "configuration", "patch", "logits for", "batch", "parameters", "multiply-adds of a patch", "memory of a step")
    rows = []
    for name, configuration in configurations:
        made = planned(name, configuration)
        rows.append((f"`{name}`", configuration, *_sizes(made), str(made.batch), *_costs(made)))
    return markdown(header, rows)


def multipliers_table() -> str:
    """Alpha and rho on the default network: what the rule says, what is counted."""
    planner = load_planner("default")
    whole = example("default").cost()
    rows = []
    for alpha, rho in ((1, 1), (0.75, 1), (0.5, 1), (0.25, 1), (1, 0.75), (1, 0.5), (0.5, 0.5)):
        thin = replace(planner, network=replace(planner.network, width_multiplier=alpha))
        cost = example_of(thin, tuple(int(n * rho) for n in CUBE)).cost()
        share = cost.multiply_adds / whole.multiply_adds
        row = (f"{alpha:g}", f"{rho:g}", f"{alpha**2 * rho**3:.3f}", f"{share:.3f}", millions(cost.parameters), gib(cost.peak_bytes))
        rows.append(row)
    return markdown(("α", "ρ", "α² ρ³", "multiply-adds, counted", "parameters", f"memory of a step of {BATCH}"), rows)


def options_table() -> str:
    """What the options that cost something or save something do to the default network."""
    rows = []
    for words, options in (
        ("none", {}),
        ("`separable = true`", {"separable": True}),
        ("`squeeze_excitation = 16`", {"squeeze_excitation": 16}),
        ("`dropout = 0.2`", {"dropout": 0.2}),
        ('`norm = "none"`', {"norm": "none"}),
        ('`activation = "gelu"`', {"activation": "gelu"}),
    ):
        made = example("default")
        rows.append((words, *_costs(replace(made, network=replace(made.network, options={**made.network.options, **options})))))
    return markdown(("option", "parameters", "multiply-adds of a patch", f"memory of a step of {BATCH}"), rows)


def effects_table() -> str:
    """Which option changes the modules of which family, built small."""
    options: dict[str, tuple[Option, ...]] = {
        "norm": ("instance", "group"),
        "activation": ("leaky_relu", "silu"),
        "dropout": (0.0, 0.2),
        "separable": (False, True),
        "squeeze_excitation": (0, 4),
    }
    rows = []
    for family in NETWORKS:
        marks = []
        for option, values in options.items():
            try:
                first, second = (_modules(family, {option: value}) for value in values)
            except PlanError:
                marks.append("refused")
                continue
            marks.append("yes" if first != second else "no effect")
        rows.append((f"`{family}`", *marks))
    return markdown(("family", *(f"`{option}`" for option in options)), rows)


def universal_table() -> str:
    """The parts of a universal network of five datasets like the example plan's, beside networks of their own."""
    one = example("u2net").network
    five = universal({f"domain_{number}": one for number in range(5)})
    shared = count(SHARING.shared_parameters(five))
    own = count(five.domains["domain_0"].parameters())
    rows = [
        ("shared by all domains", f"{shared:,}"),
        ("each domain's own", f"{own:,}"),
        ("five domains", f"{count(five.parameters()):,}"),
        ("five `u2net` of their own", f"{5 * example('u2net').cost().parameters:,}"),
        ("five `default` networks", f"{5 * example('default').cost().parameters:,}"),
    ]
    return markdown(("network", "parameters"), rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def _sizes(made: Example) -> tuple[str, str]:
    given = output_size(made.network, made.patch)
    return times(made.patch), "all of it" if given == made.patch else times(given)


def _costs(made: Example) -> tuple[str, str, str]:
    cost = made.cost()
    return millions(cost.parameters), f"{cost.multiply_adds / made.batch / 1e9:.1f} G", gib(cost.peak_bytes)


def _modules(family: str, options: dict[str, Option]) -> str:
    """The modules of a small network of a family as words."""
    plan = NetworkPlan(
        family=family,
        dimensions=3,
        in_channels=1,
        num_classes=3,
        features=(16, 32),
        kernel_sizes=((3, 3, 3),) * 2,
        strides=((1, 1, 1), (2, 2, 2)),
        encoder_blocks=(2, 2),
        decoder_blocks=(2,),
        options=options,
    )
    with torch.device("meta"):
        return repr(family_of(plan).build(checked_plan(plan)))


def universal(plans: Mapping[str, NetworkPlan]) -> U2Net:
    """A universal network without data."""
    with torch.device("meta"):
        return build_universal(plans)


def count(parameters: Iterable[nn.Parameter]) -> int:
    """All numbers of some parameters."""
    return sum(parameter.numel() for parameter in parameters)


def millions(number: int) -> str:
    """31195784 → 31.2 M."""
    return f"{number / 1e6:.2f} M" if number < 10e6 else f"{number / 1e6:.1f} M"


def gib(number: int) -> str:
    """Bytes → 5.39 GiB."""
    return f"{number / GIB:.1f} GiB"


def times(sizes: Sequence[int]) -> str:
    """(64, 160, 160) → 64×160×160."""
    return "×".join(map(str, sizes))


# What the convolutions saw

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


# The pictures

WIDTH, MARGIN = 1120, 36
BOX, TALL, PITCH, TOP = 220, 76, 102, 134
HEAD, HEAD_TALL, HEAD_GAP = 112, 40, 26
BAR, BAR_GAP, GROUP_GAP, BAR_TALL = 8, 3, 6, 18
STYLE = """
  .sheet { fill: #ffffff; stroke: #c9d1d8 } .ink { fill: #1a1f24 } .soft { fill: #5b6670 } .accent { fill: #0b6e7f }
  .box { fill: #ffffff; stroke: #c9d1d8 } .leaf { fill: #f1f4f6; stroke: #aeb8c1 } .line { stroke: #0b6e7f; fill: none }
  .outline { stroke: #5b6670; fill: none } .full { fill: #0b6e7f } .depthwise { fill: #e8590c } .pointwise { fill: #1c7ed6 }
  .own { fill: #fff4ec; stroke: #e8590c } .shared { fill: #edf5fc; stroke: #1c7ed6 }
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, "DejaVu Sans", sans-serif }
  @media (prefers-color-scheme: dark) {
    .sheet { fill: #0f1317; stroke: #39424b } .ink { fill: #e7eaed } .soft { fill: #9aa5af } .accent { fill: #4cc3d6 }
    .box { fill: #161a1f; stroke: #39424b } .leaf { fill: #20262c; stroke: #59646f } .line { stroke: #4cc3d6 }
    .outline { stroke: #9aa5af } .full { fill: #4cc3d6 } .depthwise { fill: #ff8c42 } .pointwise { fill: #4dabf7 }
    .own { fill: #2a1d14; stroke: #ff8c42 } .shared { fill: #13212e; stroke: #4dabf7 }
  }
"""
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


def sheet(parts: Sequence[str], height: float, title: str) -> str:
    """The whole SVG on its rounded background."""
    background = f'<rect class="sheet" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="14"/>'
    body = "\n".join([background, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}" role="img" '
        f'aria-label="{escape(title)}">\n<style>{STYLE}</style>\n{body}\n</svg>\n'
    )


def text(x: float, y: float, words: str, kind: str, size: float, *, weight: int = 400, anchor: str = "start") -> str:
    """One line of words."""
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place} font-size="{size:g}" font-weight="{weight}">{escape(words)}</text>'


# The universal network

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
