from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medseg3d.data.annotated import unused_rows
from medseg3d.data.dataset import Case, ChannelFile, Split
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.reading import read_case
from medseg3d.data.splits import read_splits
from medseg3d.errors import (
    DatasetError,
    GeometryMismatchError,
    InputError,
    LabelValueError,
    NotFiniteError,
)
from medseg3d.geometry import AS_STORED
from medseg3d.images import write_image

SHAPE = (4, 5, 6)
AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def put(path: Path, array: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(path, np.zeros(SHAPE, np.uint8) if array is None else array, affine)


def describe_dataset(root: Path, **changes: object) -> None:
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "left lung": 1, "right lung": 5}, "file_ending": ".nii.gz"}
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({**description, **changes}), encoding="utf-8")


def nnunet(root: Path, names: tuple[str, ...] = ("a", "b"), *, num_channels: int = 1) -> Path:
    describe_dataset(root, channel_names={str(c): f"MR{c}" for c in range(num_channels)}, numTraining=len(names))
    for name in names:
        for channel in range(num_channels):
            put(root / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
        put(root / "labelsTr" / f"{name}.nii.gz")
    return root


def findings_of(root: Path, **arguments: object) -> str:
    with pytest.raises(DatasetError) as error:
        open_dataset(root, **arguments)
    return "\n".join(error.value.findings) or str(error.value)


# ---- opening


def test_an_nnunet_folder_is_read(tmp_path) -> None:
    root = nnunet(tmp_path / "Dataset007_Lung", num_channels=2)
    put(root / "imagesTs" / "t_0000.nii.gz"), put(root / "imagesTs" / "t_0001.nii.gz"), put(root / "labelsTs" / "t.nii.gz")
    (root / "imagesTr" / "._a_0000.nii.gz").write_bytes(b"")
    (root / "imagesTr" / "notes.txt").write_bytes(b"")
    dataset = open_dataset(root)
    assert (dataset.name, dataset.layout, dataset.channel_names) == ("Dataset007_Lung", "nnunet", ("MR0", "MR1"))
    assert [case.name for case in dataset.training] == ["a", "b"]
    assert [channel.path.name for channel in dataset.training[0].channels] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert dataset.training[0].label == root / "labelsTr" / "a.nii.gz"
    assert dataset.test[0].label == root / "labelsTs" / "t.nii.gz"
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "left lung", "right lung")
    assert dataset.labels.values == (0, 1, 5)
    assert dataset.labels.pairs == ((1, 2),)
    assert dataset.declared_splits is None


def test_the_first_version_of_nnunets_json_is_read(tmp_path) -> None:
    root = nnunet(tmp_path)
    (root / "dataset.json").unlink()
    listed = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"]
    describe = {"name": "Old", "modality": {"0": "MRI"}, "labels": {"0": "background", "2": "tumor", "1": "edema"}, "training": listed}
    (root / "dataset.json").write_text(json.dumps(describe), encoding="utf-8")
    dataset = open_dataset(root)
    assert (dataset.name, dataset.layout, dataset.channel_names) == ("Old", "nnunet", ("MRI",))
    assert dataset.labels is not None
    assert dataset.labels.names == ("background", "edema", "tumor")


def test_nnunets_explicit_paths_are_followed(tmp_path) -> None:
    image, label = put(tmp_path / "elsewhere" / "scan.nii.gz"), put(tmp_path / "data" / "masks" / "m.nii.gz")
    describe_dataset(tmp_path / "data", dataset={"case": {"images": [str(image)], "label": "masks/m.nii.gz"}})
    assert open_dataset(tmp_path / "data").training == (Case(name="case", channels=(ChannelFile(path=image),), label=label),)
    describe_dataset(tmp_path / "data", dataset={"case": {"images": [str(image), "lost.nii.gz"], "label": "gone.nii.gz"}})
    text = findings_of(tmp_path / "data")
    for part in ("lost.nii.gz", "gone.nii.gz", "2 channels, expected 1"):
        assert part in text


