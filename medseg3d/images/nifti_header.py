"""The header of a NIfTI-1 or NIfTI-2 file: read by nibabel, checked, and written on the grid of another."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.geometry import geometry_of, orientation_code
from medseg3d.images.grid import check_affine, in_mm
from medseg3d.images.header import ImageHeader, NiftiGrid
from medseg3d.images.opening import refuse_known, what_it_is

HEADER_BYTES = {1: 348, 2: 540}
MAX_EXTENSION_CODE = 100
"""Registered codes of extensions go up to 44."""
UNITS_TO_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
"""NIfTI's codes for meter, millimeter and micrometer; anything else counts as mm."""


def parse_header(path: Path, stream: BinaryIO) -> tuple[Any, int]:
    """nibabel's header of the stream, and how many bytes were taken."""
    import nibabel
    from nibabel.spatialimages import HeaderDataError

    block = stream.read(HEADER_BYTES[1])
    if len(block) < HEADER_BYTES[1]:
        refuse_known(path, block, "a NIfTI file")
        raise ImageReadError(f"{path}: not a NIfTI file, only {len(block)} bytes long. Copy or download it again.")
    sizes = {struct.unpack("<i", block[:4])[0], struct.unpack(">i", block[:4])[0]}
    if 540 in sizes:
        block += stream.read(HEADER_BYTES[2] - HEADER_BYTES[1])
        kind, magics, magic = nibabel.Nifti2Header, (b"n+2",), block[4:7]
    else:
        kind, magics, magic = nibabel.Nifti1Header, (b"n+1",), block[344:347]
    if magic not in magics:
        if magic in (b"ni1", b"ni2") or 348 in sizes:
            raise ImageReadError(f"{path}: an Analyze header or a pair of files (.hdr, .img); convert it to one .nii.gz file.")
        raise what_it_is(path, block, "a NIfTI file")
    try:
        raw = kind.from_fileobj(io.BytesIO(block), check=False)
        raw.get_data_dtype(), raw.get_slope_inter(), raw.get_data_shape()
        if int(raw["sizeof_hdr"]) != len(block):
            raise ValueError(f"dim[0] is {int(raw['dim'][0])}; expected 1 to 7")
        if np.isinf(raw["scl_slope"]) or np.isinf(raw["scl_inter"]):
            raise ValueError("scl_slope or scl_inter is infinite")
    except KeyError:
        kind = int(raw["datatype"])
        raise ImageReadError(f"{path}: the NIfTI header is damaged (data type {kind} is none). Convert the image anew.") from None
    except (HeaderDataError, ValueError) as error:
        raise ImageReadError(f"{path}: the NIfTI header is damaged ({error}). Convert the image anew.") from None
    return raw, len(block)


def voxel_offset(path: Path, raw: Any, stream: BinaryIO, position: int) -> tuple[int, int]:
    """Where the voxels begin by the header, and how many bytes of the stream are taken by then.

    Raises :class:`ImageReadError` where that lies inside the header or its extensions, or is no number of bytes: the voxels would be
    shifted, and nothing would show it.
    """
    offset, least = float(raw["vox_offset"]), position + 4
    flag = stream.read(4)
    position += len(flag)
    extension = b""
    if flag[:1] not in (b"", b"\0"):
        extension = stream.read(8)
        position += len(extension)
    if len(extension) == 8:
        size, code = struct.unpack(raw.endianness + "ii", extension)
        if size >= 16 and size % 16 == 0 and 0 <= code <= MAX_EXTENSION_CODE:
            least += size
    if not np.isfinite(offset) or offset != int(offset) or int(offset) < least:
        raise ImageReadError(
            f"{path}: vox_offset is {offset:g}; the voxels of this file can begin at byte {least} at the earliest, behind the header"
            f"{' and its extension' if least > HEADER_BYTES[2] + 4 or extension else ''}. Write the file anew, or correct vox_offset."
        )
    return int(offset), position


def image_header(path: Path, raw: Any) -> ImageHeader:
    dtype = raw.get_data_dtype()
    if dtype.names is not None:
        raise ImageReadError(
            f"{path}: color image ({len(dtype.names)} x 8 bit); a volume with one value per voxel is needed. "
            "Convert it to gray values, or to one file per channel."
        )
    if dtype.kind not in "iuf":
        kind = "complex numbers" if dtype.kind == "c" else f"of type {dtype}"
        raise ImageReadError(f"{path}: the voxels are {kind}; real numbers are needed. Write the magnitude, or two channels.")
    shape = tuple(int(n) for n in raw.get_data_shape())
    if not 2 <= len(shape) <= 7 or min(shape, default=0) < 1:
        raise ImageReadError(f"{path}: shape {shape}; a volume (x, y, z) is needed.")
    extra = [n for n in shape[3:] if n > 1]
    if len(extra) > 1:
        raise ImageReadError(f"{path}: {len(shape)}D image of shape {shape}; a case needs one 3D file per channel. Split it.")
    grid = (*shape, 1)[:3]
    affine, notes = _affine_mm(path, raw, grid)
    slope, intercept = raw.get_slope_inter()
    little = dtype.newbyteorder("=")
    return ImageHeader(
        geometry=geometry_of(grid, affine),
        stored_shape=shape if len(shape) <= 3 else (*grid, *extra),
        format="nifti",
        num_volumes=extra[0] if extra else 1,
        dtype=str(little),
        is_scaled=slope is not None and (slope, intercept) != (1.0, 0.0),
        nifti=_grid_of(raw),
        notes=notes,
    )


