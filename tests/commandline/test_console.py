"""What is printed stays readable in a narrow terminal."""

from __future__ import annotations

import io
import re

import pytest
import rich.console

from medseg3d.commandline.console import table_of_names


def printed(names: list[str], width: int) -> list[list[str]]:
    """The cells of each line of a table with eight numbers."""
    text = io.StringIO()
    rows = [[name, *(f"{column}.123 (24)" for column in range(7))] for name in names]
    header = ["label", "Dice (cases)", "HD95 mm", "ASSD mm", "NSD", "volume ml", "false positives", "false negatives"]
    rich.console.Console(file=text, width=width).print(table_of_names("Validation of fold 0", header, rows))
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in text.getvalue().splitlines() if "│" in line]


@pytest.mark.fault("E", "labels whose names begin alike, in a table of 80 columns", "names go on in the next line and are never cut off")
@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_stay_whole_in_a_narrow_table(width: int) -> None:
    names = ["organ_outer", "organ_inner", "left_superior_colliculi_of_the_midbrain", "[bold]L5[/bold]"]
    column = "".join(cells[0] for cells in printed(names, width))
    assert column == "".join(names)