def test_a_decathlon_folder_with_4d_files_is_read(tmp_path) -> None:
    for name in ("x", "y"):
        put(tmp_path / "imagesTr" / f"{name}.nii.gz", np.zeros((*SHAPE, 2), np.int16)), put(tmp_path / "labelsTr" / f"{name}.nii.gz")
    put(tmp_path / "imagesTs" / "z.nii.gz", np.zeros((*SHAPE, 2), np.int16))
    describe = {
        "name": "Task",
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "yx"],
        "test": ["./imagesTs/z.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(describe), encoding="utf-8")
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.channel_names) == ("decathlon", ("FLAIR", "T1w"))
    assert [case.name for case in dataset.training] == ["x", "y"]
    assert [channel.volume for channel in dataset.training[0].channels] == [0, 1]
    assert [case.name for case in dataset.test] == ["z"]
    assert read_case(dataset.training[0]).image.shape == (2, 6, 5, 4)


def test_decathlon_findings_come_all_at_once(tmp_path) -> None:
    put(tmp_path / "imagesTr" / "x.nii.gz", np.zeros((*SHAPE, 3), np.int16)), put(tmp_path / "labelsTr" / "x.nii.gz")
    training = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in "xy"]
    describe_dataset(tmp_path, channel_names={"0": "A", "1": "B"}, training=training)
    text = findings_of(tmp_path)
    for part in ("x.nii.gz holds 3 channels, expected 2", "imagesTr/y.nii.gz: listed", "labelsTr/y.nii.gz: listed"):
        assert part in text


@pytest.mark.parametrize("is_4d", [False, True])
def test_two_plain_folders_are_read(tmp_path, is_4d) -> None:
    for name in ("p_0001", "p_0002"):
        put(tmp_path / "images" / f"{name}.nii.gz", np.zeros((*SHAPE, 2), np.int16) if is_4d else None)
        put(tmp_path / "labels" / f"{name}.nii.gz")
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.labels, dataset.has_named_channels) == ("folders", None, False)
    assert [case.name for case in dataset.training] == ["p_0001", "p_0002"]
    assert dataset.channel_names == (("channel_0", "channel_1") if is_4d else ("channel_0",))
    assert open_dataset(tmp_path, channels=["CT", "PET"][: 1 + is_4d]).channel_names[0] == "CT"
    assert "3 channel names given" in findings_of(tmp_path, channels=["a", "b", "c"])


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("imagesTr", "labelsTr")])
def test_without_a_json_channel_numbers_are_told_by_the_labels(tmp_path, images, labels) -> None:
    for name in ("a", "b"):
        (
            put(tmp_path / images / f"{name}_0000.nii.gz"),
            put(tmp_path / images / f"{name}_0001.nii.gz"),
            put(tmp_path / labels / f"{name}.nii.gz"),
        )
    dataset = open_dataset(tmp_path)
    assert [case.name for case in dataset.training] == ["a", "b"]
    assert dataset.channel_names == ("channel_0", "channel_1")


def test_all_that_is_missing_or_superfluous_is_named_in_one_error(tmp_path) -> None:
    root = nnunet(tmp_path, ("a", "b", "c", "d"), num_channels=2)
    (root / "labelsTr" / "a.nii.gz").unlink()
    for channel in (0, 1):
        (root / "imagesTr" / f"b_{channel:04d}.nii.gz").unlink()
    (root / "imagesTr" / "c_0001.nii.gz").unlink()
    put(root / "imagesTr" / "d_0002.nii.gz")
    (root / "imagesTr" / "e.mgz").write_bytes(b"")
    put(root / "labelsTr" / "d.nii")
    text = findings_of(root)
    for part in (
        "a: image without a label",
        "b: label without an image",
        "c: 1 channel, expected 2; missing 0001",
        "3 channels, expected 2; superfluous 0002",
        "FreeSurfer",
        "d: two files of this name",
    ):
        assert part in text


