"""Images that nibabel or SimpleITK hold in memory → the voxels and the affine that reading their file gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from medseg3d.errors import InputError

UNITS_TO_MM = {"meter": 1000.0, "micron": 0.001}
"""nibabel's names of the units of NIfTI that are not mm."""
TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""From ITK's world axes (LPS) to those of NIfTI (RAS)."""


def array_and_affine(image: Any) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``(channel, x, y, z)``, a view where it can be one, and the affine to RAS+ mm; raises :class:`InputError` for other objects.

    A fourth axis, or the components of a vector image, are the channels.
    """
    import nibabel.spatialimages
    import SimpleITK as sitk

    if isinstance(image, nibabel.spatialimages.SpatialImage):
        return _of_nibabel(image)
    if isinstance(image, sitk.Image):
        return _of_itk(image)
    raise InputError(
        f"An object of type {type(image).__name__} without an affine; expected an array with one, or a nibabel or SimpleITK image."
    )


def _of_nibabel(image: Any) -> tuple[np.ndarray, np.ndarray]:
    array = np.asanyarray(image.dataobj)
    grid, others = (*array.shape, 1)[:3], [n for n in array.shape[3:] if n > 1]
    if array.ndim < 2 or len(others) > 1:
        raise InputError(f"An image of shape {array.shape}; expected (x, y, z) or (x, y, z, channel).")
    affine = np.array(image.affine, np.float64)
    units = getattr(image.header, "get_xyzt_units", None)
    affine[:3] *= UNITS_TO_MM.get(units()[0], 1.0) if units is not None else 1.0
    return np.moveaxis(array.reshape((*grid, *(others or [1]))), -1, 0), affine


def _of_itk(image: Any) -> tuple[np.ndarray, np.ndarray]:
    import SimpleITK as sitk

    dimension, is_vector = image.GetDimension(), image.GetNumberOfComponentsPerPixel() > 1
    if dimension not in (3, 4) or (dimension == 4 and is_vector):
        raise InputError(f"A SimpleITK image of size {image.GetSize()}; expected three axes, and channels along a fourth or as components.")
    array = sitk.GetArrayFromImage(image)  # (z, y, x), with components last and a fourth axis first
    by_channel = np.moveaxis(array, -1, 0) if is_vector else array[None] if dimension == 3 else array
    direction = np.asarray(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = TO_RAS @ direction * np.asarray(image.GetSpacing()[:3])
    affine[:3, 3] = TO_RAS @ image.GetOrigin()[:3]
    return by_channel.transpose(0, 3, 2, 1), affine
