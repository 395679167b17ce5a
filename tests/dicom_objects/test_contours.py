"""Outlines of masks, and RT structure sets: filled again, they are the voxels that they were made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medseg3d.dicom_objects.contours import filled, outlines
from medseg3d.dicom_objects.result import Result
from medseg3d.dicom_objects.rtstruct import structure_set


@given(mask=arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
@settings(max_examples=40)
def test_outlines_enclose_exactly_the_pixels_of_a_mask(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(filled(outlines(mask), mask.shape), mask)


def test_a_hole_is_joined_to_its_outline_and_an_island_in_it_is_a_polygon_of_its_own() -> None:
    mask = np.ones((9, 9), bool)
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    assert len(outlines(mask)) == 2


def test_each_pixel_alone_is_a_polygon() -> None:
    assert len(outlines(np.eye(4, dtype=bool))) == 4


def test_contours_on_the_slices_give_the_same_voxels(result: Result, tmp_path: Path) -> None:
    structure_set(result).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    read = pydicom.dcmread(tmp_path / "a.dcm")
    names = {roi.ROINumber: roi.ROIName for roi in read.StructureSetROISequence}
    indices = {file.text("SOPInstanceUID"): index for index, file in enumerate(result.source.slices)}
    to_pixels = np.linalg.pinv(result.source.points(0, np.eye(2)) - result.source.position(0))
    found = {name: np.zeros(result.values.shape, bool) for name in names.values()}
    for roi in read.ROIContourSequence:
        polygons: dict[int, list[np.ndarray]] = {}
        for contour in roi.get("ContourSequence", []):
            index = indices[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.array(contour.ContourData, float).reshape(-1, 3) - result.source.position(index)
            polygons.setdefault(index, []).append(points @ to_pixels)
        for index, each in polygons.items():
            found[names[roi.ReferencedROINumber]][:, :, index] = filled(each, result.values.shape[:2])
    for segment, mask in result.masks():
        np.testing.assert_array_equal(found[segment.name], mask, err_msg=segment.name)
    assert read.RTROIObservationsSequence[0].RTROIIdentificationCodeSequence[0].CodeValue == "64033007"
    assert read.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID == "1.2.9"
