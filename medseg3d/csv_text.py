"""Rows in, the text of a CSV file out, in which no spreadsheet takes a name for a formula.

Names of cases and labels come from files that others made; ``=HYPERLINK(…)`` in a cell is run by whoever opens the table.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""How a formula begins, as OWASP lists them under CSV injection."""


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """A line for each row; None is an empty cell, and a text that begins as a formula gets a quote in front.

    >>> csv_text([("=1+1", -1.5, "-1.5", None)])
    "'=1+1,-1.5,-1.5,\\n"
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(FORMULAS) and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
