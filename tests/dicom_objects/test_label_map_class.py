"""The LABELMAP SEG, a storage class of 2024 that Debian's dciodvfy does not know: checked by highdicom's tables of the standard (PS3.3),
pydicom's rules of values (PS3.5), dcmtk and three readers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom import _standard_utils as standard
from pydicom import config
from pydicom.dataset import Dataset

from medseg3d.dicom_objects.result import Result
from medseg3d.dicom_objects.seg import segmentation
from medseg3d.images.dicom_seg import read_seg
from tests.dicom_objects.conftest import PLANES, result_on
from tests.dicom_objects.test_multi_frame import result_on_frames

LABELMAP, BINARY = "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.66.4"


def modules_of(kind: str) -> list[dict[str, str]]:
    """The modules of the information object, and whether each is mandatory."""
    name = standard.get_sop_class_iod_map()[kind]
    found: list[dict[str, str]] = standard.get_iod_module_map()[name]
    return found


def attributes_of(module: str) -> set[tuple[tuple[str, ...], str]]:
    return {(tuple(each["path"]), each["keyword"]) for each in standard.get_module_attribute_map()[module]}


def attributes_in(dataset: Dataset, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every attribute with the sequences that it lies in."""
    for element in dataset:
        yield path, element.keyword
        if element.VR == "SQ":
            for item in element.value:
                yield from attributes_in(item, (*path, element.keyword))


GROUPS = "segmentation-multi-frame-functional-groups"
IN_SPACE = {"PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence", "FrameContentSequence"}
"""The functional groups of frames that have a place in a patient; those of whole slides, or of other frames, are not wanted."""


def group_problems(dataset: Dataset) -> Iterator[str]:
    """A functional group stands in one of two sequences, and each that is there has all of its attributes."""
    everywhere = {element.keyword for element in dataset.SharedFunctionalGroupsSequence[0]}
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        if missing := IN_SPACE - everywhere - {element.keyword for element in frame}:
            yield f"{GROUPS}: {sorted(missing)}"
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for frame in dataset[sequence].value:
            for group in frame:
                for item in group.value:
                    try:
                        standard.check_required_attributes(item, GROUPS, base_path=[sequence, group.keyword])
                    except AttributeError as error:
                        yield f"{GROUPS}: {error}"


def problems(dataset: Dataset) -> list[str]:
    """Attributes that are missing in a module that must be there or is there, and attributes of no module."""
    modules = modules_of(dataset.SOPClassUID)
    there = set(attributes_in(dataset))
    found = list(group_problems(dataset))
    for module in modules:
        if module["key"] == GROUPS:
            continue
        top = {keyword for path, keyword in attributes_of(module["key"]) if not path}
        own = top - {keyword for other in modules if other["usage"] == "M" for path, keyword in attributes_of(other["key"]) if not path}
        if module["usage"] == "M" or any(((), keyword) in there for keyword in own):
            try:
                standard.check_required_attributes(dataset, module["key"])
            except AttributeError as error:
                found.append(f"{module['key']}: {error}")
    known = set().union(*(attributes_of(module["key"]) for module in modules))
    return found + [f"{'/'.join((*path, keyword))} is of no module" for path, keyword in sorted(there - known)]


@pytest.fixture(params=[*PLANES, "frames"])
def of_every_plane(request: pytest.FixtureRequest, tmp_path: Path) -> Result:
    make = result_on_frames if request.param == "frames" else result_on
    return make(tmp_path / "series") if request.param == "frames" else make(tmp_path / "series", request.param)


def test_it_has_what_its_modules_want_and_nothing_else(of_every_plane: Result) -> None:
    assert problems(segmentation(of_every_plane, "labelmap")) == []


def test_these_tables_find_nothing_in_a_binary_one_as_dciodvfy_does(axial: Result) -> None:
    assert problems(segmentation(axial, "binary")) == []


@pytest.mark.parametrize(
    ("where", "keyword"),
    [
        (lambda seg: seg, "SegmentationType"),
        (lambda seg: seg.SegmentSequence[0], "SegmentedPropertyTypeCodeSequence"),
        (lambda seg: seg.PerFrameFunctionalGroupsSequence[0], "PlanePositionSequence"),
        (lambda seg: seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0], "SourceImageSequence"),
        (lambda seg: seg, "PatientID"),
    ],
)
def test_these_tables_find_what_is_missing(where: Callable[[Dataset], Dataset], keyword: str, axial: Result) -> None:
    broken = segmentation(axial, "labelmap")
    delattr(where(broken), keyword)
    assert keyword in " ".join(problems(broken))


def test_these_tables_find_what_does_not_belong_there(axial: Result) -> None:
    broken = segmentation(axial, "labelmap")
    broken.EchoTime = "5"
    assert problems(broken) == ["EchoTime is of no module"]


def test_every_value_is_one_that_its_representation_allows(axial: Result, tmp_path: Path) -> None:
    segmentation(axial, "labelmap").save_as(tmp_path / "a.dcm", enforce_file_format=True)
    mode = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.RAISE
    try:
        dataset = pydicom.dcmread(tmp_path / "a.dcm")
        assert sum(1 for _ in attributes_in(dataset)) > 100  # each of them was decoded and checked
    finally:
        config.settings.reading_validation_mode = mode
    assert (dataset.SegmentationType, dataset.PhotometricInterpretation, dataset.BitsAllocated) == ("LABELMAP", "MONOCHROME2", 8)
    assert dataset.file_meta.MediaStorageSOPClassUID == LABELMAP == dataset.SOPClassUID


def test_highdicom_pydicom_and_our_reader_read_the_same_voxels(of_every_plane: Result, tmp_path: Path) -> None:
    segmentation(of_every_plane, "labelmap").save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = of_every_plane.values
    present = [index for index in range(expected.shape[2]) if expected[:, :, index].any()]
    volume = highdicom.seg.segread(tmp_path / "a.dcm").get_volume(combine_segments=True).array
    assert sorted(volume[volume > 0].tolist()) == sorted(expected[expected > 0].tolist())
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    positions = np.stack([of_every_plane.source.position(index) for index in range(expected.shape[2])])
    seen = set()
    for frame, group in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        index = int(np.abs(positions - place).sum(1).argmin())
        np.testing.assert_array_equal(frame.T, expected[:, :, index])
        seen.add(index)
    assert seen >= set(present)
    found = read_seg(tmp_path / "a.dcm")
    for segment in of_every_plane.segments:
        mask = found.mask(next(each for each in found.segments if each.value == segment.value))
        assert int(mask.sum()) == int(of_every_plane.mask(segment).sum())


def test_simpleitk_does_not_read_the_class_yet(axial: Result, tmp_path: Path) -> None:
    segmentation(axial, "labelmap").save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(RuntimeError, match="Unable to determine ImageIO reader"):  # once it does, the voxels are to be compared here
        sitk.ReadImage(str(tmp_path / "a.dcm"))


@pytest.mark.skipif(shutil.which("dcmdump") is None, reason="dcmdump (Debian's dcmtk) is not installed")
def test_dcmtk_reads_every_element(axial: Result, tmp_path: Path) -> None:
    segmentation(axial, "labelmap").save_as(tmp_path / "a.dcm", enforce_file_format=True)
    said = subprocess.run(["dcmdump", "-q", "+E", str(tmp_path / "a.dcm")], capture_output=True, check=True)
    assert b"LABELMAP" in said.stdout
    assert said.stderr == b""
