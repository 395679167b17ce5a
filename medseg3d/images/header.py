"""What is known of an image file before its voxels are read, and how files are told apart by their names."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medseg3d.geometry import Geometry
from medseg3d.images.readers import READERS

_TO_NIFTI = "convert it to NIfTI (.nii.gz)"
REFUSED_ENDINGS: dict[str, str] = {
    ".mgz": f"FreeSurfer's .mgz is not supported; {_TO_NIFTI}, for instance with mri_convert",
    ".mgh": f"FreeSurfer's .mgh is not supported; {_TO_NIFTI}, for instance with mri_convert",
    ".mnc": f"MINC (.mnc) is not supported; {_TO_NIFTI}, for instance with mnc2nii",
    ".img.gz": f"header and voxels in two files (.hdr and .img) are not supported; {_TO_NIFTI}",
    ".img": f"header and voxels in two files (.hdr and .img) are not supported; {_TO_NIFTI}",
    ".hdr": f"header and voxels in two files (.hdr and .img) are not supported; {_TO_NIFTI}",
    ".gipl": f"GIPL is not supported; {_TO_NIFTI}",
    ".par": f"Philips PAR/REC is not supported; {_TO_NIFTI}",
    ".png": f"pictures (.png) are not supported; {_TO_NIFTI} with one value per voxel",
    ".jpg": f"pictures (.jpg) are not supported; {_TO_NIFTI} with one value per voxel",
    ".bmp": f"pictures (.bmp) are not supported; {_TO_NIFTI} with one value per voxel",
    ".tif": f"TIFF is not supported, it holds no position in space; {_TO_NIFTI}",
    ".tiff": f"TIFF is not supported, it holds no position in space; {_TO_NIFTI}",
}
"""Images that people do have and that are not read: what to do with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NiftiGrid:
    """The fields of a NIfTI header that place the voxels in space, as they were stored.

    ``pixdim`` are the first four entries (the sign of the handedness, then the spacing); ``quaternion`` is (b, c, d).
    ``version`` is 1 (float32 fields) or 2 (float64 fields); Python's floats hold both exactly.
    """

    version: Literal[1, 2]
    sform_code: int
    qform_code: int
    pixdim: tuple[float, float, float, float]
    quaternion: tuple[float, float, float]
    qoffset: tuple[float, float, float]
    srow: tuple[tuple[float, float, float, float], ...]
    xyzt_units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What a file says of itself.

    ``stored_shape`` is the shape in the file: (x, y), (x, y, z) or (x, y, z, volume); ``geometry`` is always 3D and in mm.
    ``format`` is the name of its reader. ``dtype`` is the type of the stored values; ``is_scaled`` says that a slope or an intercept turns
    them into the image's.
    ``modality`` is DICOM's (CT, MR, PT, …), None where the file does not tell it. ``nifti`` is None for other formats.
    ``notes`` are oddities that are no error.
    """

    geometry: Geometry
    stored_shape: tuple[int, ...]
    format: str
    num_volumes: int
    dtype: str
    is_scaled: bool = False
    nifti: NiftiGrid | None = None
    notes: tuple[str, ...] = ()
    modality: str | None = None

    @property
    def num_voxels(self) -> int:
        """Voxels of one volume."""
        x, y, z = self.geometry.shape
        return x * y * z


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One volume: ``array`` (x, y, z) in the file's axes, slope and intercept applied, else the stored type; and its header."""

    array: np.ndarray
    header: ImageHeader


def ending_of(path: Path) -> str:
    """The known ending of a file name, else its last suffix, lower case.

    >>> ending_of(Path("case.v2.NII.GZ"))
    '.nii.gz'
    """
    name = path.name.lower()
    for ending in sorted((*READERS, *REFUSED_ENDINGS), key=len, reverse=True):
        if name.endswith(ending):
            return ending
    return path.suffix.lower()


def case_name(path: Path) -> str:
    """The file name without its ending, a folder's name as it is; in Unicode's composed form, whichever the file system keeps.

    >>> case_name(Path("labelsTr/patient.7.nii.gz"))
    'patient.7'
    """
    ending = ending_of(path)
    if ending not in READERS and ending not in REFUSED_ENDINGS:
        return unicodedata.normalize("NFC", path.name)
    return unicodedata.normalize("NFC", path.name[: -len(ending)])


def homogeneous(linear: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """A 4x4 affine of a 3x3 matrix and an origin."""
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = origin
    return affine


def volume_of(num_volumes: int, volume: int | None) -> int:
    """The index of the wanted volume, 0 for 3D files.

    Raises :class:`ValueError` with the reason where the file has several and the dataset asks for none of them, or has not that many.
    """
    if volume is None:
        if num_volumes > 1:
            raise ValueError(
                f"4D image with {num_volumes} volumes where one is expected (a label, or an image of one channel). Split the file and "
                "keep the volume that is meant"
            )
        return 0
    if not 0 <= volume < num_volumes:
        raise ValueError(f"volume {volume} was asked for, the file has {num_volumes} (counted from 0)")
    return volume
