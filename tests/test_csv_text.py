"""Tables read back as they were written, and hold no formula."""

from __future__ import annotations

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from medseg3d.csv_text import FORMULAS, csv_text

names = st.text(st.characters(blacklist_characters="\r\n\0", blacklist_categories=["Cs"]))


@given(st.lists(st.lists(names, min_size=2, max_size=3), min_size=1, max_size=4))
def test_names_read_back_but_for_a_quote_before_what_begins_a_formula(rows) -> None:
    found = list(csv.reader(io.StringIO(csv_text(rows), newline="")))
    assert [[cell.removeprefix("'") if cell[1:].startswith(FORMULAS) else cell for cell in row] for row in found] == [
        [cell.removeprefix("'") if cell[1:].startswith(FORMULAS) else cell for cell in row] for row in rows
    ]


def test_a_formula_is_quoted_wherever_it_stands_and_numbers_are_not() -> None:
    rows = [("=HYPERLINK(1)", "@SUM(A1)", "+cmd|'/C calc'!A0", "-x", -1.5, "-1.5", "+3e-2", "-", None, "left")]
    assert csv_text(rows) == "'=HYPERLINK(1),'@SUM(A1),'+cmd|'/C calc'!A0,'-x,-1.5,-1.5,+3e-2,'-,,left\n"