def test_folders_that_are_no_dataset_are_refused(tmp_path) -> None:
    assert "no such folder" in findings_of(tmp_path / "nowhere")
    assert "not a dataset" in findings_of(tmp_path)
    (tmp_path / "imagesTr").mkdir()
    describe_dataset(tmp_path)
    assert f"Did you mean the folder that holds it, {tmp_path}?" in findings_of(tmp_path / "imagesTr")
    text = findings_of(tmp_path)
    assert "no images" in text
    assert "labelsTr: no such folder" in text


def test_another_number_of_cases_than_announced_is_only_a_warning(tmp_path, caplog) -> None:
    root = nnunet(tmp_path)
    describe_dataset(root, numTraining=7)
    with caplog.at_level(logging.WARNING):
        assert len(open_dataset(root).training) == 2
    assert "numTraining" in caplog.text


def test_regions_and_an_ignore_label_are_read_as_nnunet_means_them(tmp_path) -> None:
    root = nnunet(tmp_path)
    describe_dataset(
        root, labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "edge": 3, "ignore": 4}, regions_class_order=[1, 2, 3]
    )
    labels = open_dataset(root).labels
    assert labels is not None
    assert labels.names == ("background", "whole", "core", "edge")
    assert (labels.values, labels.regions, labels.ignore) == ((0, 1, 2, 3), ((1, 2, 3), (2, 3), (3,)), 4)
    assert (labels.num_outputs, labels.file_values) == (3, (0, 1, 2, 3, 4))


def test_lists_of_one_value_are_labels(tmp_path) -> None:
    root = nnunet(tmp_path)
    describe_dataset(root, labels={"background": [0], "a": [1], "b": 2})
    labels = open_dataset(root).labels
    assert labels is not None
    assert (labels.values, labels.regions) == ((0, 1, 2), ())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"regions_class_order": None}, "regions_class_order is None, expected a label value for each of the 2 regions"),
        ({"regions_class_order": [1]}, "expected a label value for each of the 2 regions"),
        ({"regions_class_order": [1, 1]}, "expected other values than 0, each once"),
        ({"regions_class_order": [1, 7]}, "gives 'core' the value 7, which it is not made of"),
        ({"regions_class_order": [2, 1]}, "gives 'core' the value 1, which it is not made of"),
        (
            {"labels": {"background": 0, "core": 2, "whole": [1, 2]}, "regions_class_order": [2, 1]},
            "'core' lies inside of 'whole', which comes later and would be written over it",
        ),
        ({"labels": {"background": 0, "whole": [0, 1, 2], "core": 2}}, "the value 0 is always the background"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 2}}, "'ignore' has the value 2, which another label has too"),
        ({"labels": {"background": 0, "whole": [1, "x"], "core": 2}}, "not integers: whole"),
    ],
)
def test_wrong_regions_are_explained(tmp_path, changes, part) -> None:
    root = nnunet(tmp_path)
    declared = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    describe_dataset(root, **{**declared, **changes})
    with pytest.raises(DatasetError) as error:
        open_dataset(root)
    assert any(re.search(part, finding) for finding in error.value.findings)


def test_annotated_csv_says_what_each_case_was_annotated_for(tmp_path) -> None:
    root = nnunet(tmp_path)
    describe_dataset(root, labels={"background": 0, "liver": 1, "spleen": 2})
    names = [case.name for case in open_dataset(root).training]
    (root / "annotated.csv").write_text(f"case,labels\n*,liver\n{names[0]},liver;spleen\n", encoding="utf-8")
    assert [case.annotated for case in open_dataset(root).training] == [("liver", "spleen"), *[("liver",)] * (len(names) - 1)]
    (root / "annotated.csv").write_text("typo_*,liver\n", encoding="utf-8")
    assert [case.annotated for case in open_dataset(root).training] == [None] * len(names)
    assert "annotated.csv names typo_*, which no case is called" in unused_rows(root, names)
    (root / "annotated.csv").write_text(f"{names[0]},kidney\n", encoding="utf-8")
    with pytest.raises(DatasetError) as error:
        open_dataset(root)
    assert "annotated.csv: kidney are no labels of the dataset" in error.value.findings[0]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "both have the value 1"),
        ({"labels": {"background": 0, "a": "one"}}, "not integers: a"),
        ({"labels": None}, "labels must name"),
        ({"channel_names": {"1": "CT"}}, "channel_names must name"),
        ({"channel_names": {}}, "channel_names must name"),
    ],
)
def test_a_wrong_json_is_explained(tmp_path, changes, part) -> None:
    root = nnunet(tmp_path)
    describe_dataset(root, **changes)
    assert part in findings_of(root)


