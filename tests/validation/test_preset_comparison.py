"""Presets are compared on the cases that all have, case by case, and a verdict needs an interval without 0."""

from __future__ import annotations

import pytest

from medseg3d.validation.preset_comparison import Comparison, Trained, compared


def trained(name: str, dice: list[float | None], *, steps: int = 10, first: int = 0) -> Trained:
    return Trained(
        name=name,
        preset=name,
        configuration="3d_fullres",
        family="plain_unet",
        parameters=1_000_000,
        multiply_adds=10**9,
        patch=(8, 8, 8),
        batch=2,
        steps=steps,
        training_seconds=60.0,
        seconds_per_case=0.5,
        dice={f"case_{first + number}": value for number, value in enumerate(dice)},
        labels={"organ": 0.5},
        weights=name,
    )


def comparison(*networks: Trained) -> Comparison:
    return compared(networks, dataset="Balls", fold="0", length="10 steps each")


SPREAD = [0.1, 0.3, 0.5, 0.7, 0.9, 0.6]


def test_a_small_gain_on_every_case_is_clear_however_much_the_cases_differ() -> None:
    better, worse = trained("b", [value + 0.05 for value in SPREAD]), trained("w", [value - 0.05 for value in SPREAD])
    rows = comparison(trained("a", SPREAD), better, worse).rows
    assert [row.verdict for row in rows] == ["baseline", "better", "worse"]
    assert rows[1].difference is not None
    assert rows[1].difference.mean == pytest.approx(0.05)
    assert rows[0].difference is None


def test_gains_and_losses_that_cancel_out_are_no_clear_difference() -> None:
    other = [value + (0.05 if number % 2 else -0.05) for number, value in enumerate(SPREAD)]
    assert comparison(trained("a", SPREAD), trained("b", other)).rows[1].verdict == "no clear difference"


def test_few_cases_allow_no_verdict() -> None:
    assert comparison(trained("a", [0.1, 0.2]), trained("b", [0.8, 0.9])).rows[1].verdict == "too few cases"


def test_only_common_cases_count_and_the_note_says_so() -> None:
    found = comparison(trained("a", SPREAD), trained("b", SPREAD, first=2))
    assert found.cases == tuple(f"case_{number}" for number in range(2, 6))
    assert found.notes[0] == "Compared on 4 cases that all have; 6 are validated."


def test_a_case_without_any_label_counts_as_right_where_nothing_is_predicted() -> None:
    rows = comparison(trained("a", [None, 0.5, None]), trained("b", [0.0, 0.5, None])).rows
    assert rows[0].dice.mean == pytest.approx(0.75)
    assert rows[1].dice.mean == pytest.approx(0.25)


def test_the_table_has_a_cell_for_every_title_and_names_the_baseline() -> None:
    header, rows = comparison(trained("a", SPREAD), trained("b", SPREAD, steps=20)).table()
    assert header[3] == "− a"
    assert {len(row) for row in rows} == {len(header)}
    assert "equal times" in comparison(trained("a", SPREAD), trained("b", SPREAD, steps=20)).notes[-1]


def test_many_images_of_few_patients_allow_no_verdict() -> None:
    better = trained("b", [value + 0.05 for value in SPREAD])
    patients = {f"case_{number}": f"p{number % 2}" for number in range(len(SPREAD))}
    found = compared([trained("a", SPREAD), better], dataset="Balls", fold="0", length="10 steps each", patients=patients)
    assert found.rows[1].verdict == "too few cases"
