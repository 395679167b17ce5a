"""Read and write images: a path goes in, an array (x, y, z) with its header comes out; label maps go back onto the same grid.

The format is chosen by what the file is called (``readers``): NIfTI (``nifti``), NRRD (``nrrd``), MetaImage (``metaimage``), a DICOM
series (``dicom``), or one of an extension.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError, InputError
from medseg3d.images.header import REFUSED_ENDINGS, Image, ImageHeader, NiftiGrid, case_name, ending_of
from medseg3d.images.opening import check_is_file, reading
from medseg3d.images.readers import DICOM, READERS, Reader, array_reader, readable, writable

__all__ = [
    "READERS",
    "Image",
    "ImageHeader",
    "NiftiGrid",
    "Reader",
    "array_reader",
    "case_name",
    "check_is_file",
    "data_files",
    "ending_of",
    "is_image",
    "provider_of",
    "read_header",
    "read_image",
    "read_volumes",
    "readable",
    "reading",
    "refusal",
    "writable",
    "write_image",
    "write_label_map",
]


NO_IMAGES = (".rtstruct.dcm", ".sr.dcm")
"""Results of ours that lie beside label maps."""


def read_header(path: Path, *, files: Sequence[Path] = ()) -> ImageHeader:
    """The grid, type and number of volumes of a file, without decoding its voxels; ``files`` are the slices in a folder, if not all.

    Raises :class:`ImageReadError` for what :func:`read_image` would refuse by its header.
    """
    with reading(path):
        return _reader_of(path).header(path, files)


def read_image(path: Path, *, volume: int | None = None) -> Image:
    """One volume of a file; of a 4D file the one with the index ``volume``.

    Raises :class:`ImageReadError` naming the file: missing, cut off, not an image, several volumes where none is named, color or
    complex voxels, a grid without extent. Raises :class:`StorageError` where the disk fails.
    """
    return read_volumes(path, [volume])[0]


def read_volumes(path: Path, volumes: Sequence[int | None], *, files: Sequence[Path] = ()) -> tuple[Image, ...]:
    """Several volumes of one file, decompressed once; ``files`` are the slices in a folder, if not all; errors as :func:`read_image`."""
    with reading(path):
        return _reader_of(path).volumes(path, volumes, files)


def write_label_map(path: Path, values: np.ndarray, header: ImageHeader) -> Path:
    """Write label values (x, y, z), integers, on exactly the grid of ``header``, atomically: ``.nii.gz``, or as an extension can.

    A single-slice file that was stored as 2D is written as 2D. Types up to 16 bits are kept, wider ones become the smallest that
    fits.
    """
    reader = READERS.get(ending_of(path))
    if reader is None or reader.write is None:
        raise InputError(f"{path}: label maps are not written as this; the name must end in {writable()}.")
    return reader.write(path, values, header)


def write_image(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write an array (x, y, z) or (x, y, z, volume) with an affine to RAS+ mm as NIfTI, atomically."""
    from medseg3d.images import nifti

    if ending_of(path) not in (".nii.gz", ".nii"):
        raise InputError(f"{path}: images are written as NIfTI; the name must end in .nii.gz or .nii.")
    return nifti.write_image(path, array, affine)


def is_image(path: Path) -> bool:
    """Whether a path looks like an image that can be read: by its ending, or a folder that holds DICOM files, itself or below.

    macOS' companions (``._name``) and hidden files are none. Raises :class:`ImageReadError` for a folder that cannot be looked into.
    """
    if path.name.startswith(".") or path.name.lower().endswith(NO_IMAGES):
        return False
    with reading(path):
        if path.is_dir():
            from medseg3d.images import dicom

            return dicom.holds_series(path)
        return ending_of(path) in READERS


def provider_of(path: Path) -> str:
    """The extension whose reader reads a file, as plans note one; empty where it is one of ours, or none."""
    ending = "" if path.is_dir() else ending_of(path)
    return READERS.provider(ending) if ending in READERS else ""


def refusal(path: Path) -> str | None:
    """Why a file that is an image of some kind is not read, and what to do; None for all others."""
    ending = ending_of(path)
    return None if path.name.startswith(".") or ending in READERS else REFUSED_ENDINGS.get(ending)


def data_files(path: Path) -> tuple[Path, ...]:
    """The files that an image consists of: itself, or a header and the files that it names, or those of a DICOM folder.

    Raises :class:`ImageReadError` for a header that cannot be read.
    """
    with reading(path):
        if path.is_dir():
            return tuple(sorted(file for file in path.rglob("*") if file.is_file()))
        reader = READERS.get(ending_of(path))
        return (path,) if reader is None else reader.data_files(path)


def _reader_of(path: Path) -> Reader:
    if path.is_dir():
        return DICOM
    reason = refusal(path)
    if reason:
        raise ImageReadError(f"{path}: {reason}.")
    reader = READERS.get(ending_of(path))
    if reader is None:
        from medseg3d.images.dicom_file import looks_like_dicom

        if looks_like_dicom(path):  # scanners and CDs write them without an ending
            return DICOM
        raise ImageReadError(f"{path}: not an image by its name; expected one of {', '.join(READERS)}, or a folder with a DICOM series.")
    check_is_file(path)
    return reader
