"""Cases come by chance, in turn, by label or by difficulty, always by numbers alone."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from medseg3d.patches.case_choice import CaseChoice, choose_case
from medseg3d.patches.loading import PatchLoader
from medseg3d.patches.sampling import generator

NAMES = tuple("abcdefg")


def chosen(choice: CaseChoice, count: int, *, epoch: int = 0, owners: dict[int, list[int]] | None = None) -> list[tuple[int, int | None]]:
    return [
        choose_case(choice, NAMES, generator(1, epoch, place), place=place, turn_seed=(1, epoch), owners=owners or {})
        for place in range(count)
    ]


def test_by_default_the_first_random_number_is_the_case() -> None:
    expected = [(int(generator(1, 0, place).integers(len(NAMES))), None) for place in range(50)]
    assert chosen(CaseChoice(), 50) == expected


def test_in_turn_every_case_comes_once_in_an_order_of_its_own_for_each_turn() -> None:
    cases = [case for case, _ in chosen(CaseChoice(is_even=True), 21)]
    turns = [cases[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(turn) == list(range(7)) for turn in turns)
    assert len(set(map(tuple, turns))) == 3
    assert cases != [case for case, _ in chosen(CaseChoice(is_even=True), 21, epoch=1)]


def test_by_label_the_rarest_is_drawn_as_often_as_the_most_frequent() -> None:
    owners = {1: list(range(7)), 2: [4]}
    found = chosen(CaseChoice(is_by_label=True), 2000, owners=owners)
    assert all(case in owners[label or 0] for case, label in found)
    assert Counter(label for _, label in found)[2] == pytest.approx(1000, abs=100)


def test_hard_cases_come_in_proportion_and_easy_ones_still_come() -> None:
    dice = dict(zip(NAMES, (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2), strict=True))
    counts = Counter(case for case, _ in chosen(CaseChoice(hard_share=0.5, dice=dice), 4000))
    expected = 4000 * (0.5 / 7 + 0.5 * 0.85 / (0.85 + 6 * 0.05))
    assert counts[6] == pytest.approx(expected, rel=0.1)
    assert min(counts.values()) > 4000 * 0.5 / 7 * 0.8


def test_cases_that_are_not_measured_are_as_hard_as_can_be() -> None:
    counts = Counter(case for case, _ in chosen(CaseChoice(hard_share=1.0, dice={"a": 0.95}), 2000))
    assert counts[0] < 0.3 * counts[1]


def cases() -> list[SimpleNamespace]:
    """Six with label 1; the last also has label 2, in one voxel."""
    found = []
    for number in range(6):
        labels = np.zeros((8, 8, 8), np.uint8)
        labels[4:, 4:, 4:] = 1
        foreground = {1: np.argwhere(labels == 1)}
        if number == 5:
            labels[1, 1, 1] = 2
            foreground[2] = np.array([[1, 1, 1]])
        found.append(
            SimpleNamespace(
                name=f"case{number}",
                image=np.zeros((1, 8, 8, 8), np.float16),
                labels=labels,
                outside=None,
                foreground=foreground,
                annotated=None,
            )
        )
    return found


def test_patches_are_centered_on_the_label_that_was_drawn_before_the_case() -> None:
    def loader(choice: CaseChoice) -> PatchLoader:
        return PatchLoader(cases(), patch_size=(4, 4, 4), batch_size=2, seed=0, foreground_share=1.0, choice=choice)

    def share(choice: CaseChoice) -> float:
        patches = [labels for batch in loader(choice).batches(0, 40) for labels in batch.labels]
        return float(np.mean([bool((labels == 2).any()) for labels in patches]))

    assert share(CaseChoice(is_by_label=True)) == pytest.approx(0.5, abs=0.15)
    assert share(CaseChoice()) < 0.2


def test_a_resumed_epoch_and_a_share_of_a_batch_have_the_same_cases() -> None:
    choice = CaseChoice(is_even=True, is_by_label=True, hard_share=0.3, dice={"case1": 0.9})
    made = PatchLoader(cases(), patch_size=(4, 4, 4), batch_size=4, seed=3, choice=choice)
    names = [batch.names for batch in made.batches(2, 6)]
    assert [batch.names for batch in made.batches(2, 6, first=3)] == names[3:]
    half = PatchLoader(cases(), patch_size=(4, 4, 4), batch_size=4, seed=3, choice=choice, samples=range(2, 4))
    assert [batch.names for batch in half.batches(2, 6)] == [each[2:] for each in names]
