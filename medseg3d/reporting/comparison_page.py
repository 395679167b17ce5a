"""A comparison of presets → one HTML page: the table, what is unsure about it, and the Dice of every case.

The page has no scripts and loads nothing; every name is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from medseg3d.files import write_text
from medseg3d.reporting.charts import strip
from medseg3d.validation.preset_comparison import Comparison, Row

STYLE = """
  :root { color-scheme: light dark; --ink: #1a1f24; --soft: #5b6670; --line: #c9d1d8; --accent: #0b6e7f; --paper: #ffffff }
  @media (prefers-color-scheme: dark) { :root { --ink: #e7eaed; --soft: #9aa5af; --line: #39424b; --accent: #4cc3d6; --paper: #0f1317 } }
  body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper) }
  body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
  th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
  th:first-child, td:first-child { text-align: left } .soft { color: var(--soft) } .better { color: var(--accent); font-weight: 600 }
  svg line { stroke: var(--line) } svg circle { fill: var(--accent); opacity: .6 } svg .mean { stroke: var(--ink); stroke-width: 2 }
"""


def write_comparison_page(comparison: Comparison, output: Path) -> Path:
    """Write the page atomically, and return its path."""
    header, rows = comparison.table()
    body = [
        f"<h1>{escape(comparison.dataset)}: {len(comparison.rows)} networks on fold {escape(comparison.fold)}</h1>",
        f'<p class="soft">Trained for {escape(comparison.length)}; mean foreground Dice of {len(comparison.cases)} validation cases, '
        "differences case by case, 95 % bootstrap intervals.</p>",
        _table(
            _beside_dice(header, "each case, 0 to 1"),
            [_beside_dice([*map(escape, cells)], _strip(row)) for cells, row in zip(rows, comparison.rows, strict=True)],
        ),
        *(f"<p><b>{escape(name)}</b> is left out: {escape(problem)}</p>" for name, problem in comparison.problems.items()),
        "".join(f'<p class="soft">{escape(note)}</p>' for note in comparison.notes),
        "<h2>What was trained</h2>",
        _table(
            ("preset", "family", "configuration", "patch", "batch", "parameters", "G multiply-adds per patch"),
            [_network(row) for row in comparison.rows],
        ),
        "<h2>Labels</h2>",
        _table(("label", *(escape(row.trained.name) for row in comparison.rows)), _labels(comparison)),
        "<h2>Cases</h2>",
        _table(("case", *(escape(row.trained.name) for row in comparison.rows)), _cases(comparison)),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(comparison.dataset)}</title>'
    )
    text = f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head><body>\n' + "\n".join(body) + "\n</body></html>\n"
    return write_text(output, text)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Of cells that are HTML already."""
    titles = "".join(f"<th>{title}</th>" for title in header)
    lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _beside_dice(cells: Sequence[str], strip_of_cases: str) -> tuple[str, ...]:
    """Behind the preset, its Dice and the interval, where a screen of 1280 pixels still shows it."""
    return (*cells[:3], strip_of_cases, *cells[3:])


def _strip(row: Row) -> str:
    values = [value for value in row.trained.dice.values() if value is not None]
    dots = "".join(f'<circle cx="{x}" cy="9" r="3"/>' for x in strip(values))
    mean = (
        ""
        if row.dice.mean is None
        else f'<line class="mean" x1="{strip([row.dice.mean])[0]}" x2="{strip([row.dice.mean])[0]}" y1="2" y2="16"/>'
    )
    label = escape(f"Dice of {len(values)} cases", quote=True)
    return f'<svg width="150" height="18" role="img" aria-label="{label}"><line x1="4" x2="146" y1="9" y2="9"/>{dots}{mean}</svg>'


def _network(row: Row) -> tuple[str, ...]:
    trained = row.trained
    return (
        escape(trained.name),
        escape(trained.family),
        escape(trained.configuration),
        "×".join(map(str, trained.patch)),
        str(trained.batch),
        f"{trained.parameters:,}",
        f"{trained.multiply_adds / 1e9:.2f}",
    )


def _labels(comparison: Comparison) -> list[tuple[str, ...]]:
    names = dict.fromkeys(name for row in comparison.rows for name in row.trained.labels)
    return [(escape(name), *(_score(row.trained.labels.get(name)) for row in comparison.rows)) for name in names]


def _cases(comparison: Comparison) -> list[tuple[str, ...]]:
    return [(escape(case), *(_score(row.trained.dice.get(case)) for row in comparison.rows)) for case in comparison.cases]


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
