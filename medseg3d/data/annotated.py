"""Which structures each case was annotated for: ``annotated.csv`` beside the dataset in, names by case out.

A row is ``case,labels``: the name of a case, or a pattern of names with ``*`` and ``?``; and the structures, separated by ``;`` or by
further commas. ``*`` as the structures stands for all of them. The last row that fits a case counts; a case that no row fits was
annotated for everything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from medseg3d.data.case_files import composed
from medseg3d.errors import InputError
from medseg3d.parsing import read_table
from medseg3d.wording import listed

FILE = "annotated.csv"
ALL = "*"


def read_annotated(root: Path) -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    """The rows of the file in a dataset's folder, patterns with structures, None for all; none without a file.

    Raises :class:`InputError` for a file that says something else.
    """
    path = root / FILE
    if not path.is_file():
        return ()
    rows = [[cell.strip() for cell in row] for row in read_table(path)]
    if rows and [cell.lower() for cell in rows[0][:2]] == ["case", "labels"]:
        rows = rows[1:]
    found = []
    for row in (row for row in rows if any(row)):
        names = tuple(dict.fromkeys(name.strip() for cell in row[1:] for name in re.split(";", cell) if name.strip()))
        if not row[0] or not names:
            raise InputError(
                f"{path}: expected the columns case and labels, for instance scan_*,liver;spleen; found {','.join(row)!r:.100}."
            )
        found.append((composed(row[0]), None if names == (ALL,) else names))
    return tuple(found)


def annotated_for(case: str, rows: Sequence[tuple[str, tuple[str, ...] | None]]) -> tuple[str, ...] | None:
    """What a case was annotated for by the last row that fits it, None for everything.

    >>> rows = (("*", ("liver",)), ("scan_1", None))
    >>> annotated_for("scan_1", rows), annotated_for("scan_2", rows), annotated_for("scan_2", ())
    (None, ('liver',), None)
    """
    fitting = [names for pattern, names in rows if pattern == case or fnmatchcase(case, pattern)]
    return fitting[-1] if fitting else None


def unused_rows(root: Path, cases: Sequence[str]) -> str:
    """What to say of names and patterns of the file that no case has, slips most likely; empty where there are none."""
    rows = [pattern for pattern, _ in read_annotated(root) if not any(pattern == case or fnmatchcase(case, pattern) for case in cases)]
    return f"annotated.csv names {listed(rows, most=5)}, which no case is called: correct it, or take it out" if rows else ""


def unknown_names(rows: Sequence[tuple[str, tuple[str, ...] | None]], known: Sequence[str]) -> list[str]:
    """Structures of the file that the dataset does not have."""
    return sorted({name for _, names in rows for name in names or ()} - set(known))
