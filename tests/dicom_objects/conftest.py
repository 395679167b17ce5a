"""Results on series in every plane."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg3d.dicom_objects.made_by import made_by
from medseg3d.dicom_objects.result import Result
from medseg3d.dicom_objects.source import source_series
from medseg3d.images import read_image
from medseg3d.labels import Labels
from tests.dicom_writer import write_series

COS, SIN = float(np.cos(0.4)), float(np.sin(0.4))
PLANES = {
    "axial": {},
    "sagittal": {"orientation": (0, 1, 0, 0, 0, -1)},
    "coronal": {"orientation": (1, 0, 0, 0, 0, -1)},
    "oblique": {"orientation": (COS, SIN, 0, -SIN * COS, COS * COS, SIN)},
    "reversed": {"step": (0, 0, -2.5)},
}
LABELS = Labels(names=("background", "left kidney", "liver tumor", "thing 7"), values=(0, 3, 7, 9))
SHAPE = (9, 8, 6)


def label_map(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Two parts of the first label, one of them with a hole and an island in it; a second one at the border; the third is missing."""
    values = np.zeros(shape, np.uint8)
    values[0:7, 0:7, 1:4] = 3
    values[1:6, 1:6, 2:3] = 0
    values[3, 3, 2] = 3
    values[8, 2, 2] = 3
    values[4:, 7, 3:] = 7
    values[2, 2, 5] = 7
    return values


def result_on(folder: Path, plane: str = "axial", labels: Labels = LABELS) -> Result:
    """A result on a new series in a plane."""
    stored = np.random.default_rng(0).integers(0, 500, SHAPE).astype(np.int16)
    tags = {"PatientName": "Müller^Änna", "SpecificCharacterSet": "ISO_IR 192", "StudyTime": "1200", "StudyID": "7", **PLANES[plane]}
    write_series(folder, stored, **tags)
    source = source_series(folder)
    assert read_image(folder).header.geometry == source.geometry
    chances = np.stack([label_map() == value for value in labels.values]).astype(np.float16)
    return Result(values=label_map(), labels=labels, source=source, made_by=made_by("Kidneys", "abc"), probabilities=chances)


@pytest.fixture(params=list(PLANES))
def result(request: pytest.FixtureRequest, tmp_path: Path) -> Result:
    """One in each plane."""
    return result_on(tmp_path / "series", request.param)


@pytest.fixture
def axial(tmp_path: Path) -> Result:
    """One in the axial plane."""
    return result_on(tmp_path / "series")
