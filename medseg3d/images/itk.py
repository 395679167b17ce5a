"""NRRD and MetaImage files through SimpleITK: a path in, an image on a RAS+ grid out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.geometry import geometry_of
from medseg3d.images.header import Format, Image, ImageHeader, homogeneous, volume_of

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""ITK counts x to the left and y to the back; NIfTI to the right and to the front."""
_MATRIX_TOLERANCE = 1e-3
_READERS: dict[str, str] = {"nrrd": "NrrdImageIO", "mha": "MetaImageIO"}
"""By format: ITK would choose by the content, and open whatever calls itself by one of these names."""


def read_header(path: Path, kind: Format) -> ImageHeader:
    """See :func:`medseg3d.images.read_header`."""
    return _header_of(path, kind, _information(path, kind))


def read_image(path: Path, kind: Format, *, volume: int | None = None) -> Image:
    """See :func:`medseg3d.images.read_image`."""
    import SimpleITK as sitk

    reader = _information(path, kind)
    header = _header_of(path, kind, reader)
    try:
        index = volume_of(header.num_volumes, volume)
    except ValueError as error:
        raise ImageReadError(f"{path}: {error}.") from None
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise ImageReadError(f"{path}: the voxels cannot be decoded ({reason_of(error)}). Copy or download it again.") from None
    if reader.GetNumberOfComponents() > 1:
        array = array[..., index]
    elif reader.GetDimension() == 4:
        array = array[index]
    array = array.reshape(header.geometry.shape[::-1])
    return Image(array=array.transpose(2, 1, 0), header=header)


def _information(path: Path, kind: Format) -> Any:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK would print to the terminal; what matters is checked here
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[kind])
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ImageReadError(f"{path}: not an image that can be read ({reason_of(error)}).") from None
    return reader


def _header_of(path: Path, kind: Format, reader: Any) -> ImageHeader:
    import SimpleITK as sitk

    size, dimension, components = reader.GetSize(), reader.GetDimension(), reader.GetNumberOfComponents()
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in pixel:
        raise ImageReadError(f"{path}: voxels are complex numbers; write the magnitude, or two channels.")
    if components in (3, 4) and "8-bit unsigned" in pixel:
        raise ImageReadError(f"{path}: color image ({components} x 8 bit); a volume with one value per voxel is needed.")
    if dimension not in (2, 3, 4) or (dimension == 4 and components > 1):
        found = f"{dimension}D image with {components} values per voxel"
        raise ImageReadError(f"{path}: {found}; a case needs one 3D file per channel.")
    spacing = np.asarray(reader.GetSpacing(), np.float64)
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        found = " x ".join(f"{s:g}" for s in spacing)
        raise ImageReadError(f"{path}: spacing {found} mm; every axis needs a number above 0. Set the spacing in the header.")
    shape = (*size, 1)[:3]
    direction, origin, edges = np.eye(3), np.zeros(3), np.ones(3)
    n = min(dimension, 3)
    direction[:n, :n] = np.asarray(reader.GetDirection()).reshape(dimension, dimension)[:n, :n]
    origin[:n], edges[:n] = reader.GetOrigin()[:n], spacing[:n]
    if abs(np.linalg.det(direction)) < 0.1:
        raise ImageReadError(f"{path}: two axes of the grid point the same way; the directions in the header are damaged.")
    sheared = np.abs(direction.T @ direction - np.eye(3)).max() > _MATRIX_TOLERANCE
    num_volumes = size[3] if dimension == 4 else components
    return ImageHeader(
        geometry=geometry_of(shape, homogeneous(LPS_TO_RAS @ direction * edges, LPS_TO_RAS @ origin)),
        stored_shape=tuple(size[:2]) if dimension == 2 else (*shape, num_volumes) if num_volumes > 1 else shape,
        format=kind,
        num_volumes=num_volumes,
        dtype=pixel,
        notes=("the axes are not at right angles: the grid is sheared",) if sheared else (),
    )


def reason_of(error: RuntimeError) -> str:
    """The one line of an ITK error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = re.sub(r"^(sitk::ERROR:|ITK ERROR:)\s*|\w+\(0x[0-9a-f]+\):\s*", "", lines[-1]) if lines else "unknown"
    return last.removeprefix("ITK ERROR:").strip().rstrip(".")
