"""The tables of planners/README.md: every preset; every key of a planner file with its default, range and meaning; every loss.

Types, ranges and meanings are those of the records, the defaults those of the preset ``default``. ``--write-docs`` puts the tables
into the page.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Interval

from medseg3d.losses import LOSSES
from medseg3d.networks import NETWORKS
from medseg3d.planning import Planner, load_planner, planner_names

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "planners/README.md"
RECORDS = ("medseg3d/planning/planner.py", "medseg3d/plan.py")
WRITTEN_BY_PLAN = {"name", "training.providers", "fitted"}
NAMES = {"network.family": ", ".join(f"`{name}`" for name in sorted(NETWORKS.built_in)), "training.loss": "see [losses](#losses)"}
"""What the names of parts may be."""
NO_BOUND = 1e9
"""Bounds beyond keep damaged files from counting without end; nobody chooses such numbers."""


def main() -> None:
    """Print the tables, or put them into the page."""
    if "--write-docs" in sys.argv:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join(tables().values()))


def tables() -> dict[str, str]:
    """By the name of their places."""
    return {"presets": presets_table(), "keys": keys_table(), "losses": losses_table()}


def with_tables(text: str) -> str:
    """A page with its tables replaced; each stands between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    for name, table in tables().items():
        place = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = place.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def presets_table() -> str:
    """A row per preset: what its file says of itself."""
    head = "| preset | what it plans |\n|---|---|\n"
    return head + "\n".join(f"| `{name}` | {load_planner(name).description} |" for name in sorted(planner_names(), key=_place))


def _place(name: str) -> tuple[bool, bool, str]:
    """The default planner first, those of nnU-Net last."""
    return name.startswith("nnunet"), name != "default", name


def keys_table() -> str:
    """A row per key, in the order of the records."""
    head = "| key | default | may be | meaning |\n|---|---|---|---|\n"
    first = "| `extends` | none | a preset or a TOML file | The planner that this file changes. |\n"
    meanings = _meanings()
    return head + first + "\n".join(_rows(load_planner("default"), Planner, "", meanings))


def _rows(record: object, kind: type, table: str, meanings: Mapping[str, str]) -> Iterator[str]:
    types = get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        key, value = f"{table}{each.name}", getattr(record, each.name)
        if key in WRITTEN_BY_PLAN:
            continue
        if is_dataclass(types[each.name]):
            yield from _rows(value, types[each.name], f"{key}.", meanings)
        else:
            default = "none" if key == "description" else _in_toml(value)
            yield f"| `{key}` | {default} | {NAMES.get(key) or _may_be(types[each.name])} | {meanings[f'{kind.__name__}.{each.name}']} |"


def _meanings() -> dict[str, str]:
    """By record and field, what stands below the field in the source."""
    found = {}
    for file in RECORDS:
        for record in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
            if not isinstance(record, ast.ClassDef):
                continue
            for each, below in zip(record.body, record.body[1:], strict=False):
                if isinstance(each, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    found[f"{record.name}.{ast.unparse(each.target)}"] = " ".join(str(below.value.value).split())
    return found


def _in_toml(value: object) -> str:
    match value:
        case bool():
            return f"`{str(value).lower()}`"
        case int() | float():
            return f"{value:,}" if isinstance(value, int) else f"{value:g}".replace("e-0", "e-")
        case tuple():
            return f"`[{', '.join(map(str, value))}]`"
        case dict():
            return "none"
    return f"`{value}`"


def _may_be(kind: Any) -> str:
    if get_origin(kind) is Annotated:
        inner, *limits = get_args(kind)
        interval = next((limit for limit in limits if isinstance(limit, Interval)), None)
        return _may_be(inner) if interval is None else _range(inner, interval)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list: {_may_be(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "table"
    return {bool: "`true`, `false`", str: "text", float: "number"}[kind]


def _range(kind: type, interval: Interval) -> str:
    noun = "whole number" if kind is int else "number"
    most = f" to below {interval.lt:,.0f}" if interval.lt is not None else f" to {interval.le:,.0f}" if interval.le < NO_BOUND else ""
    if interval.ge is None:
        return f"{noun} above {interval.gt:g}{most}"
    return f"{noun} from {interval.ge:g}{most}" if most else f"{noun}, at least {interval.ge:g}"


def losses_table() -> str:
    """A row per loss that is built in."""
    head = "| loss | what it is | options: default (range) |\n|---|---|---|\n"
    return head + "\n".join(
        f"| `{name}` | {loss.meaning} | "
        + ("; ".join(f"`{o}` {n.default:.4g} ({n.minimum:g} to {n.maximum:g}): {n.meaning}" for o, n in loss.options.items()) or "none")
        + " |"
        for name, loss in LOSSES.built_in.items()
    )


if __name__ == "__main__":
    main()
