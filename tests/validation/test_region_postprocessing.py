"""Postprocessing of overlapping regions, and its choice where parts of the references are not annotated."""

from __future__ import annotations

import numpy as np
import torch

from medseg3d.label_codes import LabelCodes, with_annotated
from medseg3d.labels import Labels
from medseg3d.validation.postprocessing import Postprocessing, RegionHoles, RegionLargest, Step, apply_postprocessing
from medseg3d.validation.postprocessing_choice import choose_postprocessing
from medseg3d.validation.postprocessing_evidence import ValidatedCase, is_split
from medseg3d.validation.region_postprocessing import enclosing_region, parts_of, region_steps

REGIONS = Labels(names=("background", "whole", "core"), values=(0, 1, 2), regions=((1, 2), (2,)), ignore=3)
CLASSES = Labels(names=("background", "a", "b"), values=(0, 1, 2), ignore=3)


def ball(*, spot: int = 0, hidden: bool = False) -> np.ndarray:
    """Whole (1) around core (2); with a false spot of that value in the corner, in slices every second of which is hidden (3)."""
    array = np.zeros((9, 9, 9), np.uint8)
    array[2:7, 2:7, 2:7] = 1
    array[4, 4, 4] = 2
    array[0, 0, 0] = spot
    if hidden:
        array[::2] = 3
    return array


def cases(predicted: list[np.ndarray], reference: list[np.ndarray], labels: Labels, **annotated: tuple[str, ...]) -> list[ValidatedCase]:
    codes = LabelCodes(labels)
    encoded = [codes.encode(array, "x", annotated.get(f"c{number}")) for number, array in enumerate(reference)]
    return [
        ValidatedCase(name=f"c{number}", load=lambda pair=pair: pair)  # type: ignore[misc]
        for number, pair in enumerate(zip(predicted, encoded, strict=True))
    ]


def test_the_parts_of_a_region_are_the_indices_of_predictions() -> None:
    labels = Labels(names=("background", "core", "whole"), values=(0, 2, 1), regions=((2,), (1, 2)))
    assert [parts_of(labels, index) for index in labels.foreground] == [(1,), (1, 2)]


def test_a_region_is_cleaned_as_the_union_that_it_is() -> None:
    keep = Postprocessing(steps=(Step(operation="keep_largest", index=1, parts=(1, 2)),))
    np.testing.assert_array_equal(apply_postprocessing(ball(spot=2), keep), ball())
    holed = ball()
    holed[3, 3, 3] = 0
    filled = apply_postprocessing(holed, Postprocessing(steps=(Step(operation="fill_holes", index=1, parts=(1, 2)),)))
    np.testing.assert_array_equal(filled, ball())
    np.testing.assert_array_equal(RegionHoles(index=1, parts=(1, 2))(torch.from_numpy(holed[None])).numpy()[0], ball())


def test_a_second_object_of_an_inner_region_becomes_the_region_around_it_and_leaves_no_hole() -> None:
    two = ball()
    two[2, 2, 2] = two[4, 4, 4] = two[4, 4, 3] = 2
    step = next(step for step in region_steps(REGIONS) if (step.operation, step.index) == ("keep_largest", 2))
    cleaned = apply_postprocessing(two, Postprocessing(steps=(step,)))
    np.testing.assert_array_equal(cleaned > 0, two > 0)
    assert np.argwhere(cleaned == 2).tolist() == [[4, 4, 3], [4, 4, 4]]
    in_bundle = RegionLargest(index=2, parts=step.parts, enclosing=step.enclosing)
    np.testing.assert_array_equal(in_bundle(torch.from_numpy(two[None])).numpy()[0], cleaned)


def test_the_enclosing_region_is_the_smallest_one_around_whose_own_value_lies_outside() -> None:
    nested = Labels(names=("background", "whole", "core", "active"), values=(0, 1, 2, 3), regions=((1, 2, 3), (2, 3), (3,)))
    assert [enclosing_region(nested, index) for index in nested.foreground] == [0, 1, 2]
    crossing = Labels(names=("background", "left", "right"), values=(0, 1, 2), regions=((1, 3), (2, 3)))
    assert [enclosing_region(crossing, index) for index in crossing.foreground] == [0, 0]


def test_false_spots_of_regions_are_removed_where_no_region_falls() -> None:
    chosen = choose_postprocessing(cases([ball(spot=1)] * 5, [ball()] * 5, REGIONS), REGIONS)
    assert chosen.steps == (Step(operation="keep_largest_foreground"),)
    assert [decision.label for decision in chosen.decisions] == ["foreground", "whole", "core", "whole", "core"]


def test_a_step_on_a_region_that_costs_another_is_not_taken() -> None:
    truth = ball()
    truth[8, 8, 8] = 2
    apart = ball(spot=1)
    apart[8, 8, 8] = 2
    assert choose_postprocessing(cases([apart] * 5, [truth] * 5, REGIONS), REGIONS).steps == ()


def test_slices_that_nobody_annotated_say_nothing_against_one_object() -> None:
    assert is_split(ball(hidden=True) == 1)
    assert not is_split(ball(hidden=True) == 1, ball(hidden=True) != 3)
    spotted = [ball(spot=1)] * 5
    for labels in (REGIONS, CLASSES):
        spotted[0][1, 0, 0] = 1
        assert (
            choose_postprocessing(cases(spotted, [ball(hidden=True)] * 5, labels), labels).steps[0].operation == "keep_largest_foreground"
        )
    spot_in_hidden_slice = cases([ball(spot=1)] * 5, [ball(hidden=True)] * 5, CLASSES)
    decision = choose_postprocessing(spot_in_hidden_slice, CLASSES).decisions[0]
    assert decision.dice_before == decision.dice_after == 1


def test_what_cases_were_not_annotated_for_is_no_evidence() -> None:
    plain = Labels(names=("background", "a", "b"), values=(0, 1, 2))
    labels = with_annotated(plain, {f"c{number}": ("a",) for number in range(5)})
    without_b = np.where(ball() == 2, 0, ball()).astype(np.uint8)
    found = choose_postprocessing(cases([ball()] * 5, [without_b] * 5, labels, **{f"c{n}": ("a",) for n in range(5)}), labels)
    of_b = [decision for decision in found.decisions if decision.label == "b"]
    assert {decision.reason for decision in of_b} == {"no case has it"}
