"""Which images of a folder, a file or a tree of DICOM are predicted, and under which names."""

from __future__ import annotations

import numpy as np
import pytest

from medseg3d.data.digests import digest_of, stamp_of
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.prediction_cases import find_prediction_cases, prediction_cases
from medseg3d.data.reading import read_case
from medseg3d.errors import (
    ChannelCountError,
    DatasetError,
    ImageReadError,
)
from tests.data.test_open_dataset import SHAPE, put
from tests.dicom_writer import volume, write_other, write_series


def test_a_folder_of_single_channel_files_is_predicted_under_their_own_names(tmp_path) -> None:
    for name in ("p_0001", "p_0002", "scan"):
        put(tmp_path / f"{name}.nii.gz")
    assert [case.name for case in prediction_cases(tmp_path, num_channels=1)] == ["p_0001", "p_0002", "scan"]


def test_channel_numbers_are_taken_off_where_all_files_have_them(tmp_path) -> None:
    put(tmp_path / "a_0000.nii.gz"), put(tmp_path / "b_0000.nii.gz")
    assert [case.name for case in prediction_cases(tmp_path, num_channels=1)] == ["a", "b"]
    put(tmp_path / "a_0001.nii.gz"), put(tmp_path / "b_0001.nii.gz")
    with pytest.raises(DatasetError, match="a: 2 channels, expected 1"):
        prediction_cases(tmp_path, num_channels=1)
    assert [len(case.channels) for case in prediction_cases(tmp_path, num_channels=2)] == [2, 2]
    (tmp_path / "b_0001.nii.gz").unlink()
    with pytest.raises(DatasetError, match="b: 1 channel, expected 2; missing 0001"):
        prediction_cases(tmp_path, num_channels=2)


def test_a_single_file_brings_its_channels_along(tmp_path) -> None:
    first = put(tmp_path / "a_0000.nii.gz")
    put(tmp_path / "a_0001.nii.gz"), put(tmp_path / "aa_0000.nii.gz")
    (case,) = prediction_cases(first, num_channels=2)
    assert (case.name, [c.path.name for c in case.channels]) == ("a", ["a_0000.nii.gz", "a_0001.nii.gz"])
    with pytest.raises(ChannelCountError, match="2 channels, expected 3"):
        prediction_cases(first, num_channels=3)
    (case,) = prediction_cases(put(tmp_path / "4d.nii.gz", np.zeros((*SHAPE, 2), np.int16)), num_channels=2)
    assert [c.volume for c in case.channels] == [0, 1]
    with pytest.raises(ChannelCountError, match="holds 1 channel, expected 2"):
        prediction_cases(put(tmp_path / "3d.nii.gz"), num_channels=2)


def test_a_tree_of_dicom_lies_beside_other_images(tmp_path) -> None:
    put(tmp_path / "scan.nii.gz")
    write_series(tmp_path / "anna", volume(seed=1))
    write_series(tmp_path / "DICOM/ST/SE", volume(seed=2), patient="p2", series="1.2.5.4", study="1.2.5")
    cases = prediction_cases(tmp_path, num_channels=1)
    assert [case.name for case in cases] == ["anna", "p2_Study20240131_Series4", "scan"]
    for seed, case in enumerate(cases[:2], 1):
        np.testing.assert_array_equal(read_case(case).image[0], volume(seed=seed).T[:, ::-1, ::-1])
    assert len({digest_of(case) for case in cases}) == 3
    assert [stamp_of(case).count(",") for case in cases] == [5, 5, 0]


def test_a_file_without_a_channel_number_costs_no_case_of_several_channels(tmp_path) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "c_0000", "c_0001", "c", "mask"):
        put(tmp_path / f"{name}.nii.gz")
    for name in ("whole", "visit_2021"):
        put(tmp_path / f"{name}.nii.gz", np.zeros((*SHAPE, 2), np.int16))
    cases, failures = find_prediction_cases(tmp_path, num_channels=2)
    assert [(case.name, len(case.channels)) for case in cases] == [("a", 2), ("visit_2021", 2), ("whole", 2)]
    reasons = {failure.case: failure.reason for failure in failures}
    assert reasons["b"] == "1 channel, expected 2; missing 0001"
    assert reasons["c"].startswith("two files of this name")
    assert reasons["mask"] == "mask.nii.gz holds 1 channel, expected 2"
    assert len(reasons) == 3


