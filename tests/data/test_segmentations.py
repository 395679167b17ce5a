"""Segments are read by their names, wherever on the image's grid they lie, and however many layers hold them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.reading import read_case, read_label_maps
from medseg3d.data.segmentations import grid_of_both, label_map_of, onto_grid
from medseg3d.errors import GeometryMismatchError, LabelValueError
from medseg3d.geometry import geometry_of
from medseg3d.images import data_files, read_header, read_image
from medseg3d.images.segments import Segmentation, read_segmentation
from medseg3d.labels import Labels
from tests.seg_nrrd import write_seg_nrrd

LABELS = Labels(names=("background", "left_kidney", "tumor"), values=(0, 4, 9))
REGIONS = Labels(names=("background", "whole", "core"), values=(0, 1, 2), regions=((1, 2), (2,)))
AFFINE = np.array([[0.8, -0.6, 0, -20], [0.6, 0.8, 0, 11], [0, 0, 2.5, -3], [0, 0, 0, 1]])
ONE, OTHER = (np.zeros((6, 5, 4), np.uint8) for _ in range(2))
ONE[1:4, 1:4, 1:3] = 1
OTHER[3:5, 2:4, 1:3] = 1


def segmentation(path: Path, layers: list[np.ndarray], names: dict[str, tuple[int, int]]) -> Segmentation:
    segments = [
        {"ID": f"s{n}", "Name": name, "LabelValue": value, "Layer": layer} for n, (name, (value, layer)) in enumerate(names.items())
    ]
    found = read_segmentation(write_seg_nrrd(path, layers, segments, affine=AFFINE))
    assert found is not None
    return found


def test_segments_become_labels_by_their_names(tmp_path: Path) -> None:
    """The values of the file mean nothing to the dataset."""
    file = tmp_path / "case.seg.nrrd"
    found = segmentation(file, [ONE * 7 + (OTHER & ~ONE & 1) * 2], {"Tumor": (2, 0), "Left Kidney": (7, 0)})
    expected = np.where(ONE, 4, np.where(OTHER, 9, 0))
    np.testing.assert_array_equal(label_map_of(found, LABELS, file), expected)


def test_of_segments_that_overlap_the_later_one_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "case.seg.nrrd"
    found = segmentation(file, [ONE, OTHER], {"left kidney": (1, 0), "tumor": (1, 1)})
    np.testing.assert_array_equal(label_map_of(found, LABELS, file), np.where(OTHER, 9, np.where(ONE, 4, 0)))
    assert f"overlap in {np.count_nonzero(ONE & OTHER)} voxels" in caplog.text


def test_segments_that_overlap_are_regions(tmp_path: Path) -> None:
    file = tmp_path / "case.seg.nrrd"
    found = segmentation(file, [ONE, ONE & OTHER], {"core": (1, 1), "whole": (1, 0)})
    np.testing.assert_array_equal(label_map_of(found, REGIONS, file), np.where(ONE & OTHER, 2, ONE))
    outside = segmentation(file, [ONE, OTHER], {"core": (1, 1), "whole": (1, 0)})
    with pytest.raises(LabelValueError, match=r"voxels belong to core alone, and no label value stands for that"):
        label_map_of(outside, REGIONS, file)


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "case.seg.nrrd"
    with pytest.raises(LabelValueError, match=r"no label is called liver; the labels are left_kidney, tumor"):
        label_map_of(segmentation(file, [ONE], {"left kidney": (3, 0), "tumor": (2, 0), "liver": (1, 0)}), LABELS, file)
    with pytest.raises(LabelValueError, match=r"has no segment for tumor.*add an empty segment"):
        label_map_of(segmentation(file, [ONE], {"left kidney": (1, 0)}), LABELS, file)
    empty = segmentation(file, [ONE], {"left kidney": (1, 0), "tumor": (2, 0), "notes": (3, 0)})
    np.testing.assert_array_equal(label_map_of(empty, LABELS, file), ONE * 4, "a segment without voxels may have any name")


def test_layers_without_overlap_are_a_label_map_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "case.seg.nrrd"
    segmentation(file, [ONE, (OTHER & ~ONE & 1) * 2], {"a": (1, 0), "b": (2, 1)})
    np.testing.assert_array_equal(read_image(file).array, np.where(ONE, 1, np.where(OTHER, 2, 0)))
    assert (read_header(file).num_volumes, data_files(file)) == (1, (file,))
    segmentation(file, [ONE, OTHER * 2], {"a": (1, 0), "b": (2, 1)})
    with pytest.raises(LabelValueError, match="whose segments overlap in"):
        read_image(file)
    segmentation(file, [ONE, OTHER], {"a": (1, 0), "b": (1, 1)})
    with pytest.raises(LabelValueError, match="in which a, b have the same value"):
        read_image(file)


@given(st.permutations(range(3)), st.tuples(*[st.booleans()] * 3), st.tuples(*[st.integers(0, 2)] * 3))
def test_a_part_of_the_grid_is_filled_up_with_background(axes: list[int], flips: tuple[bool, ...], start: tuple[int, ...]) -> None:
    reference = geometry_of((8, 7, 6), AFFINE)
    part = np.random.default_rng(0).integers(1, 5, (4, 3, 2))
    expected = np.zeros(reference.shape, part.dtype)
    expected[start[0] : start[0] + 4, start[1] : start[1] + 3, start[2] : start[2] + 2] = part
    matrix = AFFINE.copy()
    matrix[:3, 3] = (AFFINE @ [*start, 1])[:3]
    for axis, is_flipped in enumerate(flips):
        if is_flipped:
            part = np.flip(part, axis)
            matrix[:3, 3] += matrix[:3, axis] * (part.shape[axis] - 1)
            matrix[:3, axis] *= -1
    turned = geometry_of([part.shape[axis] for axis in axes], np.column_stack((matrix[:, axes], matrix[:, 3])))
    np.testing.assert_array_equal(onto_grid(part.transpose(axes), turned, reference, "case"), expected)


def test_voxels_beside_those_of_the_image_are_refused() -> None:
    reference, own = geometry_of((8, 7, 6), AFFINE), AFFINE.copy()
    own[0, 3] += 0.3
    with pytest.raises(GeometryMismatchError, match="voxels beside those of the image"):
        onto_grid(ONE, geometry_of(ONE.shape, own), reference, "case")
    with pytest.raises(GeometryMismatchError, match="labelled voxels lie outside of the image"):
        onto_grid(ONE, replace(reference, shape=ONE.shape), geometry_of((3, 3, 3), AFFINE), "case")


@pytest.mark.parametrize("is_flipped", [False, True])
def test_two_parts_of_one_grid_are_compared_where_both_lie(tmp_path: Path, is_flipped: bool) -> None:
    mask = np.ones((3, 3, 3), np.uint8)
    affine, start = AFFINE.copy(), [1, 0, 0]
    if is_flipped:  # the same voxels, stored from the other end of z
        affine[:3, 2] *= -1
        affine[:3, 3] = (AFFINE @ [0, 0, 2, 1])[:3]
    one = write_seg_nrrd(tmp_path / "one.seg.nrrd", [mask], [{"Name": "a", "LabelValue": 1}], affine=affine, start=start)
    other = write_seg_nrrd(tmp_path / "other.seg.nrrd", [mask], [{"Name": "a", "LabelValue": 1}], affine=AFFINE, start=(2, 2, 1))
    predicted, reference, _ = read_label_maps(one, other, "case")
    assert predicted.shape == reference.shape == (4, 5, 4)
    assert (predicted.sum(), reference.sum(), (predicted * reference).sum()) == (27, 27, 2 * 1 * 2)


def test_parts_that_lie_too_far_apart_for_one_image_share_no_grid() -> None:
    one, moved = geometry_of((512, 512, 400), np.eye(4)), np.eye(4)
    for distance, is_shared in ((300, True), (1200, False)):
        moved[:3, 3] = distance
        other = geometry_of((512, 512, 400), moved)
        assert (grid_of_both(one, other) != other) is is_shared


def test_a_dataset_may_hold_segmentations_of_parts(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(8, 7, 6)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(image, AFFINE), tmp_path / "case.nii.gz")
    label = write_seg_nrrd(tmp_path / "case.seg.nrrd", [ONE], [{"Name": "a", "LabelValue": 1}], affine=AFFINE, start=(2, 1, 1))
    raw = read_case(Case(name="case", channels=(ChannelFile(path=tmp_path / "case.nii.gz"),), label=label))
    assert raw.labels is not None
    assert raw.labels.sum() == ONE.sum()
