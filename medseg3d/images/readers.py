"""Who reads which file: an entry per ending, those of extensions beside ours.

What reads a format is imported when the first file of it is met.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.extensions import Registry

if TYPE_CHECKING:
    from medseg3d.images.header import Image, ImageHeader
    from medseg3d.images.text_header import TextHeader

Volumes = Sequence[int | None]


def itself(path: Path) -> tuple[Path, ...]:
    """Most images are one file."""
    return (path,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A format: ``header(path, files)`` without decoding voxels, and ``volumes(path, volumes, files)``, decompressed once.

    ``files`` are the slices in a folder, if not all of them. ``data_files`` are the files that an image consists of. ``write(path, values,
    header)`` writes a label map (x, y, z) on the grid of a header; None for formats that are only read. What any of them raises for a
    damaged file becomes an :class:`~medseg3d.errors.ImageReadError`. :func:`array_reader` makes one of a function.
    """

    name: str
    header: Callable[[Path, Sequence[Path]], ImageHeader]
    volumes: Callable[[Path, Volumes, Sequence[Path]], tuple[Image, ...]]
    data_files: Callable[[Path], tuple[Path, ...]] = itself
    write: Callable[[Path, np.ndarray, ImageHeader], Path] | None = None


def array_reader(
    name: str,
    read: Callable[[Path], tuple[np.ndarray, np.ndarray]],
    write: Callable[[Path, np.ndarray, np.ndarray], object] | None = None,
) -> Reader:
    """A reader of one function: ``read(path)`` gives an array (x, y[, z[, volume]]) and its affine, voxel index → RAS+ mm.

    ``write(path, array, affine)`` writes a label map in the same way. The whole file is read for its header as well.
    """
    from medseg3d.geometry import geometry_of
    from medseg3d.images.grid import check_affine
    from medseg3d.images.header import Image, ImageHeader, volume_of

    def opened(path: Path) -> tuple[np.ndarray, ImageHeader]:
        array, affine = read(path)
        array, affine = np.asarray(array), np.asarray(affine, np.float64)
        if not 2 <= array.ndim <= 4 or 0 in array.shape or array.dtype.kind not in "iuf" or affine.shape != (4, 4):
            raise ImageReadError(
                f"{path}: its reader gave an array {array.shape} of {array.dtype} and an affine {affine.shape}; expected numbers (x, y), "
                "(x, y, z) or (x, y, z, volume), and 4 x 4."
            )
        shape = (*array.shape[:3], 1)[:3]
        header = ImageHeader(
            geometry=geometry_of(shape, affine),
            stored_shape=array.shape,
            format=name,
            num_volumes=array.shape[3] if array.ndim == 4 else 1,
            dtype=str(array.dtype),
            notes=check_affine(path, affine, "the file"),
        )
        return array.reshape(*shape, header.num_volumes), header

    def volumes_of(path: Path, volumes: Volumes, files: Sequence[Path]) -> tuple[Image, ...]:
        array, header = opened(path)
        return tuple(Image(array=array[..., volume_of(header.num_volumes, volume)], header=header) for volume in volumes)

    def written(path: Path, values: np.ndarray, header: ImageHeader) -> Path:
        if write is not None:
            write(path, values, header.geometry.matrix)
        return path

    return Reader(name=name, header=lambda path, files: opened(path)[1], volumes=volumes_of, write=None if write is None else written)


# ---- ours


def _nifti_header(path: Path, files: Sequence[Path]) -> ImageHeader:
    from medseg3d.images import nifti

    return nifti.read_header(path)


def _nifti_volumes(path: Path, volumes: Volumes, files: Sequence[Path]) -> tuple[Image, ...]:
    from medseg3d.images import nifti

    return nifti.read_volumes(path, volumes)


def _write_nifti(path: Path, values: np.ndarray, header: ImageHeader) -> Path:
    from medseg3d.images import nifti

    return nifti.write_label_map(path, values, header)


def _dicom_header(path: Path, files: Sequence[Path]) -> ImageHeader:
    from medseg3d.images import dicom, dicom_seg

    if not files and (seg := dicom_seg.seg_file(path)) is not None:
        return dicom_seg.read_header(seg)
    return dicom.read_header(path, files)


