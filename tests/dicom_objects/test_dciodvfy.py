"""What dciodvfy (Debian's dicom3tools), which knows the standard attribute by attribute, says of our files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from medseg3d.dicom_objects.result import Result
from medseg3d.dicom_objects.rtstruct import structure_set
from medseg3d.dicom_objects.seg import segmentation
from medseg3d.dicom_objects.structured_report import report
from tests.dicom_objects.conftest import result_on

pytestmark = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (Debian's dicom3tools) is not installed")


def findings(dataset: Dataset, path: Path) -> list[str]:
    """Errors and warnings, without that a private coding scheme is none of the standard's."""
    dataset.save_as(path, enforce_file_format=True)
    said = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, encoding="utf-8", errors="replace", check=False)
    lines = [line for line in (said.stdout + said.stderr).splitlines() if line.startswith(("Error", "Warning"))]
    return [line for line in lines if not line.endswith("Unrecognized defined term = <99MEDSEG3D>")]


def test_seg_is_as_the_standard_says(tmp_path: Path) -> None:
    oblique = result_on(tmp_path / "series", "oblique")
    for kind in ("binary", "fractional"):
        assert findings(segmentation(oblique, kind), tmp_path / "a.dcm") == []  # type: ignore[arg-type]


def test_a_label_map_is_new_to_dciodvfy_and_nothing_else_is_wrong_with_it(axial: Result, tmp_path: Path) -> None:
    found = findings(segmentation(axial, "labelmap"), tmp_path / "a.dcm")
    assert [line for line in found if "Information Object Not found" not in line and "SegmentNumber not monotonically" not in line] == []


def test_rt_structure_set_is_as_the_standard_says(tmp_path: Path) -> None:
    assert findings(structure_set(result_on(tmp_path / "series", "oblique")), tmp_path / "a.dcm") == []


def test_structured_report_is_as_the_standard_says(axial: Result, tmp_path: Path) -> None:
    assert findings(report(axial), tmp_path / "a.dcm") == []
    assert findings(report(axial, segmentation(axial)), tmp_path / "a.dcm") == []