def test_a_missing_background_is_added(tmp_path) -> None:
    root = nnunet(tmp_path)
    describe_dataset(root, labels={"organ": 4, "other": 2})
    labels = open_dataset(root).labels
    assert labels is not None
    assert (labels.names, labels.values) == (("background", "other", "organ"), (0, 2, 4))


@pytest.mark.parametrize("file", ["splits.json", "splits_final.json"])
def test_declared_folds_are_respected(tmp_path, file) -> None:
    root = nnunet(tmp_path)
    (root / file).write_text('[{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]', encoding="utf-8")
    assert open_dataset(root).declared_splits == (Split(train=("a",), validation=("b",)), Split(train=("b",), validation=("a",)))


def test_folds_that_do_not_fit_are_refused_with_all_findings(tmp_path) -> None:
    (tmp_path / "s.json").write_text('[{"train": ["a", "x", "a"], "val": ["a"]}, {"train": [], "val": ["b"]}]', encoding="utf-8")
    with pytest.raises(DatasetError) as error:
        read_splits(tmp_path / "s.json", ["a", "b", "c"])
    assert len(error.value.findings) == 4
    for part in (
        "fold 0 names cases that the dataset does not have: x",
        "both train and validation: a",
        "no training",
        "twice in train: a",
    ):
        assert part in str(error.value)
    (tmp_path / "s.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DatasetError, match="list of folds"):
        read_splits(tmp_path / "s.json", ["a"])
    (tmp_path / "s.json").write_text('[{"train": "a", "val": ["b"]}]', encoding="utf-8")
    with pytest.raises(InputError, match="fold 0"):
        read_splits(tmp_path / "s.json", ["a"])


def test_test_images_may_be_numbered_like_channels(tmp_path) -> None:
    for k in (1, 2):
        put(tmp_path / f"imagesTr/case_{k:04d}.nii.gz"), put(tmp_path / f"labelsTr/case_{k:04d}.nii.gz", np.ones(SHAPE, np.uint8))
    for k in (41, 42):
        put(tmp_path / f"imagesTs/case_{k:04d}.nii.gz")
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}}', encoding="utf-8")
    assert [case.name for case in open_dataset(tmp_path).test] == ["case_0041", "case_0042"]


# ---- reading


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations([0, 1, 2]), signs=st.tuples(*[st.sampled_from([1, -1])] * 3), label_turned=st.booleans())
def test_every_orientation_is_read_as_the_same_case(tmp_path, order, signs, label_turned) -> None:
    canonical = np.arange(4 * 5 * 6).reshape(4, 5, 6)  # (R, A, S)
    stored = canonical.transpose(order)[tuple(slice(None, None, s) for s in signs)]
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (ras, sign) in enumerate(zip(order, signs, strict=True)):
        affine[ras, axis] = sign * (ras + 1)
        if sign < 0:
            affine[ras, 3] += (canonical.shape[ras] - 1) * (ras + 1)
    image = put(tmp_path / "i.nii.gz", stored.astype(np.int16), affine)
    label = put(tmp_path / "l.nii.gz", *((canonical.astype(np.uint8), AFFINE) if label_turned else (stored.astype(np.uint8), affine)))
    case = read_case(Case(name="x", channels=(ChannelFile(path=image),), label=label))
    np.testing.assert_array_equal(case.image[0], canonical.transpose(2, 1, 0))
    assert case.labels is not None
    np.testing.assert_array_equal(case.labels, canonical.transpose(2, 1, 0))
    assert case.spacing == (3.0, 2.0, 1.0)
    assert case.image.dtype == np.float32
    assert case.image.flags.c_contiguous
    assert case.labels.dtype == np.uint8


