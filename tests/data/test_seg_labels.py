"""Datasets whose labels are DICOM SEG."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.reading import read_case
from medseg3d.dicom_objects.seg import segmentation
from medseg3d.errors import DatasetError, ImageReadError
from medseg3d.labels import Labels
from tests.dicom_objects.conftest import result_on

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
