from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from medseg3d.errors import ImageReadError
from medseg3d.images import read_header, read_image, write_label_map

DIRECTION = (0.0, 1.0, 0.0, -0.8, 0.0, 0.6, 0.6, 0.0, 0.8)


def itk_image(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.5, 0.7, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection(DIRECTION)
    return image


@pytest.mark.parametrize(("name", "kind"), [("a.nrrd", "nrrd"), ("a.mha", "mha"), ("a.mhd", "mha"), ("a.nhdr", "nrrd")])
def test_the_grid_is_the_one_that_itk_writes_as_nifti(tmp_path, name, kind) -> None:
    array = np.arange(2 * 3 * 4, dtype=np.int16).reshape(4, 3, 2)
    sitk.WriteImage(itk_image(array), tmp_path / name)
    sitk.WriteImage(itk_image(array), tmp_path / "same.nii.gz")
    found, expected = read_image(tmp_path / name), nibabel.load(tmp_path / "same.nii.gz")
    np.testing.assert_allclose(found.header.geometry.matrix, expected.affine, atol=1e-5)
    np.testing.assert_array_equal(found.array, np.asarray(expected.dataobj))
    assert found.header.format == kind
    assert read_header(tmp_path / name) == found.header


def test_results_for_nrrd_are_nifti_files_on_the_same_grid(tmp_path) -> None:
    sitk.WriteImage(itk_image(np.zeros((4, 3, 2), np.uint8)), tmp_path / "a.nrrd")
    header = read_header(tmp_path / "a.nrrd")
    path = write_label_map(tmp_path / "out.nii.gz", np.arange(24, dtype=np.uint8).reshape(2, 3, 4), header)
    np.testing.assert_allclose(nibabel.load(path).affine, header.geometry.matrix, atol=1e-5)
    back = sitk.ReadImage(path)
    np.testing.assert_allclose(back.GetDirection(), DIRECTION, atol=1e-5)
    np.testing.assert_allclose(back.GetOrigin(), (10, -20, 30), atol=1e-5)


def test_several_values_per_voxel_are_volumes(tmp_path) -> None:
    array = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(4, 3, 2, 5)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), tmp_path / "a.nrrd")
    assert read_header(tmp_path / "a.nrrd").num_volumes == 5
    with pytest.raises(ImageReadError, match="5 volumes"):
        read_image(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nrrd", volume=3).array, array[..., 3].transpose(2, 1, 0))


def test_color_is_refused(tmp_path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 2, 2, 3), np.uint8), isVector=True), tmp_path / "a.mha")
    with pytest.raises(ImageReadError, match="color image"):
        read_image(tmp_path / "a.mha")


def test_a_2d_file_is_one_slice(tmp_path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(6, dtype=np.uint8).reshape(3, 2)), tmp_path / "a.mha")
    image = read_image(tmp_path / "a.mha")
    assert image.array.shape == (2, 3, 1)
    assert nibabel.load(write_label_map(tmp_path / "o.nii.gz", image.array, image.header)).shape == (2, 3)


def test_a_cut_off_file_is_refused_by_name(tmp_path) -> None:
    sitk.WriteImage(itk_image(np.random.default_rng(0).normal(size=(9, 9, 9))), tmp_path / "a.nrrd")
    content = (tmp_path / "a.nrrd").read_bytes()
    (tmp_path / "a.nrrd").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageReadError, match=r"a\.nrrd"):
        read_image(tmp_path / "a.nrrd")