def test_a_case_as_nifti_stores_it_keeps_its_axes(tmp_path) -> None:
    case = read_case(Case(name="x", channels=(ChannelFile(path=put(tmp_path / "i.nii.gz")),)))
    assert case.orientation == AS_STORED
    assert case.labels is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_not_finite_are_counted_and_placed(tmp_path, value, dtype) -> None:
    array = np.zeros(SHAPE, dtype)
    array[1, 2, 3:5] = value
    good, bad = put(tmp_path / "g.nii.gz"), put(tmp_path / "b.nii.gz", array)
    with pytest.raises(NotFiniteError, match=r"x: channel 1 \(b\.nii\.gz\) has 2 .* of 120, the first at \(x, y, z\) = \(1, 2, 3\)"):
        read_case(Case(name="x", channels=(ChannelFile(path=good), ChannelFile(path=bad))))


def test_values_beyond_float32_are_not_finite(tmp_path) -> None:
    path = put(tmp_path / "a.nii.gz", np.full(SHAPE, 1e300))
    with pytest.raises(NotFiniteError, match="120 NaN"):
        read_case(Case(name="x", channels=(ChannelFile(path=path),)))


def shifted(millimeters: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] = millimeters
    return affine


def test_small_offsets_are_accepted_and_larger_ones_told_in_mm(tmp_path) -> None:
    image, near, far = (
        put(tmp_path / "i.nii.gz"),
        put(tmp_path / "n.nii.gz", affine=shifted(0.09)),
        put(tmp_path / "f.nii.gz", affine=shifted(0.2)),
    )
    channel = ChannelFile(path=image)
    read_case(Case(name="x", channels=(channel, ChannelFile(path=near)), label=near))
    with pytest.raises(GeometryMismatchError, match=r"x: the label \(f\.nii\.gz\).* 0\.2 mm .*shifted 0\.2 mm to the right"):
        read_case(Case(name="x", channels=(channel,), label=far))
    assert read_case(Case(name="x", channels=(channel,), label=far), with_label=False).labels is None
    with pytest.raises(GeometryMismatchError, match=r"x: channel 1 \(f\.nii\.gz\)"):
        read_case(Case(name="x", channels=(channel, ChannelFile(path=far))))


def test_another_shape_is_told_with_the_spacings(tmp_path) -> None:
    image, label = put(tmp_path / "i.nii.gz"), put(tmp_path / "l.nii.gz", np.zeros((4, 5, 7), np.uint8))
    with pytest.raises(GeometryMismatchError, match=r"shape 4 x 5 x 7 at 1 x 2 x 3 mm against 4 x 5 x 6.*doctor --fix"):
        read_case(Case(name="x", channels=(ChannelFile(path=image),), label=label))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_whole_numbers_stored_as_float_are_labels(tmp_path, dtype) -> None:
    values = np.zeros(SHAPE)
    values[0, 0, :4] = (1, 700, -3, 2.00001)
    image, label = put(tmp_path / "i.nii.gz"), put(tmp_path / "l.nii.gz", values.astype(dtype))
    labels = read_case(Case(name="x", channels=(ChannelFile(path=image),), label=label)).labels
    assert labels is not None
    assert labels[:4, 0, 0].tolist() == [1, 700, -3, 2]


@pytest.mark.parametrize("value", [0.056, np.nan, 1e20])
def test_soft_labels_are_refused(tmp_path, value) -> None:
    values = np.zeros(SHAPE)
    values[1, 1, 1] = value
    image, label = put(tmp_path / "i.nii.gz"), put(tmp_path / "l.nii.gz", values)
    with pytest.raises(LabelValueError, match=r"l\.nii\.gz: a label map must hold whole numbers"):
        read_case(Case(name="x", channels=(ChannelFile(path=image),), label=label))
