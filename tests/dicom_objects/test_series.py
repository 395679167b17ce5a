"""The phantom as a scanner would send it: the same voxels at the same places as its NIfTI files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from medseg3d.data.reading import grid_difference
from medseg3d.images import read_image
from medseg3d.workflows.demo import demo
from tests.dicom_objects.test_dciodvfy import findings
from tests.dicom_objects.test_dciodvfy import pytestmark as needs_dciodvfy


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two test cases, of which one is stored with turned axes."""
    return demo(tmp_path_factory.mktemp("demo") / "phantom", num_training=0, num_test=3, dicom=True)


@pytest.mark.parametrize("name", ["phantom_000", "phantom_001", "phantom_002"])
def test_a_series_holds_the_voxels_of_the_image(phantom: Path, name: str) -> None:
    image, series = read_image(phantom / "imagesTs" / f"{name}_0000.nii.gz"), read_image(phantom / "dicom" / name)
    assert grid_difference(image.header.geometry, series.header.geometry).corner_offset_voxels < 1e-3
    assert np.array_equal(image.array, series.array) or np.array_equal(image.array, series.array[:, :, ::-1])


def test_the_same_phantom_has_the_same_uids(phantom: Path, tmp_path: Path) -> None:
    again = demo(tmp_path / "phantom", num_training=0, num_test=1, dicom=True)
    for path in sorted((again / "dicom").rglob("*.dcm")):
        assert path.read_bytes() == (phantom / path.relative_to(again)).read_bytes()


@needs_dciodvfy
def test_a_slice_is_as_the_standard_says(phantom: Path, tmp_path: Path) -> None:
    assert findings(pydicom.dcmread(phantom / "dicom/phantom_002/0003.dcm"), tmp_path / "a.dcm") == []
