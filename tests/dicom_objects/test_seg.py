"""DICOM SEG: other programs read the voxels that were written, on the slices of the series."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import config

from medseg3d.dicom_objects.made_by import made_by
from medseg3d.dicom_objects.outputs import write_dicom
from medseg3d.dicom_objects.result import Result
from medseg3d.dicom_objects.rtstruct import structure_set
from medseg3d.dicom_objects.seg import segmentation
from medseg3d.dicom_objects.source import source_series
from medseg3d.dicom_objects.structured_report import report
from medseg3d.errors import InputError
from medseg3d.images.dicom_seg import read_seg
from medseg3d.labels import Labels
from medseg3d.options import OutputType
from tests.dicom_objects.conftest import PLANES, result_on
from tests.dicom_writer import write_series


@pytest.mark.parametrize(("plane", "kind"), [*((plane, "binary") for plane in PLANES), ("oblique", "labelmap"), ("reversed", "fractional")])
def test_highdicom_reads_the_same_voxels_slice_by_slice(plane: str, kind: str, tmp_path: Path) -> None:
    result = result_on(tmp_path / "series", plane)
    segmentation(result, kind).save_as(tmp_path / "a.dcm")  # type: ignore[arg-type]
    seg = highdicom.seg.segread(tmp_path / "a.dcm")
    numbers = [3, 7, 9] if kind == "labelmap" else [1, 2, 3]
    frames = seg.get_pixels_by_source_instance(
        [file.text("SOPInstanceUID") for file in result.source.slices], segment_numbers=numbers, assert_missing_frames_are_empty=True
    )
    assert frames.shape == (6, 8, 9, 3)
    for place, segment in enumerate(result.segments):
        np.testing.assert_array_equal(frames[..., place].T, result.mask(segment), err_msg=segment.name)


def test_pydicom_reads_the_same_voxels_at_the_places_of_the_slices(result: Result, tmp_path: Path) -> None:
    segmentation(result).save_as(tmp_path / "a.dcm")
    seg = pydicom.dcmread(tmp_path / "a.dcm")
    found = np.zeros(result.values.shape, np.uint8)
    values = {segment.index: segment.value for segment in result.segments}
    positions = np.stack([result.source.position(index) for index in range(6)])
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        index = int(np.abs(positions - place).sum(1).argmin())
        assert np.abs(positions[index] - place).max() < 1e-4
        found[:, :, index][frame.T > 0] = values[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == result.source.slices[index].text("SOPInstanceUID")
    np.testing.assert_array_equal(found, result.values)


def test_simpleitk_reads_the_same_voxels_frame_by_frame(result: Result, tmp_path: Path) -> None:
    segmentation(result).save_as(tmp_path / "a.dcm")
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.dcm")))
    masks = {segment.index: mask for segment, mask in result.masks()}
    uids = [file.text("SOPInstanceUID") for file in result.source.slices]
    for frame, group in zip(frames, pydicom.dcmread(tmp_path / "a.dcm").PerFrameFunctionalGroupsSequence, strict=True):
        index = uids.index(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        np.testing.assert_array_equal(frame.T > 0, masks[number][:, :, index])
    assert (frames > 0).sum() == sum(mask.sum() for mask in masks.values())


def test_it_refers_to_its_series_and_names_patient_structures_and_model(axial: Result) -> None:
    seg = segmentation(axial)
    assert str(seg.PatientName) == "Müller^Änna"
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == ("1.2.3", "1.2.9")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.1"
    assert "abc" not in seg.SoftwareVersions
    assert f"model {axial.made_by.version}" in seg.SoftwareVersions
    kidney, tumor, thing = seg.SegmentSequence
    assert (kidney.SegmentLabel, kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue) == ("left kidney", "64033007")
    assert kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert (tumor.SegmentedPropertyTypeCodeSequence[0].CodeValue, tumor.AnatomicRegionSequence[0].CodeMeaning) == ("108369006", "Liver")
    assert thing.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99MEDSEG3D"


def test_uids_are_the_same_for_the_same_content_only(axial: Result) -> None:
    again, other = segmentation(axial), segmentation(replace(axial, values=axial.values[::-1].copy()))
    assert segmentation(axial).SOPInstanceUID == again.SOPInstanceUID != other.SOPInstanceUID
    assert again.SOPInstanceUID != segmentation(axial, "fractional").SOPInstanceUID


def test_regions_become_segments_that_overlap(tmp_path: Path) -> None:
    labels = Labels(names=("background", "whole", "core"), values=(0, 3, 7), regions=((3, 7), (7,)))
    result = result_on(tmp_path / "s", labels=labels)
    seg = segmentation(result)
    assert seg.SegmentsOverlap == "YES"
    seg.save_as(tmp_path / "a.dcm")
    read = highdicom.seg.segread(tmp_path / "a.dcm")
    frames = read.get_pixels_by_source_instance(
        [file.text("SOPInstanceUID") for file in result.source.slices], assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(frames[..., 0].T, result.values > 0)
    np.testing.assert_array_equal(frames[..., 1].T, result.values == 7)
    with pytest.raises(InputError, match="regions overlap"):
        segmentation(result, "labelmap")


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_an_empty_label_map_is_written_as_well(axial: Result, kind: str, tmp_path: Path) -> None:
    segmentation(replace(axial, values=np.zeros_like(axial.values)), kind).save_as(tmp_path / "a.dcm")  # type: ignore[arg-type]
    assert not pydicom.dcmread(tmp_path / "a.dcm").pixel_array.any()


ODD = {
    "PatientBirthDate": "1.1.70",
    "PatientSex": "male",
    "PatientAge": "52",
    "StudyDate": "20241301",
    "StudyTime": "99:99",
    "AccessionNumber": "longer than sixteen letters",
    "FrameOfReferenceUID": "1.2.x",
    "StudyDescription": "x" * 70,
}


def test_a_header_with_odd_values_costs_these_values_only(tmp_path: Path) -> None:
    with config.disable_value_validation():
        write_series(tmp_path / "s", PatientName="A\\B", **ODD)
    source = source_series(tmp_path / "s")
    result = Result(
        values=np.ones(source.geometry.shape, np.uint8),
        labels=Labels(names=("b", "a"), values=(0, 1)),
        source=source,
        made_by=made_by("m", "x"),
    )
    for dataset in (segmentation(result), structure_set(result), report(result)):
        dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        read = pydicom.dcmread(tmp_path / "a.dcm")
        assert (read.PatientID, str(read.PatientName)) == ("p1", "A B")
        assert (read.PatientBirthDate, read.PatientSex, read.StudyDate, read.AccessionNumber) == ("", "", "", "")


def test_names_of_labels_hold_no_control_characters(tmp_path: Path) -> None:
    result = result_on(tmp_path / "s", labels=Labels(names=("background", "new\nline", "a\\b\x00", "\u202e \t"), values=(0, 3, 7, 9)))
    assert [each.SegmentLabel for each in segmentation(result).SegmentSequence] == ["new line", "a b", "label 9"]
    assert [each.ROIName for each in structure_set(result).StructureSetROISequence] == ["new line", "a b", "label 9"]


@pytest.mark.parametrize("num_slices", [1, 2])
def test_a_single_slice_is_as_thick_as_in_its_series(tmp_path: Path, num_slices: int) -> None:
    stored = np.arange(16 * num_slices, dtype=np.int16).reshape(4, 4, num_slices)
    source = source_series(write_series(tmp_path / "s", stored))
    labels = Labels(names=("b", "a"), values=(0, 1))
    result = Result(values=np.ones(source.geometry.shape, np.uint8), labels=labels, source=source, made_by=made_by("m", "x"))
    segmentation(result).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert read_seg(tmp_path / "a.dcm").header.geometry.spacing == (0.5, 0.7, 3.0 if num_slices == 1 else 2.5)


def test_label_maps_are_written_whatever_the_order_of_the_values(tmp_path: Path) -> None:
    result = result_on(tmp_path / "s", labels=Labels(names=("background", "a", "b"), values=(0, 7, 3)))
    segmentation(result, "labelmap").save_as(tmp_path / "a.dcm")
    assert [each.SegmentNumber for each in pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence][-2:] == [3, 7]


def test_uids_with_leading_zeros_are_kept_and_an_odd_patient_id_is_refused(tmp_path: Path) -> None:
    with config.disable_value_validation():
        write_series(tmp_path / "s", study="1.2.0840.3")
        write_series(tmp_path / "odd", patient="A\\B")
    source = source_series(tmp_path / "s")
    result = Result(
        values=np.ones(source.geometry.shape, np.uint8),
        labels=Labels(names=("b", "a"), values=(0, 1)),
        source=source,
        made_by=made_by("m", "x"),
    )
    kinds: tuple[OutputType, ...] = ("dicom-seg", "dicom-rtstruct", "dicom-sr")
    for kind in kinds:
        write_dicom(tmp_path / "a.dcm", result, kind, "binary", refers_to_seg=False)
        with config.disable_value_validation():
            assert pydicom.dcmread(tmp_path / "a.dcm").StudyInstanceUID == "1.2.0840.3"
    with pytest.raises(InputError, match="PatientID is none"):
        source_series(tmp_path / "odd")