def _dicom_volumes(path: Path, volumes: Volumes, files: Sequence[Path]) -> tuple[Image, ...]:
    from medseg3d.images import dicom, dicom_seg

    if not files and (seg := dicom_seg.seg_file(path)) is not None:
        return (dicom_seg.read_image(seg),) * len(volumes)
    return tuple(dicom.read_image(path, files, volume=volume) for volume in volumes)


def _nrrd(path: Path) -> TextHeader:
    from medseg3d.images import nrrd

    return nrrd.read_header(path)


def _metaimage(path: Path) -> TextHeader:
    from medseg3d.images import metaimage

    return metaimage.read_header(path)


def _text_reader(name: str, parse: Callable[[Path], TextHeader]) -> Reader:
    """A format with a header in letters."""

    def header(path: Path, files: Sequence[Path]) -> ImageHeader:
        from medseg3d.images import text_header

        return text_header.image_header(path, name, parse(path))

    def volumes_of(path: Path, volumes: Volumes, files: Sequence[Path]) -> tuple[Image, ...]:
        from medseg3d.images import text_header

        parsed = parse(path)
        return tuple(text_header.read_image(path, name, parsed, volume=volume) for volume in volumes)

    def data_files(path: Path) -> tuple[Path, ...]:
        voxels = parse(path).voxels
        return (path,) if voxels.is_attached else (path, *(file for file in voxels.files if file != path))

    return Reader(name=name, header=header, volumes=volumes_of, data_files=data_files)


def _segmentation_header(path: Path, files: Sequence[Path]) -> ImageHeader:
    """That of a label map, however many layers hold the segments."""
    from medseg3d.images import nrrd, text_header

    parsed, _ = nrrd.read_layers(path)
    header = text_header.image_header(path, "nrrd", parsed)
    return header if header.num_volumes == 1 else replace(header, num_volumes=1, stored_shape=header.geometry.shape)


def _segmentation_volumes(path: Path, volumes: Volumes, files: Sequence[Path]) -> tuple[Image, ...]:
    from medseg3d.images import nrrd, text_header
    from medseg3d.images.header import Image
    from medseg3d.images.segments import merged, read_segmentation

    found = None if nrrd.read_layers(path)[0].volume_axis is None else read_segmentation(path)
    if found is None or len(found.layers) == 1:
        parsed = nrrd.read_header(path)
        return tuple(text_header.read_image(path, "nrrd", parsed, volume=volume) for volume in volumes)
    return (Image(array=merged(found, path), header=_segmentation_header(path, files)),) * len(volumes)


def _segmentation_files(path: Path) -> tuple[Path, ...]:
    from medseg3d.images import nrrd

    voxels = nrrd.read_layers(path)[0].voxels
    return (path,) if voxels.is_attached else (path, *(file for file in voxels.files if file != path))


NIFTI = Reader(name="nifti", header=_nifti_header, volumes=_nifti_volumes, write=_write_nifti)
NRRD = _text_reader("nrrd", _nrrd)
SEGMENTATION = replace(NRRD, header=_segmentation_header, volumes=_segmentation_volumes, data_files=_segmentation_files)
METAIMAGE = _text_reader("mha", _metaimage)
DICOM = Reader(name="dicom", header=_dicom_header, volumes=_dicom_volumes)

READERS = Registry(
    "readers",
    Reader,
    {
        ".nii.gz": NIFTI,
        ".nii": NIFTI,
        ".seg.nrrd": SEGMENTATION,
        ".nrrd": NRRD,
        ".nhdr": NRRD,
        ".mha": METAIMAGE,
        ".mhd": METAIMAGE,
        ".seg.dcm": DICOM,
        ".dcm": DICOM,
    },
)
"""By file ending, in lower case, the longer one first where one ends with another; a folder of ``.dcm`` files is one DICOM series."""


def readable() -> str:
    """What is read, for messages."""
    return ", ".join(ending for ending in READERS if not ending.endswith(".dcm"))


def writable() -> str:
    """The endings that label maps are written with, for messages."""
    return " or ".join(ending for ending, reader in READERS.items() if reader.write is not None)
