"""Lists of labels that contradict themselves, values that mean something else, and images in the place of label maps."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg3d.data.label_rules import equal_neighbors, marker_values, name_doubts, name_findings, rare_labels, refuse_image
from medseg3d.data.open_dataset import open_dataset
from medseg3d.errors import DatasetError, LabelValueError
from medseg3d.workflows.doctor import doctor
from medseg3d.workflows.plan import plan


def ball(seed: int) -> np.ndarray:
    labels = np.zeros((16, 14, 12), np.int16)
    labels[5 + seed % 3 : 12, 4:10, 3:9] = 1
    labels[7:10, 5 + seed % 2 : 9, 4:7] = 2
    return labels


def picture(seed: int) -> np.ndarray:
    return (ball(seed) * 200 + np.random.default_rng(seed).normal(100, 20, (16, 14, 12))).astype(np.int16)


@pytest.fixture
def balls(tmp_path: Path) -> Path:
    """Six cases in plain folders, labels 1 and 2."""
    for number in range(6):
        put(tmp_path / "Balls" / "images" / f"c{number}.nii.gz", picture(number))
        put(tmp_path / "Balls" / "labels" / f"c{number}.nii.gz", ball(number))
    return tmp_path / "Balls"


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def declare(root: Path, labels: object) -> Path:
    text = labels if isinstance(labels, str) else json.dumps(labels)
    (root / "dataset.json").write_text(f'{{"channel_names": {{"0": "MRI"}}, "labels": {text}}}', encoding="utf-8")
    return root


@pytest.mark.fault("A6", "dataset.json with another name for 0, or background for another value", "refused, naming the rule")
@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ({"liver": 0, "marker": 1, "x": 2}, "'liver' has the value 0, which is always the background"),
        ({"liver": 0, "background": 1}, "'background' has the value 1, but the background is always 0"),
        ({"background": 1, "marker": 2}, "'background' has the value 1"),
        ({"Hintergrund": 1, "Leber": 2}, "'Hintergrund' has the value 1"),
        ({"1": "background", "2": "liver"}, "'background' has the value 1"),
    ],
)
def test_the_background_is_zero_and_nothing_else_is(balls: Path, labels: object, part: str) -> None:
    with pytest.raises(DatasetError, match=part):
        plan(declare(balls, labels))
    findings = doctor(balls, fix=False).findings
    assert any(part in finding.message and finding.severity == "error" for finding in findings)
    assert not any("no dataset.json" in finding.message for finding in findings)


@pytest.mark.fault("A6", "names, keys or values that stand twice, no structures, values that are no integers", "refused, naming them")
@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ('{"background": 0, "liver": 1, "liver": 2}', "'liver' stands twice"),
        ('{"0": "background", "1": "liver", "2": "liver"}', "values 1 and 2 have the same name 'liver'"),
        ({"background": 0, "a": 1, "b": 1}, "both have the value 1"),
        ({"background": 0, "a": 1, "b": "1"}, "both have the value 1"),
        ({"background": 0}, "the background is the only label"),
        ({"background": 0, "a": True, "b": 2}, "not integers: a"),
        ({"background": 0, "a": 1.5, "b": 2}, "not integers: a"),
        ({"background": 0, "a": None}, "not integers: a"),
        ({"background": 0, "": 1}, "has no name"),
        (["background", "liver"], "labels must name the label values"),
    ],
)
def test_lists_that_contradict_themselves_are_refused(balls: Path, labels: object, part: str) -> None:
    with pytest.raises(DatasetError, match=part):
        open_dataset(declare(balls, labels))


@pytest.mark.fault("A6", "a label for voxels that nobody annotated (void, unlabeled, …)", "taken for the ignore label")
@pytest.mark.parametrize("name", ["ignore", "Ignore", "void", "unlabeled", "not_annotated", "unannotated", "don't care", "255"])
def test_labels_of_what_nobody_annotated_are_ignore_labels(balls: Path, name: str) -> None:
    labels = open_dataset(declare(balls, {"background": 0, "ball": 1, name: 255})).labels
    assert labels is not None
    assert (labels.values, labels.ignore) == ((0, 1), 255)


def test_two_ignore_labels_are_refused(balls: Path) -> None:
    with pytest.raises(DatasetError, match="void, ignore are ignore labels, and there can be one"):
        open_dataset(declare(balls, {"background": 0, "ball": 1, "void": 2, "ignore": 3}))


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "ball": 1, "core": 2},
        {"Background": 0, "ball": 1, "core": 2},
        {"BG": 0, "ball": 1, "core": 2},
        {"Clear Label": 0, "ball": 1, "core": 2},
        {"unlabeled": 0, "ball": 1, "core": 2},
        {"Hintergrund": 0, "ball": 1, "core": 2},
        {"background tissue": 0, "ball": 1, "core": 2},
        {"ball": 1, "core": 2},
        {"background": 0, "ball": 1.0, "core": "2"},
        {"0": "background", "1": "ball", "2": "core"},
        {"background": 0, "ball": 1, "BG": 2},
        {"background": 0, "ball": 1, "core": 2, "unknown": -1},
    ],
)
def test_sound_lists_are_taken(balls: Path, labels: object) -> None:
    assert open_dataset(declare(balls, labels)).labels is not None


def test_a_doubtful_name_is_a_warning(balls: Path) -> None:
    declare(balls, {"background": 0, "ball": 1, "unknown": 2})
    assert any("'unknown' (value 2) is trained" in warning for warning in plan(balls).warnings)
    assert any("'unknown' (value 2)" in finding.message for finding in doctor(balls, fix=False).findings)
    assert name_doubts({0: "unknown", 1: "liver"}) == []
    assert name_findings({0: "unknown", 1: "liver"}) == []


@pytest.mark.fault("A6", "an image in the place of one label map", "that case fails alone, the others are planned; doctor names it")
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_an_image_in_the_place_of_a_label_map_costs_its_case(balls: Path, dtype: type) -> None:
    put(balls / "labels" / "c3.nii.gz", picture(3).astype(dtype))
    made = plan(balls)
    assert [(failure.case, "looks like an image" in failure.reason) for failure in made.failures] == [("c3", True)]
    assert made.plan.labels.values == (0, 1, 2)
    assert [f.case for f in doctor(balls, fix=False).findings if "looks like an image" in f.message] == ["c3"]


@pytest.mark.fault("A6", "an image in the place of a label map, with a declared list", "that case fails alone, the others are planned")
def test_a_declared_list_does_not_make_an_image_fatal(balls: Path) -> None:
    put(balls / "labels" / "c3.nii.gz", picture(3))
    made = plan(declare(balls, {"background": 0, "ball": 1, "core": 2}))
    assert [failure.case for failure in made.failures] == ["c3"]


def test_many_small_parcels_are_no_image() -> None:
    parcels = np.arange(4 * 5 * 6).reshape(4, 5, 6).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    refuse_image(parcels, "atlas", num_values=120)
    thin = np.zeros((40, 40, 40), np.int32)
    for value in range(1, 31):
        thin[value, :, 20] = value  # vessels of one voxel
    refuse_image(thin, "vessels", num_values=31)
    inside_a_body = np.where(parcels > 110, parcels, 1)
    refuse_image(inside_a_body, "body", num_values=30)


@pytest.mark.parametrize("kind", ["noise", "CT with even air", "smooth"])
def test_images_are_told_from_label_maps(kind: str) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(100, 20, (30, 30, 30)).astype(np.int16)
    if kind == "CT with even air":
        image[:, :8] = -1024
    if kind == "smooth":
        image = (np.add.outer(np.add.outer(np.arange(30), np.arange(30)), np.arange(30)) * 3 + rng.normal(0, 2, (30, 30, 30))).astype(
            np.int16
        )
    assert equal_neighbors(image) < 0.3
    with pytest.raises(LabelValueError, match="looks like an image"):
        refuse_image(image, "x", num_values=100)


@pytest.mark.fault(
    "A6",
    "255 or a negative value beside small ones, without a list of labels",
    "taken for voxels that nobody annotated, with a warning, until it has a name",
)
@pytest.mark.parametrize("value", [255, -1])
def test_a_value_for_what_nobody_annotated_is_no_class(balls: Path, value: int) -> None:
    def mark(number: int) -> None:
        labels = ball(number)
        labels[0] = value
        put(balls / "labels" / f"c{number}.nii.gz", labels)

    mark(2)
    for numbers in ((2,), range(6)):
        for number in numbers:
            mark(number)
        made = plan(balls)
        assert (made.plan.labels.values, made.plan.labels.ignore, made.failures) == ((0, 1, 2), value, ())
        assert any(f"The label value {value} is taken for voxels that nobody has annotated" in warning for warning in made.warnings)
        assert made.plan == plan(balls).plan
        told = [finding for finding in doctor(balls, fix=False).findings if "nobody has annotated" in finding.message]
        assert [finding.severity for finding in told] == ["warning"]
    made = plan(balls, label_names={value: "table"})
    assert (made.plan.labels.names[-1 if value > 0 else 1], made.plan.labels.ignore) == ("table", None)
    assert plan(balls, label_names={value: "ignore"}).plan.labels.ignore == value


def test_a_mask_of_255_among_masks_of_1_costs_its_case(balls: Path) -> None:
    put(balls / "labels" / "c2.nii.gz", np.where(ball(2) > 0, 255, 0).astype(np.uint8))
    made = plan(balls)
    assert [(failure.case, "label value 255" in failure.reason) for failure in made.failures] == [("c2", True)]
    assert made.plan.labels.ignore is None
    assert [f.case for f in doctor(balls, fix=False).findings if f.severity == "error"] == ["c2"]


@pytest.mark.parametrize(
    "values", [{0, 255}, {0, 127, 255}, {0, 128, 255}, {0, 85, 170, 255}, {0, 1}, {0, 1, 2, 3}, {0, -1}, {0, 997, 65535}]
)
def test_masks_and_shades_of_gray_are_labels(values: set[int]) -> None:
    assert marker_values(values) == ()


@pytest.mark.parametrize(
    ("values", "markers"), [({0, 1, 255}, (255,)), ({0, 1, 2, 254, 255}, (254, 255)), ({0, 1, 5, 90, 65535}, (65535,)), ({0, 1, -1}, (-1,))]
)
def test_markers_beside_small_values_are_found(values: set[int], markers: tuple[int, ...]) -> None:
    assert marker_values(values) == markers


@pytest.mark.fault("A6", "values that number objects case by case", "one warning instead of a line per value")
def test_many_rare_values_are_told_in_one_sentence() -> None:
    counted = {f"c{case}": dict.fromkeys(range(1, 4 + case), 50) for case in range(6)}
    scattered = {f"c{case}": dict.fromkeys(range(100 * case, 100 * case + 7), 50) for case in range(1, 6)}
    for voxels in (counted, scattered):
        warnings = rare_labels(voxels)
        assert len(warnings) == 1
        assert "number objects case by case" in warnings[0]
    one = rare_labels({f"c{case}": {1: 50} | ({9: 30} if case == 2 else {}) for case in range(5)})
    assert one == (
        "The label value 9 occurs in 1 of 5 cases (c2), with 30 voxels in all. If it is meant, write a dataset.json that lists the "
        "labels; if not, correct the label file.",
    )


def relabel(root: Path, change: dict[int, int], cases: range = range(6)) -> None:
    for number in cases:
        values = ball(number)
        put(root / "labels" / f"c{number}.nii.gz", np.vectorize(lambda v: change.get(int(v), int(v)))(values).astype(np.int16))


@pytest.mark.fault("A6", "label maps without any 0, whose background is 1", "refused, naming the value that fills the images")
@pytest.mark.parametrize("first", [1, 4])
def test_a_background_that_is_not_0_anywhere_is_refused(balls: Path, first: int) -> None:
    relabel(balls, {0: first, 1: first + 1, 2: first + 2})
    with pytest.raises(DatasetError, match=rf"no label map holds 0, which is the background, and {first} fills 9\d% of the images"):
        plan(balls)
    (error,) = (finding for finding in doctor(balls, fix=False).findings if finding.severity == "error")
    assert f"--labels {first}=NAME" in error.message
    (balls / "labels.csv").write_text(f"value,name\n{first},air\n", encoding="utf-8")
    assert "fills 9" in " ".join(plan(balls).warnings)


@pytest.mark.fault(
    "A6", "background and structure exchanged, in all cases or in one", "a warning from doctor and plan names the label or the case"
)
def test_an_exchanged_background_is_told(balls: Path) -> None:
    relabel(balls, {0: 1, 1: 0, 2: 0})
    for texts in (plan(balls).warnings, [finding.message for finding in doctor(balls, fix=False).findings]):
        assert any("(value 1) fills 9" in text for text in texts)
    relabel(balls, {})
    relabel(balls, {0: 1, 1: 0, 2: 0}, range(2, 3))
    for texts in (plan(balls).warnings, [finding.message for finding in doctor(balls, fix=False).findings]):
        assert any("more than 80% of c2" in text for text in texts)


def test_labels_that_share_an_image_are_no_background(balls: Path) -> None:
    tissues = (1 + np.indices((16, 14, 12))[0] // 6).astype(np.int16)  # they fill the image, none of them most of it
    for number in range(6):
        put(balls / "labels" / f"c{number}.nii.gz", tissues)
    assert not any("fills" in text for text in plan(balls).warnings)
    assert not any(finding.severity == "error" for finding in doctor(balls, fix=False).findings)


@pytest.mark.fault(
    "A6", "a label map copied into the image folder, or an image of few values into the label folder", "costs its case, naming both files"
)
def test_an_image_that_is_its_own_label_map_costs_its_case(balls: Path) -> None:
    put(balls / "images" / "c2.nii.gz", ball(2).astype(np.float32))
    (failure,) = plan(balls).failures
    assert "the image (c2.nii.gz) holds the same voxels as the label map (c2.nii.gz)" in failure.reason
    (error,) = (finding for finding in doctor(balls, fix=False).findings if finding.severity == "error")
    assert (error.case, "one was copied over the other" in error.message) == ("c2", True)


def test_an_empty_image_with_an_empty_label_map_is_no_copy(balls: Path) -> None:
    for folder in ("images", "labels"):
        put(balls / folder / "c2.nii.gz", np.zeros((16, 14, 12), np.int16))
    assert not plan(balls).failures
    assert not any(finding.severity == "error" for finding in doctor(balls, fix=False).findings)
