"""What nibabel and SimpleITK hold in memory is what reading its file gives."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from medseg3d.errors import InputError
from medseg3d.images import read_volumes
from medseg3d.images.image_objects import array_and_affine

RNG = np.random.default_rng(0)
ANGLE = np.radians(20)
OBLIQUE = np.array(
    [[-1.5 * np.cos(ANGLE), 0, 2 * np.sin(ANGLE), 11], [0, 0.8, 0, -7], [1.5 * np.sin(ANGLE), 0, 2 * np.cos(ANGLE), 3], [0, 0, 0, 1]]
)


def assert_as_read(path: Path, image: object, num_channels: int = 1) -> None:
    array, affine = array_and_affine(image)
    read = read_volumes(path, range(num_channels) if num_channels > 1 else [None])
    assert array.shape == (num_channels, *read[0].header.geometry.shape)
    assert np.allclose(affine, read[0].header.geometry.matrix, atol=1e-5)
    for channel, own in zip(array, read, strict=True):
        assert np.array_equal(channel.astype(np.float32), own.array.astype(np.float32))


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 3), (5, 6, 7, 1, 3), (5, 6)])
def test_images_of_nibabel_are_read_as_their_files(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = nibabel.Nifti1Image(RNG.integers(-999, 999, shape).astype(np.int16), OBLIQUE)
    image.header.set_slope_inter(0.37, -3.1)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert_as_read(tmp_path / "a.nii.gz", nibabel.load(tmp_path / "a.nii.gz"), 3 if len(shape) > 3 else 1)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_images_of_simple_itk_are_read_as_their_files(tmp_path: Path, ending: str) -> None:
    nibabel.save(nibabel.Nifti1Image(RNG.normal(size=(5, 6, 7)).astype(np.float32), OBLIQUE), tmp_path / "a.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    sitk.WriteImage(image, str(tmp_path / f"b{ending}"))
    assert_as_read(tmp_path / f"b{ending}", image)


def test_channels_of_simple_itk_are_components_or_a_fourth_axis(tmp_path: Path) -> None:
    channels = RNG.normal(size=(3, 7, 6, 5)).astype(np.float32)
    vector = sitk.GetImageFromArray(np.moveaxis(channels, 0, -1), isVector=True)
    fourth = sitk.GetImageFromArray(channels, isVector=False)
    for image in (vector, fourth):
        array, affine = array_and_affine(image)
        assert np.array_equal(array, channels.transpose(0, 3, 2, 1))
        assert np.array_equal(affine, np.diag([-1, -1, 1, 1]))


@pytest.mark.parametrize("image", [[[1]], "a.nii.gz", None, sitk.Image(3, 4, sitk.sitkUInt8)])
def test_other_objects_are_refused(image: object) -> None:
    with pytest.raises(InputError, match="expected"):
        array_and_affine(image)
