"""The box of a crop cascade holds all foreground of the cases that its margin was chosen by."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.validation.box import BoxRule, boxes_of, choose_box_rule, combined_rule, find_box, grown, widened

SHAPE, SPACING = (20, 24, 22), (2.0, 1.0, 1.5)
edges = st.tuples(*[st.tuples(st.integers(0, n - 1), st.integers(1, 8)) for n in SHAPE])


def mask_of(*boxes: tuple[tuple[int, int], ...]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for box in boxes:
        mask[tuple(slice(low, low + length) for low, length in box)] = True
    return mask


@given(st.lists(st.tuples(st.lists(edges, min_size=1, max_size=3), edges), min_size=1, max_size=4))
def test_no_foreground_voxel_of_any_case_is_cut(cases: list[tuple[list[tuple[tuple[int, int], ...]], tuple[tuple[int, int], ...]]]) -> None:
    masks = {str(number): (mask_of(*found), mask_of(reference)) for number, (found, reference) in enumerate(cases)}
    choice = choose_box_rule({name: boxes_of(*both, SPACING) for name, both in masks.items()}, extra_mm=0.0)
    for found, reference in masks.values():
        box = find_box(found, choice.rule, SPACING)
        assert box is not None
        outside = reference.copy()
        outside[tuple(slice(*edge) for edge in box)] = False
        assert not outside.any()


def test_far_specks_are_left_out_where_that_makes_the_boxes_smaller() -> None:
    body, speck = ((8, 6), (8, 6), (8, 6)), ((0, 1), (0, 1), (0, 1))
    cases = {"case": boxes_of(mask_of(body, speck), mask_of(body), SPACING)}
    choice = choose_box_rule(cases, extra_mm=1.0)
    assert choice.rule == BoxRule(margin_mm=1.0, min_share=0.1)
    assert choice.needed_mm == 0
    parts = {"case": boxes_of(mask_of(body, speck), mask_of(body, speck), SPACING)}
    assert choose_box_rule(parts, extra_mm=1.0).rule.min_share == 0.0, "a speck that is foreground is kept"


def test_a_case_where_nothing_is_found_is_seen_whole_and_needs_no_margin() -> None:
    body = ((8, 6), (8, 6), (8, 6))
    choice = choose_box_rule(
        {"seen": boxes_of(mask_of(body), mask_of(body), SPACING), "lost": boxes_of(mask_of(), mask_of(body), SPACING)}, extra_mm=0.0
    )
    assert choice.not_found == ("lost",)
    assert choice.rule.margin_mm == 0
    assert choice.mean_share > 0.5
    assert find_box(mask_of(), choice.rule, SPACING) is None


@given(edges, st.floats(0, 30))
def test_margins_are_in_mm_and_end_at_the_volume(box: tuple[tuple[int, int], ...], margin_mm: float) -> None:
    mask = mask_of(box)
    found = find_box(mask, BoxRule(margin_mm=margin_mm, min_share=1.0), SPACING)
    plain = find_box(mask, BoxRule(margin_mm=0.0, min_share=0.0), SPACING)
    assert found is not None
    assert plain is not None
    for (low, high), (first, last), spacing, n in zip(found, plain, SPACING, SHAPE, strict=True):
        assert low == 0 or (first - low) * spacing >= margin_mm - 1e-3
        assert high == n or (high - last) * spacing >= margin_mm - 1e-3
        assert 0 <= low <= first < last <= high <= n


@given(edges, st.tuples(*[st.integers(1, 30)] * 3))
def test_a_grown_box_holds_the_first_one_and_is_as_long_as_the_volume_allows(
    box: tuple[tuple[int, int], ...], wanted: tuple[int, int, int]
) -> None:
    plain = find_box(mask_of(box), BoxRule(margin_mm=0.0, min_share=0.0), SPACING)
    assert plain is not None
    limits = ((0, SHAPE[0]), (0, SHAPE[1]), (0, SHAPE[2]))
    for (low, high), (first, last), edge, n in zip(grown(plain, wanted, limits), plain, wanted, SHAPE, strict=True):
        assert 0 <= low <= first < last <= high <= n
        assert high - low == max(last - first, min(edge, n))


def test_several_folds_look_where_any_of_them_would() -> None:
    rules = [BoxRule(margin_mm=4.0, min_share=1.0), BoxRule(margin_mm=2.0, min_share=0.0)]
    assert combined_rule(rules) == BoxRule(margin_mm=4.0, min_share=0.0)


def test_no_box_is_widened_to_none() -> None:
    assert widened(None, 3.0, SPACING, SHAPE) is None
