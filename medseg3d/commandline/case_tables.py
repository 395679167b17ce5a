"""Tables of what is measured, proposed and corrected: a record in, the parts that the console shows out."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean, stdev
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from medseg3d.commandline.tables import table_of_names
from medseg3d.wording import counted

if TYPE_CHECKING:
    from pathlib import Path

    from medseg3d.evaluation.compare import Interval
    from medseg3d.structures.records import CaseStructures, Structure, Structures
    from medseg3d.validation.corrected import Round
    from medseg3d.workflows.propose import Proposals

SHOWN_CASES = 12
"""Rows of cases with numbers of their own; more are summed up, and the CSV has them all."""


def structure_table(found: Structures) -> Iterator[Table | str]:
    """The structures of a few cases, or what they are over all cases; distances."""
    if len(found.cases) == 1:
        (case,) = found.cases
        yield table_of_names(case.case, ("Label", *STRUCTURE_COLUMNS), [(each.name, *_structure_cells(each)) for each in case.structures])
    elif found.cases:
        header = ("Label", "cases", "volume ml", "smallest", "largest", "objects", "at the edge")
        rows = [_over_cases(found.cases, name) for name in dict.fromkeys(each.name for case in found.cases for each in case.structures)]
        yield table_of_names(f"{len(found.cases)} cases: mean ± standard deviation", header, rows)
    distances = [(case.case, each) for case in found.cases for each in case.distances]
    if distances:
        header = ("Case", "from", "to", "gap mm", "mean there", "mean back", "touching")
        yield table_of_names(
            "Distances between surfaces",
            header,
            [
                (
                    case,
                    each.first,
                    each.second,
                    f"{each.minimum_mm:.2f}",
                    f"{each.mean_first_to_second_mm:.2f}",
                    f"{each.mean_second_to_first_mm:.2f}",
                    "yes" if each.is_touching else "no",
                )
                for case, each in distances[:SHOWN_CASES]
            ],
        )
        if len(distances) > SHOWN_CASES:
            yield f"{len(distances) - SHOWN_CASES} more distances are in the CSV."


STRUCTURE_COLUMNS = ("volume ml", "objects", "centroid R A S mm", "extent R A S mm", "diameter mm", "mean ± sd", "at the edge")


def _structure_cells(each: Structure) -> tuple[str, ...]:
    if each.centroid_mm is None or each.extent_mm is None or each.diameter_mm is None:
        return ("0",) + ("–",) * (len(STRUCTURE_COLUMNS) - 1)
    return (
        f"{each.volume_ml:.4g}",
        str(each.num_objects),
        " ".join(f"{value:.1f}" for value in each.centroid_mm),
        " ".join(f"{value:.1f}" for value in each.extent_mm),
        f"{each.diameter_mm:.1f}",
        ", ".join(f"{channel} {values.mean:.4g} ± {values.std:.3g}" for channel, values in each.intensities.items()) or "–",
        "yes" if each.is_at_edge else "no",
    )


def _over_cases(cases: tuple[CaseStructures, ...], name: str) -> tuple[str, ...]:
    there = [each for case in cases if (each := case.of(name)) is not None and each.voxels]
    if not there:
        return (name, "0", *("–",) * 5)
    volumes = [each.volume_ml for each in there]
    spread = f" ± {stdev(volumes):.3g}" if len(volumes) > 1 else ""
    return (
        name,
        str(len(there)),
        f"{mean(volumes):.4g}{spread}",
        f"{min(volumes):.4g}",
        f"{max(volumes):.4g}",
        f"{mean(each.num_objects for each in there):.1f}",
        str(sum(each.is_at_edge for each in there)),
    )


def proposal_table(found: Proposals) -> Iterator[Table | str]:
    """The cases in their order, and why; what to do with them."""
    table = Table(title=f"Worth annotating next, of {counted(len(found.estimates), 'image')}")
    for column in ("", "case", "expected Dice", "unlikeness", "why"):
        table.add_column(column, overflow="fold")
    for rank, each in enumerate(found.proposed, 1):
        dice = "–" if each.expected_dice is None else f"{each.expected_dice:.3f}"
        table.add_row(str(rank), escape(each.case), dice, f"{each.unlikeness:.1f}", escape("; ".join(each.reasons)))
    yield table
    yield f"Predictions to start from lie in {found.folder}."
    yield "Correct them and save them into the dataset's folder corrections; medseg3d correct learns from them."


def correction_table(now: Round, work: Path) -> Iterator[Table | str]:
    """Dice before and after on the same validation cases, and what to do where it fell."""
    rows = [
        (
            change.configuration,
            str(len(change.cases)),
            _number(change.before.mean),
            _number(change.after.mean),
            _number(change.difference.mean, signed=True),
            _interval(change.difference),
            change.verdict,
        )
        for change in now.changes
    ]
    header = ("configuration", "cases", "Dice before", "Dice after", "change", "95 % interval", "verdict")
    yield table_of_names(f"Round {now.number}: {len(now.taken)} corrected, measured on the same validation cases", header, rows)
    for change in now.changes:
        parts = [f"{name} {value:+.4f}" for name, value in change.labels.items() if value is not None]
        yield f"{change.configuration}, by label: {', '.join(parts) or 'nothing to compare'}"
        if change.worst:
            yield f"Lost most: {', '.join(f'{case} {value:+.4f}' for case, value in change.worst)}"
    earlier = work / now.earlier
    if any(change.verdict == "worse" for change in now.changes):
        yield f"The earlier weights were better: go on with them, medseg3d predict -m {earlier}, and look at the corrections."
    else:
        yield f"The earlier weights stay in {earlier}; delete the folder when you do not need them any more."


def _number(value: float | None, *, signed: bool = False) -> str:
    return "–" if value is None else f"{value:+.4f}" if signed else f"{value:.4f}"


def _interval(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "–"
    return f"{interval.low:+.4f} to {interval.high:+.4f}"
