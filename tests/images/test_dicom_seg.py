"""DICOM SEG as label input: what was written comes back on the grid of its series, whoever left out what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.reading import read_case
from medseg3d.dicom_objects.result import Result
from medseg3d.dicom_objects.seg import segmentation
from medseg3d.errors import ImageReadError, InputError, LabelValueError
from medseg3d.geometry import from_canonical
from medseg3d.images import case_name, read_header, read_image
from medseg3d.images.dicom_seg import read_seg
from medseg3d.images.segments import read_segmentation
from medseg3d.labels import Labels
from tests.dicom_objects.conftest import PLANES, result_on

NUMBERED = Labels(names=("background", "kidney", "tumor"), values=(0, 3, 7))
REGIONS = Labels(names=("background", "whole", "core"), values=(0, 3, 7), regions=((3, 7), (7,)))


def on_series(result: Result, label: Path) -> np.ndarray:
    """A SEG as the label of a case whose image is the series, on the image's axes."""
    case = Case(name="a", channels=(ChannelFile(path=result.source.first.path.parent),), label=label)
    raw = read_case(case)
    assert raw.labels is not None
    return from_canonical(raw.labels, raw.orientation)


@pytest.mark.parametrize(("plane", "kind"), [*((plane, "binary") for plane in PLANES), ("oblique", "labelmap"), ("reversed", "fractional")])
def test_a_seg_without_its_empty_slices_is_a_label_on_the_grid_of_its_series(plane: str, kind: str, tmp_path: Path) -> None:
    result = result_on(tmp_path / "s", plane, NUMBERED)
    segmentation(result, kind).save_as(tmp_path / "a.seg.dcm")  # type: ignore[arg-type]
    expected = result.values if kind == "labelmap" else np.searchsorted(NUMBERED.values, result.values)
    np.testing.assert_array_equal(on_series(result, tmp_path / "a.seg.dcm"), expected)
    assert case_name(tmp_path / "a.seg.dcm") == "a"


def test_gaps_between_frames_are_empty_slices(tmp_path: Path) -> None:
    result = result_on(tmp_path / "s", "oblique", NUMBERED)
    result.values[:, :, 2:4] = 0
    segmentation(result).save_as(tmp_path / "a.dcm")
    assert read_header(tmp_path / "a.dcm").geometry.shape == (9, 8, 5)
    np.testing.assert_array_equal(on_series(result, tmp_path / "a.dcm") > 0, result.values > 0)


def test_segments_that_overlap_keep_all_their_voxels(tmp_path: Path) -> None:
    result = result_on(tmp_path / "s", "axial", REGIONS)
    segmentation(result).save_as(tmp_path / "a.dcm")
    found = read_segmentation(tmp_path / "a.dcm")
    assert found is not None
    assert [(segment.name, segment.layer) for segment in found.segments] == [("whole", 0), ("core", 1)]
    values = on_series(result, tmp_path / "a.dcm")
    np.testing.assert_array_equal(values, np.select([result.values == 7, result.values == 3], [1002, 1]))


def test_a_folder_with_a_seg_alone_is_that_seg(tmp_path: Path) -> None:
    result = result_on(tmp_path / "s", "axial", NUMBERED)
    (tmp_path / "label").mkdir()
    segmentation(result).save_as(tmp_path / "label/1.dcm")
    np.testing.assert_array_equal(on_series(result, tmp_path / "label"), np.searchsorted(NUMBERED.values, result.values))


def test_a_seg_in_the_place_of_an_image_is_refused(tmp_path: Path) -> None:
    segmentation(result_on(tmp_path / "s", "axial", NUMBERED)).save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"a\.dcm is a segmentation"):
        read_case(Case(name="a", channels=(ChannelFile(path=tmp_path / "a.dcm"),)))


def test_what_cannot_be_placed_is_refused(tmp_path: Path) -> None:
    result = result_on(tmp_path / "s", "axial", NUMBERED)
    segmentation(result).save_as(path := tmp_path / "a.dcm")
    seg = pydicom.dcmread(path)
    groups = seg.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence[0].ImagePositionPatient = [10, 20, 8.4]
    seg.save_as(path)
    with pytest.raises(ImageReadError, match="unevenly spaced"):
        read_image(path)
    del groups[1].PlanePositionSequence
    seg.save_as(path)
    with pytest.raises(ImageReadError, match="without PlanePosition"):
        read_image(path)


def test_a_seg_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    segmentation(result_on(tmp_path / "s", "axial", NUMBERED)).save_as(path := tmp_path / "a.dcm")
    content = path.read_bytes()
    for size in range(200, len(content), 997):
        path.write_bytes(content[:size])
        with pytest.raises(ImageReadError):
            read_image(path)


def test_too_many_over_each_other_are_refused(tmp_path: Path) -> None:
    names = tuple(f"shell {number}" for number in range(8))
    labels = Labels(names=("background", *names), values=tuple(range(9)), regions=tuple(tuple(range(k, 9)) for k in range(1, 9)))
    result = result_on(tmp_path / "s", "axial", labels)
    result.values[:] = 8
    segmentation(result).save_as(path := tmp_path / "a.dcm")
    assert len(read_seg(path).layers) == 8
    with pytest.raises(LabelValueError, match="over each other"):
        read_image(path)
