"""NIfTI-1 and NIfTI-2 files, compressed or not: voxels in, label maps out on the same grid.

nibabel reads the header; gzip goes through isal, and the voxels are decoded in one pass into their own memory.
"""

from __future__ import annotations

import gzip
import io
import logging
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np

from medseg3d.errors import ImageReadError, InputError
from medseg3d.files import replacing
from medseg3d.geometry import geometry_of, orientation_code
from medseg3d.images.grid import check_affine, in_mm
from medseg3d.images.header import Image, ImageHeader, NiftiGrid, volume_of
from medseg3d.images.opening import check_claim, check_memory, refuse_known, tell_of_rest, what_it_is

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

HEADER_BYTES = {1: 348, 2: 540}
MAX_EXTENSION_CODE = 100
"""Registered codes of extensions go up to 44."""
COMPRESSION_LEVEL = 2
"""isal's level: level 3 is slower and hardly smaller for label maps."""
UNITS_TO_MM = {1: 1000.0, 2: 1.0, 3: 0.001}
"""NIfTI's codes for meter, millimeter and micrometer; anything else counts as mm."""
MAX_BYTES_BEHIND = 1 << 26
"""Of an uncompressed stream beyond its last voxel: more of them are not read, only to compare a checksum."""


def read_header(path: Path) -> ImageHeader:
    """See :func:`medseg3d.images.read_header`."""

    def read(stream: BinaryIO) -> ImageHeader:
        raw, position = _parse(path, stream)
        header = _image_header(path, raw)
        _check_size(path, raw, header, _voxel_offset(path, raw, stream, position)[0])
        return header

    return _reading_stream(path, read)


def read_volumes(path: Path, volumes: Sequence[int | None]) -> tuple[Image, ...]:
    """See :func:`medseg3d.images.read_volumes`; scaled voxels become float32 where 16 bits or less were stored, else float64."""
    return _reading_stream(path, lambda stream: _volumes(path, stream, volumes))


def _reading_stream(path: Path, read: Callable[[BinaryIO], Result]) -> Result:
    try:
        with _opened(path) as stream:
            return read(stream)
    except _ForeignBytesError:
        with _opened_to_its_end(path) as stream:
            return read(stream)


def _volumes(path: Path, stream: BinaryIO, volumes: Sequence[int | None]) -> tuple[Image, ...]:
    raw, position = _parse(path, stream)
    header = _image_header(path, raw)
    try:
        wanted = [volume_of(header.num_volumes, volume) for volume in volumes]
    except ValueError as error:
        raise ImageReadError(f"{path}: {error}.") from None
    dtype = raw.get_data_dtype()
    start, position = _voxel_offset(path, raw, stream, position)
    _check_size(path, raw, header, start)
    check_memory(path, header.num_voxels * dtype.itemsize * len(set(wanted)), header.stored_shape)
    arrays: dict[int, np.ndarray] = {}
    for index in sorted(set(wanted)):  # forward only: gzip cannot go back
        array = np.empty(header.num_voxels, dtype)
        begin = start + index * array.nbytes
        _skip(path, stream, begin - position)
        _fill(path, stream, memoryview(array).cast("B"))  # type: ignore[arg-type]
        position = begin + array.nbytes
        arrays[index] = array
    end = start + header.num_volumes * header.num_voxels * dtype.itemsize
    rest = position + _drain(stream, end - position + MAX_BYTES_BEHIND) - end
    _check_rest(path, raw, header, rest)
    return tuple(Image(array=_decoded(arrays[index], raw, header), header=header) for index in wanted)


def _decoded(array: np.ndarray, raw: Any, header: ImageHeader) -> np.ndarray:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    array = array.reshape(header.geometry.shape, order="F")
    if not header.is_scaled:
        return array
    slope, intercept = raw.get_slope_inter()
    return _scaled(array, float(slope), float(intercept))


