"""NIfTI-1 and NIfTI-2 files, compressed or not: voxels in, label maps out on the same grid.

nibabel reads the header; gzip goes through isal, and the voxels are decoded in one pass into their own memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medseg3d.errors import ImageReadError, InputError
from medseg3d.files import replacing
from medseg3d.images.gzip_stream import is_gzip, reading_stream
from medseg3d.images.header import Image, ImageHeader, volume_of
from medseg3d.images.nifti_header import image_header, new_header, parse_header, set_affine, set_grid, voxel_offset
from medseg3d.images.opening import check_claim, check_memory, tell_of_rest

COMPRESSION_LEVEL = 2
"""isal's level: level 3 is slower and hardly smaller for label maps."""
MAX_BYTES_BEHIND = 1 << 26
"""Of an uncompressed stream beyond its last voxel: more of them are not read, only to compare a checksum."""


def read_header(path: Path) -> ImageHeader:
    """See :func:`medseg3d.images.read_header`."""

    def read(stream: BinaryIO) -> ImageHeader:
        raw, position = parse_header(path, stream)
        header = image_header(path, raw)
        _check_size(path, raw, header, voxel_offset(path, raw, stream, position)[0])
        return header

    return reading_stream(path, read)


def read_volumes(path: Path, volumes: Sequence[int | None]) -> tuple[Image, ...]:
    """See :func:`medseg3d.images.read_volumes`; scaled voxels become float32 where 16 bits or less were stored, else float64."""
    return reading_stream(path, lambda stream: _volumes(path, stream, volumes))


def _volumes(path: Path, stream: BinaryIO, volumes: Sequence[int | None]) -> tuple[Image, ...]:
    raw, position = parse_header(path, stream)
    header = image_header(path, raw)
    try:
        wanted = [volume_of(header.num_volumes, volume) for volume in volumes]
    except ValueError as error:
        raise ImageReadError(f"{path}: {error}.") from None
    dtype = raw.get_data_dtype()
    start, position = voxel_offset(path, raw, stream, position)
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


def _check_size(path: Path, raw: Any, header: ImageHeader, start: int) -> None:
    """Compare what the header claims with the size of the file, before anything is allocated."""
    claimed = start + header.num_volumes * header.num_voxels * raw.get_data_dtype().itemsize
    check_claim(path, claimed, there=path.stat().st_size, is_compressed=is_gzip(path), shape=header.stored_shape)


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


def write_label_map(path: Path, values: np.ndarray, header: ImageHeader) -> Path:
    """See :func:`medseg3d.images.write_label_map`."""
    if tuple(values.shape) != header.geometry.shape:
        raise InputError(f"{path}: a label map of shape {values.shape} does not fit the image's shape {header.geometry.shape}.")
    values = _storable_labels(values)
    shape = header.stored_shape[:2] if len(header.stored_shape) == 2 else header.geometry.shape
    if header.nifti is None:
        raw = new_header(1, shape, values.dtype)
        set_affine(raw, header.geometry.matrix)
    else:
        raw = new_header(header.nifti.version, shape, values.dtype)
        set_grid(raw, header.nifti)
    return _write(path, raw, values)


def write_image(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """See :func:`medseg3d.images.write_image`."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype == bool:
        array = array.astype(np.uint8)
    raw = new_header(1, array.shape, array.dtype)
    set_affine(raw, np.asarray(affine, np.float64))
    return _write(path, raw, array)


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
