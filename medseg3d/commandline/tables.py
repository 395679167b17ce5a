"""The tables that the command line shows: results go in, tables of rich come out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from medseg3d.wording import duration

if TYPE_CHECKING:
    from medseg3d.plan import Plan
    from medseg3d.planning.candidates import Candidate
    from medseg3d.workflows.dry_run import DryRun
    from medseg3d.workflows.prediction_record import PredictedCase


def plan_table(plan: Plan) -> Table:
    """The configurations, and which one is recommended."""
    table = Table(title=f"Plan for {plan.dataset} ({plan.planner})")
    for column in ("", "configuration", "spacing in mm", "patch", "batch", "stages", "features", "median case"):
        table.add_column(column, overflow="fold", no_wrap=column == "configuration")
    for name, c in plan.configurations.items():
        table.add_row(
            "→" if name == plan.recommended else "",
            name,
            _by(c.spacing),
            _by(c.patch_size),
            str(c.batch_size),
            str(len(c.network.strides)),
            f"{c.network.features[0]}–{c.network.features[-1]}",
            _by(c.median_shape),
        )
    return table


def dry_run_table(result: DryRun) -> Table:
    """A row per step with its time and disk, and what they are together."""
    rows = [[step.name, step.what, duration(step.seconds), megabytes(step.disk_bytes)] for step in result.steps]
    rows.append(["together", "", duration(result.seconds), megabytes(result.disk_bytes)])
    table = Table(title=f"What run would do with {escape(result.dataset)}, on {result.device}, by rules of thumb")
    for column in ("step", "what"):
        table.add_column(column, overflow="fold")
    for column in ("about", "disk"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def candidates_table(shown: Sequence[Candidate]) -> Table:
    """What networks would take."""
    table = Table(title="Networks for this dataset (→ worth training; seconds per epoch as this machine would take them)")
    for column in ("", "planner", "configuration", "parameters", "memory of a step", "G multiply-adds", "s per epoch", "disk", "why"):
        table.add_column(column, overflow="fold")
    for c in shown:
        numbers = ("–",) * 5
        if not c.problem:
            seconds = "–" if c.seconds_per_epoch is None else f"{c.seconds_per_epoch:,.0f}"
            work = f"{c.multiply_adds_per_step / 1e9:,.1f}"
            numbers = (f"{c.parameters / 1e6:.1f} M", f"{c.memory_gb:.1f} GB", work, seconds, f"{c.disk_gb:.2f} GB")
        table.add_row("→" if c.is_proposed else "", c.planner, c.configuration, *numbers, escape(c.problem or c.reason))
    return table


def stage_table(cases: Mapping[str, PredictedCase]) -> Table:
    """Seconds of each stage and the peak of memory, a row per case."""
    stages = list(dict.fromkeys(stage for case in cases.values() for stage in case.seconds))
    rows = []
    for name, case in cases.items():
        seconds = (f"{case.seconds[stage]:.2f}" if stage in case.seconds else "–" for stage in stages)
        rows.append([name, " x ".join(map(str, case.shape)), *seconds, "–" if case.peak_mib is None else f"{case.peak_mib:.0f}"])
    title = "Seconds per stage (the next case is read and the last one written meanwhile)"
    return table_of_names(title, ["file", "shape", *stages, "peak MiB"], rows)


NAME_WIDTH = 14
"""Characters that a column of names gets at least; longer names go on in the next line, so that no two look alike."""


def table_of_names(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Names in the first column, numbers in the others; names are never cut off, however narrow the terminal is."""
    table = Table(title=title)
    rows = list(rows)
    widest = max((len(row[0]) for row in rows), default=0)
    table.add_column(header[0], overflow="fold", min_width=min(NAME_WIDTH, widest))
    for column in header[1:]:
        table.add_column(column, justify="right")
    for name, *cells in rows:
        table.add_row(escape(name), *cells)
    return table


def megabytes(size: float) -> str:
    """
    >>> megabytes(0), megabytes(31_500_000), megabytes(2.52e9)
    ('', '32 MB', '2.5 GB')
    """
    return "" if not size else f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _by(values: Iterable[float]) -> str:
    return "×".join(f"{value:.4g}" for value in values)
