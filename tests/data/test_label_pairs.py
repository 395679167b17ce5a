"""Left and right: pairs by name, doubts by position, and where mirroring is safe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.data.checks import check_case
from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.label_pairs import Sides, sides
from medseg3d.data.reading import read_case
from medseg3d.fingerprint.describe_case import describe_case
from medseg3d.labels import Labels

EXTENT = (200.0, 300.0, 400.0)
"""Millimeters along (S, A, R)."""


@dataclass(frozen=True)
class Spot:
    center: tuple[float, float, float]
    volume_mm3: float


@dataclass(frozen=True)
class Body:
    """A case with upright axes; the body's middle lies in the image's unless it is moved."""

    name: str
    labels: dict[int, Spot]
    middle: tuple[float, float, float] | None = (0.5, 0.5, 0.5)

    def world_position(self, center: Sequence[float]) -> np.ndarray:
        return (np.asarray(center) - 0.5) * EXTENT


def spot(s: float, a: float, r: float, volume: float = 150_000) -> Spot:
    """Millimeters from the middle of the image."""
    return Spot(center=(0.5 + s / EXTENT[0], 0.5 + a / EXTENT[1], 0.5 + r / EXTENT[2]), volume_mm3=volume)


def kidneys(seed: int, left: int = 1, right: int = 2) -> dict[int, Spot]:
    """As people have them: the right one lower, of other sizes, the patient not in the middle of the table."""
    rng = np.random.default_rng(seed)
    shift = rng.normal(0, 15)
    return {
        left: spot(rng.normal(0, 8), rng.normal(0, 6), -65 + shift + rng.normal(0, 5), 150_000 * rng.lognormal(0, 0.25)),
        right: spot(-15 + rng.normal(0, 8), rng.normal(0, 6), 65 + shift + rng.normal(0, 5), 150_000 * rng.lognormal(0, 0.25)),
    }


def bodies(number: int, left: int = 1, right: int = 2) -> list[Body]:
    return [Body(name=f"c{seed}", labels=kidneys(seed, left, right)) for seed in range(number)]


def labels_of(*names: str) -> Labels:
    return Labels(names=("background", *names), values=tuple(range(len(names) + 1)))


NAMED, UNNAMED = labels_of("left kidney", "right kidney"), labels_of("label_1", "label_2")


def test_a_mirrored_pair_is_confirmed_without_a_word() -> None:
    assert sides(bodies(1), NAMED) == Sides(pairs=((1, 2),))


def test_a_left_one_on_the_right_is_a_pair_with_a_warning() -> None:
    found = sides(bodies(3, left=2, right=1), NAMED)
    assert found.pairs == ((1, 2),)
    assert found.warnings == (
        "What is named left lies on the right side by the headers: left kidney / right kidney. "
        "Either the names or the headers are swapped; training does not suffer.",
    )


def test_a_single_flipped_case_is_named() -> None:
    odd = Body(name="odd", labels=kidneys(9, left=2, right=1))
    found = sides([*bodies(4), odd], NAMED)
    assert found.pairs == ((1, 2),)
    assert "odd" in found.warnings[0]


ASKEW = [Body(name=f"c{n}", labels={1: spot(0, 0, -30), 2: spot(0, 40, 30)}) for n in range(6)]
UNLIKE = [Body(name=f"c{n}", labels={1: spot(0, 0, -65), 2: spot(0, 0, 65, 1_000_000)}) for n in range(6)]


@pytest.mark.parametrize("cases", [ASKEW, UNLIKE], ids=["askew", "of another size"])
def test_names_alone_do_not_make_a_pair(cases: list[Body]) -> None:
    found = sides(cases, NAMED)
    assert (found.pairs, found.doubt) == ((), "")
    assert "a pair by name" in found.warnings[0]
    assert "cannot tell that they are none" in sides(cases[:2], NAMED).doubt


def test_a_pair_that_is_never_seen_together_stays_a_pair() -> None:
    cases = [Body(name=str(value), labels={value: kidneys(value)[value]}) for value in (1, 2)]
    assert sides(cases, NAMED) == Sides(pairs=((1, 2),))


@pytest.mark.fault("A1", "left and right organs without names", "not mirrored from left to right; --labels is asked for")
@pytest.mark.parametrize("number", [1, 2, 5, 20])
@pytest.mark.parametrize("names", [("label_1", "label_2"), ("organ_1", "organ_2"), ("kidney_1", "kidney_2"), ("kidney a", "kidney b")])
def test_a_pair_without_sides_in_its_names_is_in_doubt(number: int, names: tuple[str, str]) -> None:
    found = sides(bodies(number), labels_of(*names))
    assert found.pairs == ()
    assert f"{names[0]} / {names[1]} could be left and right of the same" in found.doubt
    assert "--labels 1=left_kidney,2=right_kidney" in found.doubt


@pytest.mark.fault("A1", "sides named by a letter or in another language (LK and RK, rinichi stang)", "not mirrored; --labels is asked for")
@pytest.mark.parametrize("names", [("LK", "RK"), ("KL", "KR"), ("rinichi stang", "rinichi drept"), ("vasenmunuainen", "oikeamunuainen")])
def test_sides_that_no_list_knows_are_in_doubt_where_places_are_those_of_a_pair(names: tuple[str, str]) -> None:
    found = sides(bodies(6), labels_of(*names))
    assert found.pairs == ()
    assert f"{names[0]} / {names[1]} could be left and right of the same" in found.doubt
    assert sides(ASKEW, labels_of("LV", "RV")) == Sides()


@pytest.mark.fault(
    "A1", "left and right in swapped order, and a case with a wrong header", "not mirrored; the order along R names the left one"
)
def test_the_left_one_of_a_possible_pair_is_found_by_its_place() -> None:
    cases = [*bodies(8, left=2, right=1), Body(name="odd", labels=kidneys(9))]
    assert "label_2 / label_1 could be left" in sides(cases, UNNAMED).doubt


@pytest.mark.fault(
    "A1", "one of two organs labelled, without a name or with a side alone", "not mirrored from left to right; its name is asked for"
)
@pytest.mark.parametrize("name", ["label_1", "left_kidney", "kidney_l", "rein gauche"])
@pytest.mark.parametrize("number", [1, 6])
def test_a_label_on_one_side_is_in_doubt(name: str, number: int) -> None:
    cases = [Body(name=f"c{seed}", labels={1: kidneys(seed)[1]}) for seed in range(number)]
    assert f"{name} lies on one side" in sides(cases, labels_of(name)).doubt


@pytest.mark.fault(
    "A1", "one of two organs labelled as if there were one (kidney)", "not mirrored from left to right where five cases show one side"
)
def test_a_paired_organ_on_one_side_is_in_doubt() -> None:
    cases = [Body(name=f"c{seed}", labels={1: kidneys(seed)[1]}) for seed in range(6)]
    assert "kidney lies on one side" in sides(cases, labels_of("kidney")).doubt
    assert sides(cases[:4], labels_of("kidney")).doubt == ""


@pytest.mark.fault("A1", "left and right labelled in different cases, without names", "not mirrored from left to right")
def test_sides_that_never_meet_are_in_doubt() -> None:
    cases = [Body(name=f"c{seed}", labels={1 + seed % 2: kidneys(seed)[1 + seed % 2]}) for seed in range(6)]
    assert "label_1, label_2 lie on one side" in sides(cases, UNNAMED).doubt


def test_names_without_sides_say_that_mirroring_is_safe() -> None:
    assert sides(bodies(9), labels_of("liver", "spleen")) == Sides()
    assert sides([Body(name=f"c{seed}", labels={1: kidneys(seed)[1]}) for seed in range(9)], labels_of("spleen")) == Sides()


def test_the_left_of_the_heart_lies_in_the_middle_and_is_no_side() -> None:
    cases = [Body(name=f"c{n}", labels={1: spot(0, 0, -8 + n, 60_000)}) for n in range(9)]
    assert sides(cases, labels_of("left_atrium")) == Sides()


def test_shells_stacks_and_scattered_spots_are_safe() -> None:
    rng = np.random.default_rng(0)
    shells = [Body(name=f"c{n}", labels={1: spot(0, 0, 0, 1e6), 2: spot(2, 1, 3, 1e5)}) for n in range(9)]
    stacks = [Body(name=f"c{n}", labels={1: spot(-30, 0, 2), 2: spot(30, 5, -2)}) for n in range(9)]
    scattered = [Body(name=f"c{n}", labels={1: spot(*rng.uniform(-60, 60, 3), 1e4)}) for n in range(20)]
    assert [sides(cases, UNNAMED).doubt for cases in (shells, stacks, scattered)] == ["", "", ""]


@pytest.mark.fault("A1", "a label beside the middle in images whose body is off the middle", "the body's middle counts, not the image's")
def test_the_bodys_middle_counts() -> None:
    near = {1: spot(0, 0, -20, 4_000)}
    shifted = [
        Body(name=f"c{n}", labels={1: spot(0, 0, -20 + s, 4_000)}, middle=(0.5, 0.5, 0.5 + s / 400)) for n, s in enumerate((-60, 0, 60))
    ]
    assert "label_1 lies on one side" in sides([Body(name="a", labels=near)], labels_of("label_1")).doubt
    assert "label_1 lies on one side" in sides(shifted, labels_of("label_1")).doubt


def test_each_label_of_many_is_in_one_pair() -> None:
    places = {1: (0, 0, -65), 2: (0, 0, 65), 3: (-60, 10, -80), 4: (-60, 10, 80), 5: (0, 0, 0)}
    cases = [Body(name=f"c{n}", labels={value: spot(*place) for value, place in places.items()}) for n in range(3)]
    doubt = sides(cases, labels_of(*(f"label_{value}" for value in places))).doubt
    assert "label_1 / label_2, label_3 / label_4 could be" in doubt
    assert "label_5" not in doubt


@pytest.mark.fault("A1", "left and right in oblique and flipped files, checked by doctor", "places are compared along the body's axes")
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_doctor_and_fingerprint_place_labels_alike(tmp_path: Path, flip: tuple[int, int, int]) -> None:
    turn = np.deg2rad(20)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(np.multiply(flip, (1.0, 1.5, 2.0)))
    labels = np.zeros((20, 16, 12), np.uint8)
    labels[2:5, 3:6, 4:8], labels[14:17, 10:13, 2:4] = 1, 2
    for name, array in (("image.nii.gz", labels * 7.0), ("label.nii.gz", labels)):
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / name)
    case = Case(name="a", channels=(ChannelFile(path=tmp_path / "image.nii.gz"),), label=tmp_path / "label.nii.gz")
    seen, known = check_case(case, None).places, describe_case(read_case(case), "digest")
    assert seen is not None
    for value in (1, 2):
        truth = affine[:3, :3] @ (np.argwhere(labels == value).mean(0) - (np.array(labels.shape) - 1) / 2)
        assert seen.world_position(seen.labels[value].center) == pytest.approx(truth[::-1], abs=1e-5)
        assert known.world_position(known.labels[value].center) == pytest.approx(truth[::-1], abs=1e-5)
        assert seen.labels[value].volume_mm3 == pytest.approx(known.labels[value].volume_mm3)
