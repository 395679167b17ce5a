from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medseg3d.dataset import prediction_cases
from medseg3d.errors import DatasetError, ImageReadError
from medseg3d.images import is_image, read_image

ROWS, COLUMNS = np.array([1.0, 0, 0]), np.array([0, 0.96, 0.28])
NORMAL = np.cross(ROWS, COLUMNS)


def write_series(
    folder: Path, positions: list[np.ndarray], *, series: str = "1.2.3.1", study: str = "1.2.3", names: list[str] | None = None
) -> Path:
    """One file per position; slice k holds the value -k everywhere but for a corner of 1000."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k, position in enumerate(positions):
        pixels = np.full((1, 4, 3), -k, np.int16)
        pixels[0, 0, 0] = 1000
        image = sitk.GetImageFromArray(pixels)
        image.SetSpacing((0.5, 0.7, 1.0))
        for tag, value in {
            "0008|0060": "CT",
            "0020|000d": study,
            "0020|000e": series,
            "0008|0018": f"{series}.{k + 1}",
            "0008|103e": f"series {series}",
            "0020|0032": "\\".join(f"{p:.6f}" for p in position),
            "0020|0037": "\\".join(f"{v:.6f}" for v in (*ROWS, *COLUMNS)),
            "0018|0050": "5",
            "0028|1052": "0",
            "0028|1053": "1",
        }.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / (names[k] if names else f"{k:03d}.dcm")))
        writer.Execute(image)
    return folder


def regular(count: int = 5, step: float = 6.5) -> list[np.ndarray]:
    return [np.array([10.0, 20, 30]) + k * step * NORMAL for k in range(count)]


def test_slices_are_ordered_by_position_and_spaced_by_it(tmp_path) -> None:
    folder = write_series(tmp_path / "series", regular(), names=["c.dcm", "a.dcm", "e.dcm", "b.dcm", "d.dcm"])
    image = read_image(folder)
    assert image.array.shape == (3, 4, 5)
    np.testing.assert_array_equal(image.array[1, 1], -np.arange(5))
    np.testing.assert_array_equal(image.array[0, 0], 1000)
    np.testing.assert_allclose(image.header.geometry.spacing, (0.5, 0.7, 6.5), rtol=1e-5)
    np.testing.assert_allclose(image.header.geometry.origin, (-10, -20, 30), atol=1e-5)
    np.testing.assert_allclose(image.header.geometry.direction[:, 2], NORMAL * [-1, -1, 1], atol=1e-5)
    assert is_image(folder)


def test_a_missing_slice_is_refused_with_the_distances(tmp_path) -> None:
    positions = regular(6)
    del positions[2]
    with pytest.raises(ImageReadError, match=r"uneven slice distance \(6\.50 to 13\.00 mm\)"):
        read_image(write_series(tmp_path / "series", positions))


def test_a_tilted_gantry_is_refused_with_the_angle(tmp_path) -> None:
    positions = [position + k * 6.5 * np.tan(np.radians(18.5)) * COLUMNS for k, position in enumerate(regular())]
    with pytest.raises(ImageReadError, match=r"tilted gantry \(18\.5 degrees\)"):
        read_image(write_series(tmp_path / "series", positions))


def test_slices_at_one_position_are_refused(tmp_path) -> None:
    with pytest.raises(ImageReadError, match="same position"):
        read_image(write_series(tmp_path / "series", [*regular(3), *regular(3)]))


def test_two_series_are_listed_and_refused(tmp_path) -> None:
    names = [f"b{k}.dcm" for k in range(5)]
    write_series(tmp_path / "both", regular())
    write_series(tmp_path / "both", regular(), series="1.2.3.2", names=names)
    with pytest.raises(ImageReadError, match=r"2 series found: series 1\.2\.3\.1 \(5 files, first 000\.dcm\); series 1\.2\.3\.2"):
        read_image(tmp_path / "both")
    write_series(tmp_path / "study" / "one", regular())
    write_series(tmp_path / "study" / "two", regular(), series="1.2.3.2")
    with pytest.raises(ImageReadError, match=r"2 series found: one \(5 files\); two \(5 files\)"):
        read_image(tmp_path / "study")
    with pytest.raises(DatasetError, match="2 series found in one study: one, two"):
        prediction_cases(tmp_path / "study", num_channels=1)


def test_folders_of_different_patients_are_cases(tmp_path) -> None:
    write_series(tmp_path / "anna", regular(), study="1.2.4")
    write_series(tmp_path / "bert", regular(), study="1.2.5")
    assert [case.name for case in prediction_cases(tmp_path, num_channels=1)] == ["anna", "bert"]
    assert [case.name for case in prediction_cases(tmp_path / "anna", num_channels=1)] == ["anna"]


def test_a_folder_without_images_is_refused(tmp_path) -> None:
    with pytest.raises(ImageReadError, match="without DICOM files"):
        read_image(tmp_path)
