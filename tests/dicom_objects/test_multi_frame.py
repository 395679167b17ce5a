"""Results of an enhanced multi-frame image: they refer to its frames by their numbers, whatever order the frames have in the file."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from medseg3d.dicom_objects.made_by import made_by
from medseg3d.dicom_objects.result import Result
from medseg3d.dicom_objects.rtstruct import structure_set
from medseg3d.dicom_objects.seg import segmentation
from medseg3d.dicom_objects.source import source_series
from medseg3d.dicom_objects.structured_report import report
from medseg3d.errors import InputError
from medseg3d.images.dicom_seg import read_seg
from tests.dicom_objects.conftest import LABELS, PLANES, SHAPE, label_map
from tests.dicom_objects.test_dciodvfy import findings
from tests.dicom_objects.test_dciodvfy import pytestmark as needs_dciodvfy
from tests.dicom_writer import write_enhanced

ORDER = (3, 0, 5, 1, 4, 2)


def result_on_frames(folder: Path, plane: str = "oblique") -> Result:
    stored = np.random.default_rng(0).integers(0, 500, SHAPE).astype(np.int16)
    tags = {"PatientName": "A^B", "StudyTime": "1200", "StudyID": "7", **PLANES[plane]}
    write_enhanced(folder / "one.dcm", stored, order=ORDER, **tags)
    chances = np.stack([label_map() == value for value in LABELS.values]).astype(np.float16)
    made = made_by("Kidneys", "abc")
    return Result(values=label_map(), labels=LABELS, source=source_series(folder), made_by=made, probabilities=chances)


@pytest.mark.parametrize("plane", ["axial", "oblique", "reversed"])
@pytest.mark.parametrize("kind", ["binary", "labelmap", "fractional"])
def test_a_segment_lies_on_the_frames_that_show_it(plane: str, kind: str, tmp_path: Path) -> None:
    result = result_on_frames(tmp_path / "series", plane)
    segmentation(result, kind).save_as(tmp_path / "a.dcm")  # type: ignore[arg-type]
    seg = highdicom.seg.segread(tmp_path / "a.dcm")
    frames = seg.get_pixels_by_source_frame(
        source_sop_instance_uid="1.2.3.1.1",
        source_frame_numbers=[file.frame for file in result.source.slices],
        segment_numbers=[3, 7, 9] if kind == "labelmap" else [1, 2, 3],
        assert_missing_frames_are_empty=True,
    )
    for place, segment in enumerate(result.segments):
        np.testing.assert_array_equal(frames[..., place].T, result.mask(segment), err_msg=segment.name)
    found = read_seg(tmp_path / "a.dcm")
    assert sum(int(found.mask(segment).sum()) for segment in found.segments) == int((result.values > 0).sum())


def test_contours_and_reports_refer_to_frames(tmp_path: Path) -> None:
    result = result_on_frames(tmp_path / "series")
    contours = structure_set(result).ROIContourSequence[0].ContourSequence
    told = {contour.ContourImageSequence[0].ReferencedFrameNumber for contour in contours}
    shown = [index for index in range(SHAPE[2]) if (result.values[:, :, index] == 3).any()]
    assert told == {result.source.slices[index].frame for index in shown}
    found = [each.value for each in report(result).iterall() if each.keyword == "ReferencedFrameNumber"]
    assert [int(number) for number in found[0]] == sorted(map(int, told))


def test_several_multi_frame_files_are_refused_for_dicom(tmp_path: Path) -> None:
    for number, step in enumerate((0, 15)):
        position = {"SOPInstanceUID": f"1.2.3.{number}", "ImagePositionPatient": None, "step": (0, 0, 2.5)}
        stored = np.zeros(SHAPE, np.int16)
        write_enhanced(
            tmp_path / f"{number}.dcm",
            stored,
            change=lambda file, shift=step: moved(file, shift),
            **{**position, "ImagePositionPatient": ["0"] * 3},
        )
    with pytest.raises(InputError, match="a series of 2 multi-frame files"):
        source_series(tmp_path)


def moved(file: pydicom.Dataset, shift: float) -> None:
    for number, group in enumerate(file.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = ["0", "0", f"{shift + 2.5 * number:g}"]


@needs_dciodvfy
@pytest.mark.parametrize("kind", ["binary", "fractional"])
def test_they_are_as_the_standard_says(kind: str, tmp_path: Path) -> None:
    result = result_on_frames(tmp_path / "series")
    seg = segmentation(result, kind)  # type: ignore[arg-type]
    assert findings(seg, tmp_path / "a.dcm") == []
    assert findings(structure_set(result), tmp_path / "b.dcm") == []
    assert findings(report(result, seg, kind), tmp_path / "c.dcm") == []  # type: ignore[arg-type]