@pytest.mark.parametrize(("series", "name"), [("anna", "anna"), ("a/deep", "p1_Study20240131_Series1")])
def test_a_series_and_a_file_of_one_name_are_not_taken_for_each_other(tmp_path, series, name) -> None:
    write_series(tmp_path / series)
    put(tmp_path / f"{name}.nii.gz"), put(tmp_path / "other.nii.gz")
    cases, failures = find_prediction_cases(tmp_path, num_channels=1)
    assert [case.name for case in cases] == ["other"]
    assert [(failure.case, f"two files of this name, {name}.nii.gz and" in failure.reason) for failure in failures] == [(name, True)]


def test_loose_slices_of_two_series_are_two_cases_with_digests_of_their_own(tmp_path) -> None:
    write_series(tmp_path, volume(seed=1), series="1.2.3.1")
    write_series(tmp_path, volume(seed=2), series="1.2.3.2", names="{}".format)
    cases = prediction_cases(tmp_path, num_channels=1)
    assert [case.name for case in cases] == ["p1_Study20240131_Series1", "p1_Study20240131_Series2"]
    assert [case.channels[0].path for case in cases] == [tmp_path, tmp_path]
    assert digest_of(cases[0]) != digest_of(cases[1])
    assert [int(read_case(case).image[0, 0, -1, -1]) for case in cases] == [volume(seed=seed)[0, 0, 0] for seed in (1, 2)]


def test_folders_with_series_are_channels_by_their_numbers(tmp_path) -> None:
    for case in ("a", "b"):
        for channel in (0, 1):
            write_series(tmp_path / f"{case}_000{channel}", volume(seed=channel), study=f"1.{channel}", patient=case)
    write_other(tmp_path / "a_0001/report", "1.2.840.10008.5.1.4.1.1.88.67")
    cases = prediction_cases(tmp_path, num_channels=2)
    assert [(case.name, [channel.path.name for channel in case.channels]) for case in cases] == [
        ("a", ["a_0000", "a_0001"]),
        ("b", ["b_0000", "b_0001"]),
    ]
    assert read_case(cases[0]).image.shape[0] == 2
    (case,) = prediction_cases(tmp_path / "a_0000", num_channels=2)
    assert (case.name, len(case.channels)) == ("a", 2)


def test_a_series_that_is_no_channel_is_a_failure_of_its_own(tmp_path) -> None:
    put(tmp_path / "a_0000.nii.gz"), put(tmp_path / "a_0001.nii.gz")
    write_series(tmp_path / "x/y")
    cases, failures = find_prediction_cases(tmp_path, num_channels=2)
    assert [case.name for case in cases] == ["a"]
    assert [failure.case for failure in failures] == ["p1_Study20240131_Series1"]
    assert "one DICOM series, expected 2 channels" in failures[0].reason


def test_a_folder_of_nothing_but_reports_says_what_was_left_out(tmp_path) -> None:
    write_other(tmp_path / "a/report", "1.2.840.10008.5.1.4.1.1.88.67")
    with pytest.raises(DatasetError, match=r"no DICOM series to predict: left out a.report: structured report"):
        prediction_cases(tmp_path, num_channels=1)


@pytest.mark.fault("B", "a report among the slices of a training case", "left out; the case is used")
def test_a_training_case_may_be_a_folder_of_slices_at_any_depth(tmp_path) -> None:
    write_series(tmp_path / "images/anna/ST/SE", np.zeros((5, 4, 6), np.int16))
    write_other(tmp_path / "images/anna/report", "1.2.840.10008.5.1.4.1.1.88.67")
    put(tmp_path / "labels/anna.nii.gz", np.ones((5, 4, 6), np.uint8))
    (case,) = open_dataset(tmp_path).training
    assert case.name == "anna"
    assert read_case(case, with_label=False).image.shape == (1, 6, 4, 5)


def test_sources_without_images_are_refused(tmp_path) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        prediction_cases(tmp_path / "x", num_channels=1)
    with pytest.raises(DatasetError, match="no images"):
        prediction_cases(tmp_path, num_channels=1)
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(ImageReadError, match="not an image by its name"):
        prediction_cases(tmp_path / "a.txt", num_channels=1)
