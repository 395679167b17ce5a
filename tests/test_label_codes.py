from __future__ import annotations

import numpy as np
import pytest

from medseg3d.errors import LabelValueError
from medseg3d.label_codes import LabelCodes, with_annotated
from medseg3d.labels import Labels
from medseg3d.records import to_plain

KIDNEYS = Labels(names=("background", "left", "right", "liver"), values=(0, 1, 2, 5), pairs=((1, 2),))
BRAIN = Labels(names=("background", "whole", "core", "edge"), values=(0, 1, 2, 3), regions=((1, 2, 3), (2, 3), (3,)), ignore=4)
FILE = np.array([[[0, 1, 2, 5]]])


def test_the_codes_of_an_ordinary_dataset_are_its_label_indices() -> None:
    codes = LabelCodes(KIDNEYS)
    assert codes.are_indices
    np.testing.assert_array_equal(codes.encode(FILE, "x"), KIDNEYS.encode(FILE, "x"))
    np.testing.assert_array_equal(codes.contents(), np.eye(4, dtype=bool))
    assert codes.pairs() == KIDNEYS.pairs
    assert set(to_plain(KIDNEYS)) == {"names", "values", "pairs", "regions"}, "older files and digests stay as they are"


def test_regions_keep_the_values_of_the_file_and_ignored_voxels_come_last() -> None:
    codes = LabelCodes(BRAIN)
    found = codes.encode(np.array([[[0, 1, 2, 3, 4]]]), "x")
    assert found.tolist() == [[[0, 1, 2, 3, 4]]]
    assert (codes.ignored, codes.num_codes, codes.dtype) == (4, 5, np.uint8)
    assert codes.contents().astype(int).tolist() == [[1, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]


def test_what_a_case_lacks_is_part_of_its_codes() -> None:
    labels = with_annotated(KIDNEYS, {"a": None, "b": ("liver",), "c": ("left", "right")})
    codes = LabelCodes(labels)
    assert labels.unannotated == ((1, 2), (3,))
    np.testing.assert_array_equal(codes.encode(FILE, "x"), [[[0, 1, 2, 3]]])
    only_liver = codes.encode(FILE, "x", ("liver",))
    assert only_liver.tolist() == [[[4, 4, 4, 7]]], "kidneys that nobody was to annotate are background"
    assert codes.lacking_in(only_liver) == (1, 2)
    assert codes.is_background(only_liver).tolist() == [[[True, True, True, False]]]
    assert codes.encode(FILE, "x", ("left", "right")).tolist() == [[[8, 9, 10, 8]]]
    with pytest.raises(LabelValueError, match="annotated for left, and the plan knows of no case that lacks the others"):
        codes.encode(FILE, "x", ("left",))


def test_ignored_voxels_stay_ignored_in_a_case_that_lacks_structures() -> None:
    labels = with_annotated(BRAIN, {"a": ("whole",), "b": None})
    codes = LabelCodes(labels)
    found = codes.encode(np.array([[[0, 1, 3, 4]]]), "x", ("whole",))
    assert found.tolist() == [[[4, 5, 7, 8]]]
    assert codes.lacking_in(found) == (2, 3)
    assert not codes.is_background(found)[0, 0, 3]


def test_mirroring_exchanges_left_and_right_and_what_cases_lack() -> None:
    labels = with_annotated(KIDNEYS, {"a": None, "b": ("left", "liver")})
    assert labels.unannotated == ((1,), (2,)), "the mirror image of a case lacks the other kidney"
    mirror = {a: b for pair in LabelCodes(labels).pairs() for a, b in (pair, pair[::-1])}
    codes = LabelCodes(labels)
    lacks_right = codes.encode(FILE, "x", ("left", "liver"))
    lacks_left = codes.encode(np.array([[[0, 2, 0, 5]]]), "x", ("right", "liver"))
    assert [mirror.get(code, code) for code in lacks_right.ravel()] == lacks_left.ravel().tolist()
    assert all(mirror[other] == code for code, other in mirror.items())


def test_regions_of_left_and_right_exchange_the_values_that_make_them_up() -> None:
    labels = Labels(
        names=("background", "left lung", "right lung", "nodule"),
        values=(0, 1, 3, 2),
        regions=((1, 2), (3, 4), (2, 4)),
        pairs=((1, 2),),
    )
    assert LabelCodes(labels).pairs() == ((1, 3), (2, 4))
