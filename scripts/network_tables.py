"""Tables of what networks take: presets in, Markdown out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from network_examples import (
    BATCH,
    CUBE,
    Example,
    count,
    example,
    example_of,
    gib,
    millions,
    planned,
    times,
    universal,
)

from medseg3d.errors import PlanError
from medseg3d.networks.build import NETWORKS, checked_plan, family_of, output_size
from medseg3d.networks.encoders import STAGES
from medseg3d.networks.u2net import SHARING
from medseg3d.networks.upsampling import UPSAMPLING
from medseg3d.plan import NetworkPlan, Option
from medseg3d.planning import load_planner

FAMILY_TABLES = {
    "plain": ("default", "small"),
    "residual": ("residual_m",),
    "classic": ("unet_2015", "unet_3d", "unet_wide"),
    "vnet": ("vnet", "vnet_batch_norm"),
    "u2net": ("u2net",),
    "nested": ("unet_plus_plus", "unet_plus", "unet_e", "attention_unet"),
    "published": ("fcn", "segnet", "dla", "transunet", "deeplab_v3", "pspnet", "isnet", "mcibi"),
    "real_time": ("icnet", "bisenet", "dfanet", "espnet", "swiftnet", "fast_scnn", "dfnet", "msfnet"),
    "monai": ("dynunet", "segresnet", "monai_attention_unet", "mednext", "swinunetr"),
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
"""The configurations that the table of the synthetic dataset shows."""


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """A page with its tables replaced; each stands between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    for name, table in tables.items():
        place = re.compile(rf"(<!-- table: {name} -->\n)(?:(?!<!--).)*(<!-- end -->)", re.DOTALL)
        text, found = place.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if found != 1:
            raise ValueError(f"the page has {found} places for the table {name}, expected one")
    return text


def examples_table(presets: Iterable[str]) -> str:
    """One row per preset at its example plan."""
    header = ("preset", "patch", "logits for", "parameters", "multiply-adds of a patch", f"memory of a step of {BATCH}")
    return markdown(header, [(f"`{name}`", *_sizes(example(name)), *_costs(example(name))) for name in presets])


def plans_table(configurations: Sequence[tuple[str, str]] = PLANNED) -> str:
    """One row per configuration of the synthetic dataset's plans."""
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
        ("`attention_gates = 1`", {"attention_gates": 1}),
        *((f'`encoder = "{kind}"`', {"encoder": kind}) for kind in STAGES if kind != "plain"),
        *((f'`upsampling = "{name}"`', {"upsampling": name}) for name in UPSAMPLING if name != "transposed"),
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
        "upsampling": ("transposed", "linear"),
        "attention_gates": (0, 1),
        "encoder": ("residual", "dla"),
    }
    rows = []
    for family in (name for name, known in NETWORKS.built_in.items() if known.has_style):
        marks = []
        for option, values in options.items():
            if option not in NETWORKS[family].completed_options({}):
                marks.append("no effect")
                continue
            try:
                first, second = (_modules(family, {option: value}) for value in values)
            except PlanError:
                marks.append("refused")
                continue
            marks.append("yes" if first != second else "no effect")
        rows.append((f"`{family}`", *marks))
    return markdown(("family", *(f"`{option}`" for option in options)), rows)


def abilities_table() -> str:
    """What plans each family takes, found out by building it small."""
    rows = []
    for family in (name for name, known in NETWORKS.built_in.items() if known.has_style):
        least = next(stages for stages in range(1, 5) if _builds(family, stages))
        deep = _builds(family, 4, deep_supervision=True)
        sizes = "any" if _takes_any_size(family) else "multiples of the total stride"
        rows.append((f"`{family}`", str(least), sizes, "yes" if deep else "one head, as published"))
    return markdown(("family", "stages at least", "patch", "deep supervision or auxiliary heads"), rows)


def _small(family: str, stages: int, *, deep_supervision: bool = False) -> NetworkPlan:
    return NetworkPlan(
        family=family,
        dimensions=2,
        in_channels=1,
        num_classes=3,
        features=(16, 16, 32, 32)[:stages],
        kernel_sizes=((3, 3),) * stages,
        strides=((1, 1), *((2, 2),) * (stages - 1)),
        encoder_blocks=(1,) * stages,
        decoder_blocks=(1,) * (stages - 1),
        deep_supervision=deep_supervision,
    )


def _builds(family: str, stages: int, *, deep_supervision: bool = False) -> bool:
    plan = _small(family, stages, deep_supervision=deep_supervision)
    try:
        checked_plan(plan)
    except PlanError:
        return False
    return True


def _takes_any_size(family: str) -> bool:
    with torch.device("meta"):
        network = family_of(_small(family, 4)).build(checked_plan(_small(family, 4))).eval()
        try:
            return bool(network(torch.empty(1, 1, 37, 45)).shape[2:] == (37, 45))
        except RuntimeError:  # sizes that do not meet
            return False


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
        features=(16, 32, 32),
        kernel_sizes=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        encoder_blocks=(2, 2, 2),
        decoder_blocks=(2, 2),
        deep_supervision=False,
        options=options,
    )
    with torch.device("meta"):
        return repr(family_of(plan).build(checked_plan(plan)))


TABLES: dict[str, Callable[[], str]] = {
    **{name: partial(examples_table, presets) for name, presets in FAMILY_TABLES.items()},
    "multipliers": multipliers_table,
    "options": options_table,
    "abilities": abilities_table,
    "effects": effects_table,
    "universal": universal_table,
    "plans": plans_table,
}
"""By the name of their places in the page."""
