"""Structured reports: the volumes of structures, with what they were measured on."""

from __future__ import annotations

from pathlib import Path

import pytest
from highdicom.sr import MeasurementReport, srread
from pydicom.dataset import Dataset

from medseg3d.dicom_objects.result import Result
from medseg3d.dicom_objects.seg import segmentation
from medseg3d.dicom_objects.structured_report import report


def volumes(dataset: Dataset) -> dict[str, float]:
    """By tracking identifier."""
    found = {}

    def walk(items: list[Dataset]) -> None:
        for item in items:
            inner = item.get("ContentSequence", [])
            names = {each.ConceptNameCodeSequence[0].CodeMeaning: each for each in inner}
            if "Volume" in names:
                found[names["Tracking Identifier"].TextValue] = float(names["Volume"].MeasuredValueSequence[0].NumericValue)
            walk(inner)

    walk(dataset.ContentSequence)
    return found


def read_again(dataset: Dataset, path: Path) -> MeasurementReport:
    """What highdicom finds in the file."""
    dataset.save_as(path, enforce_file_format=True)
    content = srread(path).content
    assert isinstance(content, MeasurementReport)
    return content


def test_each_structure_has_its_volume_in_ml(axial: Result) -> None:
    expected = {segment.name: mask.sum() * 0.5 * 0.7 * 2.5 / 1000 for segment, mask in axial.masks()}
    assert volumes(report(axial)) == pytest.approx(expected, rel=1e-5)
    assert expected["thing 7"] == 0


def test_a_measurement_refers_to_its_segment_where_there_is_a_seg(axial: Result, tmp_path: Path) -> None:
    seg = segmentation(axial)
    content = read_again(report(axial, seg), tmp_path / "a.dcm")
    groups = content.get_volumetric_roi_measurement_groups()
    assert [group.referenced_segment.referenced_sop_instance_uid for group in groups] == [seg.SOPInstanceUID] * 2
    assert len(content.get_image_measurement_groups()) == 1  # what is not there has no segment


def test_it_names_the_model_and_the_series(axial: Result, tmp_path: Path) -> None:
    found = report(axial)
    assert found.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.1"
    group = read_again(found, tmp_path / "a.dcm").get_image_measurement_groups()[0]
    assert axial.made_by.version in str(group)
