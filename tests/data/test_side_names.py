"""Which names say left and right, and which say nothing."""

from __future__ import annotations

import pytest

from medseg3d.data.side_names import left_right_pairs, may_be_twins, names_a_side, names_one_of_two, says_nothing


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("background", "right_parotid", "left_parotid"), ((2, 1),)),
        (("background", "kidney_left", "kidney_right", "liver"), ((1, 2),)),
        (("background", "Kidney L", "Kidney (R)"), ((1, 2),)),
        (("background", "left lung", "right kidney"), ()),
        (("background", "cleft", "bright"), ()),
        (("background", "left_kidney", "kidney_right"), ((1, 2),)),
        (("background", "Parotid_Lt", "Parotid_Rt"), ((1, 2),)),
        (("background", "ParotidR", "ParotidL"), ((2, 1),)),
        (("background", "LKidney", "RKidney"), ((1, 2),)),
        (("background", "rightkidney", "leftkidney"), ((2, 1),)),
        (("background", "ctx-lh-insula", "ctx-rh-insula"), ((1, 2),)),
        (("background", "rein gauche", "rein droit", "foie"), ((1, 2),)),
        (("background", "Linke Niere", "Rechte Niere"), ((1, 2),)),
        (("background", "左肾", "右肾"), ((1, 2),)),
        (("background", "nerka lewa", "nerka prawa"), ((1, 2),)),
        (("background", "højrenyre", "venstrenyre"), ((2, 1),)),
        (("background", "좌신장", "우신장"), ((1, 2),)),
        (("background", "rib_left_1", "rib_left_2", "rib_right_1", "rib_right_2"), ((1, 3), (2, 4))),
        (("background", "LV", "RV", "MYO"), ()),
        (("background", "vertebra_L1", "vertebra_L2"), ()),
    ],
)
def test_names_that_differ_in_a_side_are_a_pair(names: tuple[str, ...], pairs: tuple[tuple[int, int], ...]) -> None:
    assert left_right_pairs(names) == pairs


@pytest.mark.parametrize("name", ["label_1", "Label 12", "organ_2", "class7", "3", "roi_3", "segment 4", "A", "structure_b", "x1", "label"])
def test_a_number_with_a_general_word_says_nothing(name: str) -> None:
    assert says_nothing(name)


@pytest.mark.parametrize("name", ["liver", "LV", "GM", "tumor", "organ_inner", "kidney_1", "lesion", "edema", "anterior", "left_atrium"])
def test_a_word_says_something(name: str) -> None:
    assert not says_nothing(name)


def test_only_names_without_a_difference_leave_twins_open() -> None:
    assert may_be_twins("label_1", "label_2")
    assert may_be_twins("kidney1", "kidney2")
    assert not may_be_twins("organ_inner", "organ_outer")
    assert not may_be_twins("anterior", "posterior")


def test_a_side_is_a_word_beside_another() -> None:
    assert [names_a_side(name) for name in ("left_kidney", "kidney (R)", "rein gauche", "left", "bright", "L5")] == [True] * 3 + [False] * 3


def test_paired_organs_are_known_by_their_words() -> None:
    assert [names_one_of_two(n) for n in ("kidneys", "parotid gland", "liver", "kidney cyst", "right lung")] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("left", "right"),
    [("kidney_sx", "kidney_dx"), ("Niere li", "Niere re"), ("OS", "OD"), ("lens OS", "lens OD"), ("Ureter_SX", "Ureter_DX")],
)
def test_short_words_of_other_languages_make_pairs(left: str, right: str) -> None:
    assert left_right_pairs(("background", right, left)) == ((2, 1),)


TWINS = [("LK", "RK"), ("KL", "KR"), ("l1", "r1"), ("lewa nerka", "prawa nerka"), ("почка левая", "почка правая"), ("rein_g", "rein_d")]
NO_TWINS = [("LK", "RL"), ("liver", "spleen"), ("left kidney", "left lung"), ("upper lobe", "lower lobe"), ("lobe", "upper lobe")]


def test_names_with_a_side_that_is_not_known_leave_twins_open() -> None:
    assert [pair for pair in TWINS if not may_be_twins(*pair)] == []
    assert [pair for pair in NO_TWINS if may_be_twins(*pair)] == []
