"""Which configuration or pair is chosen, and what is said about it."""

from __future__ import annotations

import numpy as np
import pytest

from medseg3d.errors import InputError
from medseg3d.records import read_record, write_record
from medseg3d.validation.selection import Candidate, Selection, choose_mirroring, pairs_of, select

CASES = [f"case_{i}" for i in range(12)]
BASE = dict(zip(CASES, np.random.default_rng(0).uniform(0.4, 0.9, len(CASES)).tolist(), strict=True))


def candidate(*names: str, plus: float = 0.0, noise: float = 0.0, cases: list[str] | None = None) -> Candidate:
    """A candidate whose Dice is that of hard and easy cases, plus a constant, plus noise."""
    generator = np.random.default_rng(len(names))
    dice = {case: BASE[case] + plus + float(generator.normal(0, noise)) for case in cases or CASES}
    return Candidate(configurations=names, folds=dict.fromkeys(names, ("0",)), dice=dice)


def test_the_highest_mean_of_the_single_configurations_wins():
    selection = select([candidate("2d"), candidate("3d_fullres", plus=0.02)])
    assert selection.configurations == ("3d_fullres",)
    assert selection.candidates[0].name == "3d_fullres"
    assert selection.candidates[0].dice.n == len(CASES)


def test_a_pair_that_is_better_in_every_case_wins():
    selection = select([candidate("2d"), candidate("3d_fullres", plus=0.02), candidate("2d", "3d_fullres", plus=0.03)])
    assert selection.configurations == ("2d", "3d_fullres")
    assert selection.folds == {"2d": ("0",), "3d_fullres": ("0",)}


def test_a_pair_that_is_better_by_chance_does_not_win():
    selection = select([candidate("2d"), candidate("3d_fullres"), candidate("2d", "3d_fullres", plus=0.002, noise=0.05)])
    assert len(selection.configurations) == 1
    assert "simpler" in selection.reason


def test_a_pair_that_gains_next_to_nothing_does_not_win():
    selection = select([candidate("2d"), candidate("3d_fullres"), candidate("2d", "3d_fullres", plus=0.0005)])
    assert len(selection.configurations) == 1


def test_a_pair_on_few_cases_does_not_win():
    few = CASES[:3]
    selection = select([candidate("2d", cases=few), candidate("3d", cases=few), candidate("2d", "3d", plus=0.1, cases=few)])
    assert len(selection.configurations) == 1


def test_ties_go_to_the_recommended_then_to_the_earlier():
    tied = [candidate("2d"), candidate("3d_lowres"), candidate("3d_fullres")]
    assert select(tied, recommended="3d_fullres").configurations == ("3d_fullres",)
    assert select(tied).configurations == ("2d",)


def test_only_cases_that_all_candidates_have_are_compared():
    hard = min(CASES, key=BASE.__getitem__)
    without = [case for case in CASES if case != hard]
    selection = select([candidate("2d", cases=without), candidate("3d_fullres", plus=0.01)])
    assert selection.configurations == ("3d_fullres",)
    assert hard not in selection.cases
    own = {result.name: result.own_dice.n for result in selection.candidates}
    assert own == {"2d": len(CASES) - 1, "3d_fullres": len(CASES)}
    assert str(len(CASES) - 1) in selection.notes[0]


def test_different_folds_are_compared_with_a_note_and_without_pairs():
    selection = select([candidate("2d", cases=CASES[:6]), candidate("3d", cases=CASES[6:]), candidate("2d", "3d", cases=CASES[:6])])
    assert len(selection.configurations) == 1
    assert "No validation case is common" in selection.notes[0]
    assert all(result.dice.n == 0 for result in selection.candidates)


def test_one_configuration_with_one_fold_is_enough():
    selection = select([candidate("3d_fullres", cases=CASES[:1])])
    assert selection.configurations == ("3d_fullres",)
    assert "only configuration" in selection.reason


def test_nothing_predicted_where_nothing_is_counts_as_right():
    dice = {"healthy": None, "sick": 0.8}
    silent = Candidate(configurations=("silent",), folds={"silent": ("0",)}, dice=dice)
    inventive = Candidate(configurations=("inventive",), folds={"inventive": ("0",)}, dice={"healthy": 0.0, "sick": 0.81})
    assert select([inventive, silent]).configurations == ("silent",)


def test_nothing_trained_is_an_error():
    with pytest.raises(InputError, match="medseg3d train"):
        select([])


def test_a_selection_survives_a_file(tmp_path):
    selection = select([candidate("2d"), candidate("3d", plus=0.02), candidate("2d", "3d", plus=0.03)])
    path = write_record(tmp_path / "selection.json", selection, "selection")
    assert read_record(path, Selection, "selection") == selection


def test_pairs_are_all_pairs():
    assert len(pairs_of(["a", "b", "c", "d"])) == 6


@pytest.mark.fault("A8", "mirroring left out on the evidence of fewer than five cases", "mirroring is used, as where nothing is measured")
def test_mirroring_is_not_left_out_on_four_cases():
    worse = {f"c{i}": 0.8 for i in range(5)}
    better = dict.fromkeys(worse, 0.9)
    few = choose_mirroring(dict(list(worse.items())[:4]), better)
    assert few.is_used
    assert "5 cases are needed" in few.reason
    assert not choose_mirroring(worse, better).is_used


def of_two_patients(names: list[str]) -> dict[str, str]:
    return {name: f"p{number % 2}" for number, name in enumerate(names)}


def test_images_of_few_patients_are_no_evidence_for_a_pair_though_they_are_many():
    pair = [candidate("2d"), candidate("3d"), candidate("2d", "3d", plus=0.03)]
    assert len(select(pair).configurations) == 2
    assert len(select(pair, patients={case: case for case in CASES}).configurations) == 2
    assert len(select(pair, patients=of_two_patients(CASES)).configurations) == 1


def test_intervals_of_patients_are_those_of_their_groups_and_the_means_stay():
    one, other = candidate("2d"), candidate("3d", plus=0.01, noise=0.05)
    by_case, by_patient = select([one, other]), select([one, other], patients={case: f"p{n // 2}" for n, case in enumerate(CASES)})
    assert [c.dice.mean for c in by_case.candidates] == pytest.approx([c.dice.mean for c in by_patient.candidates])
    assert by_case.candidates[1].gain != by_patient.candidates[1].gain
    mirrored, plain = dict(one.dice), dict(other.dice)
    apart, together = (choose_mirroring(mirrored, plain, patients=patients).gain for patients in ({}, of_two_patients(CASES)))
    assert apart is not None
    assert together is not None
    assert apart.mean == pytest.approx(together.mean)
    assert (apart.low, apart.high) != (together.low, together.high)