def write_label_map(path: Path, values: np.ndarray, header: ImageHeader) -> Path:
    """See :func:`medseg3d.images.write_label_map`."""
    if tuple(values.shape) != header.geometry.shape:
        raise InputError(f"{path}: a label map of shape {values.shape} does not fit the image's shape {header.geometry.shape}.")
    values = _storable_labels(values)
    shape = header.stored_shape[:2] if len(header.stored_shape) == 2 else header.geometry.shape
    if header.nifti is None:
        raw = _new_header(1, shape, values.dtype)
        _set_affine(raw, header.geometry.matrix)
    else:
        raw = _new_header(header.nifti.version, shape, values.dtype)
        _set_grid(raw, header.nifti)
    return _write(path, raw, values)


def write_image(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """See :func:`medseg3d.images.write_image`."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype == bool:
        array = array.astype(np.uint8)
    raw = _new_header(1, array.shape, array.dtype)
    _set_affine(raw, np.asarray(affine, np.float64))
    return _write(path, raw, array)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file, whatever its name says; broken gzip becomes an :class:`ImageReadError`."""
    from isal import igzip
    from isal.igzip_lib import IsalError

    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not is_gzip:
            yield file
            return
        try:
            with igzip.IGzipFile(fileobj=file, mode="rb") as stream:
                yield stream
        except EOFError:  # cut off, or a few bytes behind the end, too few for the header of another member
            raise _ForeignBytesError from None
        except (gzip.BadGzipFile, zlib.error, IsalError) as error:  # type: ignore[misc]
            if isinstance(error, gzip.BadGzipFile) and str(error).startswith(_BEHIND) and file.tell() > 2:
                raise _ForeignBytesError from None
            raise ImageReadError(f"{path}: the compressed file is damaged ({error}). Copy or download it again.") from None


_BEHIND = "Not a gzipped file"


class _ForeignBytesError(Exception):
    """Behind the compressed data stands something else: the data are whole, and gzip itself reads on only with a warning."""


@contextmanager
def _opened_to_its_end(path: Path) -> Iterator[BinaryIO]:
    """As :func:`_opened`, without the bytes behind the last gzip member."""
    from isal import igzip, isal_zlib

    content, end = path.read_bytes(), 0
    while content[end : end + 2] == b"\x1f\x8b":
        unpack = isal_zlib.decompressobj(31)
        for start in range(end, len(content), 1 << 16):
            unpack.decompress(content[start : start + (1 << 16)])
            if unpack.eof:
                end = min(start + (1 << 16), len(content)) - len(unpack.unused_data)
                break
        else:
            raise ImageReadError(f"{path}: the compressed file is cut off ({len(content)} bytes). Copy or download it again.")
    logger.warning("%s: %d bytes behind the compressed data do not belong to the image; they are left out.", path, len(content) - end)
    with igzip.IGzipFile(fileobj=io.BytesIO(content[:end]), mode="rb") as stream:
        yield stream


def _parse(path: Path, stream: BinaryIO) -> tuple[Any, int]:
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


def _voxel_offset(path: Path, raw: Any, stream: BinaryIO, position: int) -> tuple[int, int]:
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


def _check_size(path: Path, raw: Any, header: ImageHeader, start: int) -> None:
    """Compare what the header claims with the size of the file, before anything is allocated."""
    claimed = start + header.num_volumes * header.num_voxels * raw.get_data_dtype().itemsize
    check_claim(path, claimed, there=path.stat().st_size, is_compressed=_is_gzip(path), shape=header.stored_shape)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _image_header(path: Path, raw: Any) -> ImageHeader:
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


def _skip(path: Path, stream: BinaryIO, count: int) -> None:
    while count > 0:
        block = stream.read(min(count, 1 << 20))
        if not block:
            raise _too_short(path)
        count -= len(block)


def _fill(path: Path, stream: BinaryIO, target: memoryview) -> None:
    done = 0
    while done < len(target):
        count = stream.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            raise _too_short(path)
        done += count


def _drain(stream: BinaryIO, most: int) -> int:
    """Read on to the end, so that gzip's checksum is compared; but not for ever. Returns how many bytes there were."""
    done = 0
    while done < most and (block := stream.read(1 << 20)):
        done += len(block)
    return done


def _check_rest(path: Path, raw: Any, header: ImageHeader, rest: int) -> None:
    """Raise :class:`ImageReadError` where bitpix and the bytes behind the voxels say that the data type is another one."""
    size, bits = raw.get_data_dtype().itemsize, int(raw["bitpix"])
    if bits != 8 * size and rest > 0 and header.num_volumes * header.num_voxels * (bits - 8 * size) // 8 == rest:
        raise ImageReadError(
            f"{path}: the header names voxels of {8 * size} bits ({raw.get_data_dtype().newbyteorder('=')}), and those of the file have "
            f"{bits} (bitpix, and the size of the file). Correct datatype in the header, or convert the image anew."
        )
    tell_of_rest(path, rest, slice_bytes=size * header.num_voxels // header.geometry.shape[2], shape=header.stored_shape)


def _too_short(path: Path) -> ImageReadError:
    return ImageReadError(f"{path}: the file ends before its last voxel. Copy or download it again.")


def _scaled(array: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Slope and intercept, computed in float64 slice by slice, so that the memory stays that of the result."""
    small = array.dtype.itemsize <= 2 or array.dtype == np.float32
    result = np.empty(array.shape, np.float32 if small else np.float64, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite is refused where voxels are checked
        for k in range(array.shape[2]):
            result[:, :, k] = array[:, :, k] * np.float64(slope) + np.float64(intercept)
    return result


def _storable_labels(values: np.ndarray) -> np.ndarray:
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind not in "iu":
        raise InputError(f"A label map must hold integers, not {values.dtype}.")
    if values.dtype.itemsize <= 2 and values.dtype != np.int8:
        return values
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for dtype in (np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype)
    return values.astype(np.int64)


def _new_header(version: Literal[1, 2], shape: tuple[int, ...], dtype: np.dtype) -> Any:
    import nibabel

    raw = (nibabel.Nifti2Header if version == 2 or max(shape) > np.iinfo(np.int16).max else nibabel.Nifti1Header)(endianness="<")
    raw.set_data_shape(shape)
    raw.set_data_dtype(dtype)
    raw.set_slope_inter(1.0, 0.0)
    raw["magic"] = raw.single_magic
    raw["vox_offset"] = raw.single_vox_offset
    return raw


def _set_affine(raw: Any, affine: np.ndarray) -> None:
    raw.set_qform(affine, code=1, strip_shears=True)
    raw.set_sform(affine, code=1)
    raw["xyzt_units"] = 2  # mm


def _set_grid(raw: Any, grid: NiftiGrid) -> None:
    raw["sform_code"], raw["qform_code"] = grid.sform_code, grid.qform_code
    raw["pixdim"][:4] = grid.pixdim
    for name, value in zip(("quatern_b", "quatern_c", "quatern_d"), grid.quaternion, strict=True):
        raw[name] = value
    for name, value in zip(("qoffset_x", "qoffset_y", "qoffset_z"), grid.qoffset, strict=True):
        raw[name] = value
    for name, row in zip(("srow_x", "srow_y", "srow_z"), grid.srow, strict=True):
        raw[name] = row
    raw["xyzt_units"] = grid.xyzt_units


def _write(path: Path, raw: Any, array: np.ndarray) -> Path:
    """Header, four empty bytes (no extension), voxels in Fortran order, little-endian."""
    from isal import igzip

    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    with replacing(path, is_lasting=True) as temporary, temporary.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            # No time stamp and no name inside: equal label maps are equal files.
            with igzip.IGzipFile(filename="", mode="wb", compresslevel=COMPRESSION_LEVEL, fileobj=file, mtime=0) as stream:
                _write_to(stream, raw, array)
        else:
            _write_to(file, raw, array)
    return path


def _write_to(stream: Any, raw: Any, array: np.ndarray) -> None:
    stream.write(raw.binaryblock + b"\0\0\0\0")
    for k in range(array.shape[-1]):
        stream.write(array[..., k].tobytes(order="F"))