@np.errstate(invalid="ignore", over="ignore", divide="ignore")  # NaN and infinity are refused below
def _affine_mm(path: Path, raw: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine by nibabel's choice (sform, else qform, else spacing only), in mm; and what is odd about it."""
    from nibabel.spatialimages import HeaderDataError

    spacing = np.asarray(raw["pixdim"], np.float64)[1:4]
    usable = raw.copy()  # negative spacings and an unset handedness are common slips; nibabel reads them so
    usable["pixdim"][1:4] = np.abs(raw["pixdim"][1:4])
    usable["pixdim"][0] = -1 if raw["pixdim"][0] == -1 else 1
    try:
        affine = np.asarray(usable.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError) as error:
        raise ImageReadError(f"{path}: the header gives no usable grid (spacing {in_mm(spacing)}: {error}). Repair the header.") from None
    if shape[2] == 1 and not affine[:3, 2].any():  # a 2D file need not say how thick its slice is
        affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
        length = np.linalg.norm(affine[:3, 2])
        affine[:3, 2] /= length if length > 0 else 1
    notes = []
    factor = UNITS_TO_MM.get(int(raw["xyzt_units"]) & 7, 1.0)
    if factor != 1.0:
        affine[:3] *= factor
        notes.append(f"spacing is given in {'meters' if factor > 1 else 'micrometers'} and was converted to mm")
    notes.extend(check_affine(path, affine, _form_of(usable)))
    notes.extend(_forms_note(usable, factor, shape, affine))
    return affine, tuple(notes)


def _form_of(raw: Any) -> str:
    """The part of the header that the affine was taken from."""
    if int(raw["sform_code"]) > 0:
        return f"the sform (srow_x, srow_y, srow_z; sform_code {int(raw['sform_code'])})"
    if int(raw["qform_code"]) > 0:
        return f"the qform (quatern, qoffset, pixdim; qform_code {int(raw['qform_code'])})"
    return "pixdim"


def _forms_note(raw: Any, factor: float, shape: tuple[int, ...], affine: np.ndarray) -> Iterator[str]:
    """Whether sform and qform place the last voxel differently, by more than half a voxel; or, where they are of different spaces, turn
    the axes otherwise: no registration mirrors a body."""
    from nibabel.spatialimages import HeaderDataError

    if int(raw["sform_code"]) <= 0 or int(raw["qform_code"]) <= 0:
        return
    try:
        qform = np.asarray(raw.get_qform(), np.float64)
        if not np.isfinite(qform).all():
            raise ValueError("NaN or infinite numbers")
    except (HeaderDataError, ValueError):
        yield "the qform is damaged; the sform is used"
        return
    qform[:3] *= factor
    corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in shape), 1]], np.float64)
    offset = float(np.abs((corners @ (affine - qform).T)[:, :3]).max())
    if int(raw["sform_code"]) == int(raw["qform_code"]) and offset > 0.5 * float(np.sqrt((affine[:3, :3] ** 2).sum(0)).min()):
        yield f"sform and qform place the voxels differently, by up to {offset:.1f} mm; the sform is used"
    elif (codes := [orientation_code(form) for form in (affine, qform)])[0] != codes[1]:
        yield f"the sform says that the voxels are stored as {codes[0]}, the qform {codes[1]}; the sform is used"


def _grid_of(raw: Any) -> NiftiGrid:
    def floats(name: str, count: int = 1) -> Any:
        value = np.asarray(raw[name], np.float64)
        return float(value) if value.ndim == 0 else tuple(float(v) for v in value[:count])

    return NiftiGrid(
        version=2 if int(raw["sizeof_hdr"]) == HEADER_BYTES[2] else 1,
        sform_code=int(raw["sform_code"]),
        qform_code=int(raw["qform_code"]),
        pixdim=floats("pixdim", 4),
        quaternion=(floats("quatern_b"), floats("quatern_c"), floats("quatern_d")),
        qoffset=(floats("qoffset_x"), floats("qoffset_y"), floats("qoffset_z")),
        srow=(floats("srow_x", 4), floats("srow_y", 4), floats("srow_z", 4)),
        xyzt_units=int(raw["xyzt_units"]),
    )


def new_header(version: Literal[1, 2], shape: tuple[int, ...], dtype: np.dtype) -> Any:
    import nibabel

    raw = (nibabel.Nifti2Header if version == 2 or max(shape) > np.iinfo(np.int16).max else nibabel.Nifti1Header)(endianness="<")
    raw.set_data_shape(shape)
    raw.set_data_dtype(dtype)
    raw.set_slope_inter(1.0, 0.0)
    raw["magic"] = raw.single_magic
    raw["vox_offset"] = raw.single_vox_offset
    return raw


def set_affine(raw: Any, affine: np.ndarray) -> None:
    raw.set_qform(affine, code=1, strip_shears=True)
    raw.set_sform(affine, code=1)
    raw["xyzt_units"] = 2  # mm


def set_grid(raw: Any, grid: NiftiGrid) -> None:
    raw["sform_code"], raw["qform_code"] = grid.sform_code, grid.qform_code
    raw["pixdim"][:4] = grid.pixdim
    for name, value in zip(("quatern_b", "quatern_c", "quatern_d"), grid.quaternion, strict=True):
        raw[name] = value
    for name, value in zip(("qoffset_x", "qoffset_y", "qoffset_z"), grid.qoffset, strict=True):
        raw[name] = value
    for name, row in zip(("srow_x", "srow_y", "srow_z"), grid.srow, strict=True):
        raw[name] = row
    raw["xyzt_units"] = grid.xyzt_units
