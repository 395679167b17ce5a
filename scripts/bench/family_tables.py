"""What each family reached → the tables of docs/benchmarks.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import markdown_table

DOCS = Path(__file__).parents[2] / "docs"


def tables(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A table per dataset."""
    names = dict.fromkeys(str(row["dataset"]) for row in outcomes)
    found = {f"families {name}": table([row for row in outcomes if row["dataset"] == name]) for name in names}
    with_levels = [row for row in outcomes if row.get("levels")]
    return found | ({"families levels": levels_table(with_levels)} if with_levels else {})


def levels_table(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """One row per level of a network that can be pruned; times as fast as the whole network, by window and by case."""
    header = ("dataset", "preset", "level", "Dice", "s per window", "times as fast", "s per case", "times as fast")
    rows = []
    for outcome in outcomes:
        whole = outcome["levels"][-1]
        for level in outcome["levels"]:
            rows.append(
                (
                    outcome["dataset"],
                    f"`{outcome['preset']}`",
                    f"L{level['level']}",
                    f"{level['dice']:.3f}",
                    f"{level['window_seconds']:.3f}",
                    f"{whole['window_seconds'] / level['window_seconds']:.1f}",
                    f"{level['case_seconds']:.2f}",
                    f"{whole['case_seconds'] / level['case_seconds']:.1f}",
                )
            )
    return markdown_table(header, rows)


def table(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """One row per family."""
    header = (
        "preset",
        "α",
        "ρ",
        "rate",
        "parameters",
        "G multiply-adds per patch",
        "patch",
        "batch",
        "s per step",
        "steps",
        "minutes",
        "s per case",
        "Dice",
        "peak MiB",
    )
    return markdown_table(header, [row_of(outcome) for outcome in outcomes])


def row_of(outcome: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a family; one that did not get through says so."""
    name = f"`{outcome['preset']}`" + (", in 2D" if outcome["configuration"] == "2d" else "")
    dice = "failed" if outcome["problem"] else "–" if outcome["dice"] is None else f"**{outcome['dice']:.3f}**"
    return (
        name,
        f"{outcome['alpha']:g}",
        f"{outcome['rho']:g}",
        f"{outcome['rate']:g}",
        f"{outcome['parameters'] / 1e6:.2f} M",
        f"{outcome['multiply_adds'] / 1e9:.2f}",
        "×".join(map(str, outcome["patch"])),
        str(outcome["batch"]),
        f"{outcome['step_seconds']:.2f}",
        str(outcome["steps"]),
        f"{outcome['minutes']:.1f}",
        f"{outcome['case_seconds']:.2f}",
        dice,
        "–" if outcome["peak_mib"] is None else f"{outcome['peak_mib']:.0f}",
    )


def learned_table(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """One row per family, both datasets beside each other, for the choice of a network; the best on real data first."""
    by_preset: dict[str, dict[str, Mapping[str, Any]]] = {}
    for outcome in outcomes:
        by_preset.setdefault(outcome["preset"], {})[outcome["dataset"]] = outcome
    header = (
        "preset",
        "parameters",
        "G multiply-adds per patch",
        "s per step",
        "s per case",
        "phantom",
        "minutes",
        "Hippocampus",
        "minutes",
    )
    rows = []
    for preset, found in sorted(by_preset.items(), key=lambda item: _rank(item[1])):
        shown = found.get("hippocampus") or found["phantom"]
        reached = [cell for name in ("phantom", "hippocampus") for cell in _reached(found.get(name))]
        cells = (f"{shown['parameters'] / 1e6:.2f} M", f"{shown['multiply_adds'] / 1e9:.2f}", f"{shown['step_seconds']:.2f}")
        rows.append((f"`{preset}`", *cells, f"{shown['case_seconds']:.2f}", *reached))
    return markdown_table(header, rows)


def _rank(found: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """By the Dice on real data, then on the phantom."""
    real, phantom = (-((found.get(name) or {}).get("dice") or 0.0) for name in ("hippocampus", "phantom"))
    return real, phantom


def _reached(outcome: Mapping[str, Any] | None) -> tuple[str, str]:
    """Dice and minutes; a family that did not get through says so."""
    if outcome is None:
        return "not measured", "–"
    return ("failed" if outcome["dice"] is None else f"{outcome['dice']:.3f}", f"{outcome['minutes']:.1f}")


def write_docs(outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Replace the tables in the pages; each stands between ``<!-- table: NAME -->`` and ``<!-- end -->``."""
    write_tables(DOCS / "benchmarks.md", tables(outcomes))
    write_tables(DOCS / "concepts/networks.md", {"learned": learned_table(outcomes)})


def write_tables(page: Path, made: Mapping[str, str]) -> None:
    """Replace the tables of a page by their names."""
    text = page.read_text(encoding="utf-8")
    for name, table in made.items():
        place = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, found = place.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if found != 1:
            raise SystemExit(f"{page} has {found} places for the table {name}, expected one.")
    page.write_text(text, encoding="utf-8")
