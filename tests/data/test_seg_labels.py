"""Datasets whose labels are DICOM SEG."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg3d import measure
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.reading import read_case
from medseg3d.data.segmentations import label_map_of
from medseg3d.dicom_objects.seg import segmentation
from medseg3d.errors import DatasetError, ImageReadError
from medseg3d.evaluation.evaluate_folders import evaluate_folders
from medseg3d.images import read_header, write_label_map
from medseg3d.images.segments import read_segmentation
from medseg3d.labels import Labels
from tests.dicom_objects.conftest import label_map, result_on
from tests.seg_nrrd import write_seg_nrrd

PLAIN = Labels(names=("background", "left kidney", "right kidney"), values=(0, 3, 7))
NESTED = replace(PLAIN, names=("background", "whole", "core"), regions=((3, 7), (7,)))


def dataset(root: Path, *labels: Labels) -> Path:
    """Two plain folders: a series and a SEG for each of ``labels``."""
    (root / "labels").mkdir(parents=True)
    for number, each in enumerate(labels):
        segmentation(result_on(root / f"images/c{number}", "axial", each)).save_as(root / f"labels/c{number}.seg.dcm")
    return root


def test_segments_name_the_labels_by_their_numbers(tmp_path: Path) -> None:
    found = open_dataset(dataset(tmp_path, PLAIN, PLAIN))
    assert found.labels is not None
    assert (found.labels.names, found.labels.values) == (PLAIN.names, (0, 1, 2))
    assert found.labels.pairs == ((1, 2),)
    assert [case.name for case in found.training] == ["c0", "c1"]


def test_segments_that_overlap_become_regions(tmp_path: Path) -> None:
    labels = open_dataset(dataset(tmp_path, NESTED)).labels
    assert labels is not None
    assert labels.names == ("background", "whole", "core")
    assert labels.regions == ((1, 1002), (1002,))
    assert labels.values == (0, 1, 1002)


def test_two_files_that_mean_another_structure_by_a_number_are_refused(tmp_path: Path) -> None:
    other = replace(PLAIN, names=("background", "right kidney", "left kidney"))
    with pytest.raises(DatasetError, match=r"segment 1 is called 'right kidney', and 'left kidney' in another file"):
        open_dataset(dataset(tmp_path, PLAIN, other))


def test_a_segment_that_dataset_json_calls_otherwise_costs_its_case(tmp_path: Path) -> None:
    root = dataset(tmp_path, PLAIN, replace(PLAIN, names=("background", "liver", "right kidney")))
    shutil.move(root / "images", root / "imagesTr")
    shutil.move(root / "labels", root / "labelsTr")
    for number in (0, 1):
        (root / f"imagesTr/c{number}").rename(root / f"imagesTr/c{number}_0000")
    declared = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "left kidney": 1, "right kidney": 2}, "numTraining": 2}
    (root / "dataset.json").write_text(json.dumps({**declared, "file_ending": ".dcm"}), encoding="utf-8")
    found = open_dataset(root)
    assert [case.name for case in found.training] == ["c0"]
    assert "segment 1 is called 'liver', and dataset.json calls the value 1 'left kidney'" in found.failures[0].reason
    assert np.array_equal(found.labels.values if found.labels else (), (0, 1, 2))


@pytest.mark.fault("B", "a DICOM SEG among the labels that is damaged", "its case fails; the names are those of the others")
@pytest.mark.parametrize("kind", ["cut", "no segments", "no number"])
@pytest.mark.parametrize("is_declared", [False, True])
def test_a_damaged_seg_costs_its_case(kind: str, is_declared: bool, tmp_path: Path) -> None:
    root = dataset(tmp_path, PLAIN, PLAIN, PLAIN)
    damage(root / "labels/c1.seg.dcm", kind)
    if is_declared:
        shutil.move(root / "images", root / "imagesTr")
        shutil.move(root / "labels", root / "labelsTr")
        for number in range(3):
            (root / f"imagesTr/c{number}").rename(root / f"imagesTr/c{number}_0000")
        declared = {"channel_names": {"0": "CT"}, "labels": dict(zip(PLAIN.names, (0, 1, 2), strict=True)), "numTraining": 3}
        (root / "dataset.json").write_text(json.dumps({**declared, "file_ending": ".dcm"}), encoding="utf-8")
    found = open_dataset(root)
    assert found.labels is not None
    assert (found.labels.names, found.labels.values) == (PLAIN.names, (0, 1, 2))
    failed = {failure.case for failure in found.failures}
    for case in found.training:
        try:
            read_case(case)
        except ImageReadError:
            failed.add(case.name)
    assert failed == {"c1"}


def damage(file: Path, kind: str) -> None:
    if kind == "cut":
        file.write_bytes(file.read_bytes()[:-300])
        return
    seg = pydicom.dcmread(file)
    if kind == "no segments":
        del seg.SegmentSequence
    else:
        del seg.SegmentSequence[0].SegmentNumber
    seg.save_as(file)


@pytest.mark.fault("A", "label maps that are DICOM SEG with overlapping segments, measured and evaluated", "as the regions that they are")
def test_segments_that_overlap_are_measured_as_what_they_are(tmp_path: Path) -> None:
    folder = dataset(tmp_path, NESTED) / "labels"
    expected = {"whole": np.count_nonzero(label_map()), "core": np.count_nonzero(label_map() == 7)}
    assert {each.name: each.voxels for each in measure(folder).cases[0].structures} == expected
    found = evaluate_folders(folder, folder)
    assert [(label.name, label.dice.mean) for label in found.labels] == [("whole", 1.0), ("core", 1.0)]


@pytest.mark.fault("A", "DICOM SEG evaluated against label maps whose values are other numbers", "structures are told by their names")
@pytest.mark.parametrize("values", [{"left kidney": 3, "right kidney": 7}, {"left kidney": 2, "right kidney": 1}], ids=str)
def test_predicted_segments_are_compared_by_their_names(values: dict[str, int], tmp_path: Path) -> None:
    predictions, references = dataset(tmp_path / "seg", PLAIN) / "labels", tmp_path / "references"
    references.mkdir()
    known = np.select([label_map() == 3, label_map() == 7], [values["left kidney"], values["right kidney"]], 0).astype(np.uint8)
    write_label_map(references / "c0.nii.gz", known, read_header(tmp_path / "seg/images/c0"))
    (references / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **values}}), encoding="utf-8")
    assert [label.dice.mean for label in evaluate_folders(predictions, references).labels] == [1.0, 1.0]


def slicer(root: Path, *numbers: tuple[int, int], labels: dict[str, int] | None = None) -> Path:
    """Cases whose label is a ``.seg.nrrd`` with the segments liver and spleen under these numbers."""
    for case, (liver, spleen) in enumerate(numbers):
        values = np.zeros((6, 5, 4), np.uint8)
        values[:2], values[4:] = liver, spleen
        (root / "labelsTr").mkdir(parents=True, exist_ok=True)
        segments = [{"Name": "Liver", "LabelValue": liver, "Layer": 0}, {"Name": "spleen", "LabelValue": spleen, "Layer": 0}]
        file = write_seg_nrrd(root / f"labelsTr/c{case}.seg.nrrd", [values], segments, affine=np.eye(4))
        (root / "imagesTr").mkdir(exist_ok=True)
        write_label_map(root / f"imagesTr/c{case}_0000.nii.gz", values, read_header(file))
    if labels is not None:
        declared = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **labels}, "numTraining": len(numbers)}
        (root / "dataset.json").write_text(json.dumps({**declared, "file_ending": ".nii.gz"}), encoding="utf-8")
    return root


@pytest.mark.fault("A", "segmentations of 3D Slicer that number the same structures otherwise, as training labels", "refused, naming both")
def test_segments_that_slicer_numbered_otherwise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"segment 2 is called 'Liver', which is number 1 in .*c0.seg.nrrd"):
        open_dataset(slicer(tmp_path / "without", (1, 2), (1, 2), (2, 1)))
    found = open_dataset(slicer(tmp_path / "declared", (1, 2), (2, 1), labels={"liver": 1, "spleen": 2}))
    assert [case.name for case in found.training] == ["c0"]
    assert "segment 2 is called 'Liver', which is the value 1 in dataset.json" in found.failures[0].reason
    assert len(open_dataset(slicer(tmp_path / "other", (1, 2), labels={"organ": 1, "spleen": 2})).training) == 1, "other names say nothing"


@pytest.mark.fault(
    "A", "segmentations of 3D Slicer that number the same structures otherwise, measured and evaluated", "told by their names"
)
def test_segments_are_measured_and_evaluated_by_their_names(tmp_path: Path) -> None:
    one, other = (slicer(tmp_path / name, numbers) / "labelsTr" for name, numbers in (("a", (1, 2)), ("b", (5, 1))))
    assert {each.name: each.voxels for each in measure(other).cases[0].structures} == {"Liver": 40, "spleen": 40}
    with pytest.raises(DatasetError, match=r"segment 1 is called .Liver., which is number 5 in .*b"):
        evaluate_folders(one, other)
    (other / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 5, "spleen": 1}}), encoding="utf-8")
    assert [label.dice.mean for label in evaluate_folders(one, other).labels] == [1.0, 1.0]


def test_values_of_overlaps_are_kept_whatever_the_class_order(tmp_path: Path) -> None:
    """1002 fits no byte, though the values that are predicted do."""
    file = dataset(tmp_path, NESTED) / "labels/c0.seg.dcm"
    labels = Labels(names=("background", "whole", "core"), values=(0, 1, 2), regions=((1, 1002), (2, 1002)))
    segmentation_of = read_segmentation(file)
    assert segmentation_of is not None
    assert np.unique(label_map_of(segmentation_of, labels, file)).tolist() == [0, 1, 1002]
