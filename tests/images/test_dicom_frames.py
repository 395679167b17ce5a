"""Enhanced multi-frame files: read as the single slices that they hold, or refused with what does not fit together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from medseg3d.errors import ImageReadError
from medseg3d.images import read_header, read_image
from medseg3d.images.dicom_file import read_dicom_file
from medseg3d.images.dicom_intake import find_dicom_cases
from tests.dicom_writer import volume, write_enhanced, write_series

ORDERS = ((0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (3, 0, 5, 1, 4, 2))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("is_delimited", [False, True])
def test_a_multi_frame_file_is_read_as_its_slices_would_be(order: tuple[int, ...], syntax: str, is_delimited: bool, tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "many" / "one.dcm", order=order, syntax=syntax, is_delimited=is_delimited)
    expected = read_image(write_series(tmp_path / "single", RescaleIntercept="-5", RescaleSlope="1"))
    for place in (path, path.parent):
        found = read_image(place)
        assert np.array_equal(found.array, expected.array)
        assert np.allclose(found.header.geometry.matrix, expected.header.geometry.matrix)
    assert read_header(path).geometry.shape == (5, 4, 6)


def test_frames_that_are_compressed_one_by_one_are_read(tmp_path: Path) -> None:
    def compress(file: Dataset) -> None:
        file.compress(RLELossless)

    path = write_enhanced(tmp_path / "one.dcm", change=compress, syntax=RLELossless)
    expected = read_image(write_enhanced(tmp_path / "plain" / "one.dcm"))
    assert np.array_equal(read_image(path).array, expected.array)


def drop_frame(file: Dataset) -> None:
    file.PerFrameFunctionalGroupsSequence = file.PerFrameFunctionalGroupsSequence[:-1]


def cut_pixels(file: Dataset) -> None:
    file.PixelData = file.PixelData[:-40]


def drop_places(file: Dataset) -> None:
    for group in file.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence


def drop_groups(file: Dataset) -> None:
    del file.PerFrameFunctionalGroupsSequence


def twice_in_time(file: Dataset) -> None:
    """Six frames of three slices at two times."""
    for number, group in enumerate(file.PerFrameFunctionalGroupsSequence):
        group.PlanePositionSequence[0].ImagePositionPatient = ["0", "0", str(number % 3)]
        group.FrameContentSequence[0].TemporalPositionIndex = number // 3 + 1


def take_turns(sequence: str, tag: str, values: Sequence[object]) -> Callable[[Dataset], None]:
    """What a sequence of each frame says, one value after the other."""

    def change(file: Dataset) -> None:
        for number, group in enumerate(file.PerFrameFunctionalGroupsSequence):
            item = Dataset()
            setattr(item, tag, values[number % len(values)])
            setattr(group, sequence, [item])

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            take_turns("MRImageFrameTypeSequence", "ComplexImageComponent", ("MAGNITUDE", "PHASE")),
            "2 volumes of 3 slices.*ComplexImageComponent",
        ),
        (take_turns("MREchoSequence", "EffectiveEchoTime", (2.3, 4.6)), "2 volumes of 3 slices.*EchoTime"),
        (take_turns("MRTimingAndRelatedParametersSequence", "FlipAngle", ("5", "26")), "2 volumes of 3 slices.*FlipAngle"),
        (take_turns("MRModifierSequence", "InversionTimes", (100.0, 400.0)), "2 volumes of 3 slices.*InversionTime"),
        (drop_frame, r"6 frames, and places for 5 of them"),
        (cut_pixels, r"bytes of pixel data for 6 frames of 40"),
        (drop_places, r"ImagePositionPatient.* is missing"),
        (drop_groups, r"6 frames in one DICOM file that does not say where each lies"),
        (twice_in_time, r"2 volumes of 3 slices in one series.*TemporalPositionIdentifier"),
    ],
)
def test_what_does_not_fit_together_is_told(change: Callable[[Dataset], None], told: str, tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "one.dcm", change=change)
    with pytest.raises(ImageReadError, match=told):
        read_image(path)


def test_a_tree_of_patients_gives_a_case_for_a_multi_frame_file(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "p1" / "one.dcm", patient="p1")
    write_series(tmp_path / "p2", patient="p2", study="1.2.4", series="1.2.4.1")
    found = find_dicom_cases(tmp_path)
    assert [(case.name, len(case.files)) for case in found.cases] == [("p1", 1), ("p2", 6)]
    assert not found.failures


@given(st.integers(0, 10_000), st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_changed_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, place: int, value: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed"
    whole = folder / "whole.dcm"
    if not whole.exists():
        write_enhanced(whole, volume((5, 4, 6)), is_delimited=True)
    content = bytearray(whole.read_bytes())
    content[132 + place % (len(content) - 132)] = value
    changed = folder / "changed.dcm"
    changed.write_bytes(content)
    try:
        read_dicom_file(changed)
        read_image(changed)
    except ImageReadError:
        pass


def test_what_highdicom_made_of_single_slices_is_read_as_these(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom", reason="needs medseg3d[dicom]")
    about = {"StudyTime": "1200", "StudyID": "7", "AccessionNumber": "", "PatientName": "A^B", "PatientBirthDate": "", "PatientSex": ""}
    about |= {"ReferringPhysicianName": "", "Manufacturer": "ACME", "RescaleIntercept": "-5", "RescaleSlope": "1", "RescaleType": "HU"}
    about |= {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SeriesDate": "20240131", "AcquisitionDate": "20240131"}
    single = write_series(tmp_path / "single", **about)
    slices = [dcmread(path) for path in sorted(single.iterdir())]
    made = highdicom.legacy.LegacyConvertedEnhancedCTImage(slices[::-1], "1.2.3.9", 9, "1.2.3.9.1", 1)
    made.save_as(tmp_path / "one.dcm")
    found, expected = read_image(tmp_path / "one.dcm"), read_image(single)
    assert np.array_equal(found.array, expected.array)
    assert np.allclose(found.header.geometry.matrix, expected.header.geometry.matrix)
