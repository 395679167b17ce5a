"""The stored values of one slice: a checked header goes in, an integer array (row, column) comes out, before slope and intercept.

Uncompressed and run-length coded pixel data are decoded here. JPEG's kinds go to GDCM in another process, each in a file of our own making
that holds nothing but the picture: no foreign header reaches native code, and a damaged picture crashes nothing here.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.images.decoder import Decoder, DecoderError
from medseg3d.images.dicom_file import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, DicomFile, pixel_bytes

NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
RUN_LENGTH = "1.2.840.10008.1.2.5"
JPEG = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91))
"""JPEG, JPEG lossless, JPEG-LS and JPEG 2000: what GDCM decodes."""
_SECONDARY_CAPTURE = b"1.2.840.10008.5.1.4.1.1.7"
"""Of this class GDCM leaves the values as they are."""
_RUN_LENGTH_HEADER = 64
LARGE_SLICE_BYTES = 64 << 20
"""No detector gives more; a slice that claims so is refused unless its compressed picture is a thousandth of that at least."""
_PICTURE_HEADER_BYTES = 1 << 16
"""The size of a compressed picture stands within the first of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFormat:
    """How the values of a slice are stored: size in pixels, and the ``bits`` of ``allocated`` that count, the highest being ``high``."""

    rows: int
    columns: int
    allocated: int
    bits: int
    high: int
    is_signed: bool

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The type of the stored values."""
        return np.dtype(f"{'i' if self.is_signed else 'u'}{self.allocated // 8}")

    @property
    def num_bytes(self) -> int:
        """Of the uncompressed slice."""
        return self.rows * self.columns * self.allocated // 8

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest value that the bits can hold."""
        return (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.is_signed else (0, (1 << self.bits) - 1)


def pixel_format(file: DicomFile) -> PixelFormat:
    """How a slice is stored, checked against the bytes that there are; raises :class:`ImageReadError` for all that is no gray slice."""
    if file.damage:
        raise ImageReadError(file.damage)
    path, photometric = file.path, file.text("PhotometricInterpretation")
    if file.pixels is None or file.pixels.is_float:
        what = "floating-point pixel data" if file.pixels else "no pixel data"
        raise ImageReadError(f"{path}: the DICOM file holds {what}; expected one slice of an image.")
    samples = file.integer("SamplesPerPixel", 1)
    if samples != 1 or photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        found = f"{samples} values per voxel" if samples != 1 else photometric[:40]
        raise ImageReadError(f"{path}: color image ({found}); one gray value per voxel is needed.")
    frames = file.integer("NumberOfFrames", 1)
    if frames > 1:
        advice = "convert it to NIfTI, for instance with dcm2niix"
        raise ImageReadError(f"{path}: {frames} frames in one DICOM file that does not say where each lies; {advice}.")
    bits = file.integer("BitsStored", file.integer("BitsAllocated", 16))
    found_format = PixelFormat(
        rows=file.integer("Rows", 0),
        columns=file.integer("Columns", 0),
        allocated=file.integer("BitsAllocated", 0),
        bits=bits,
        high=file.integer("HighBit", bits - 1),
        is_signed=file.integer("PixelRepresentation", 0) == 1,
    )
    _check_format(path, found_format)
    _check_length(file, found_format)
    return found_format


def stored_slices(files: Sequence[DicomFile], formats: Sequence[PixelFormat]) -> Iterator[np.ndarray]:
    """Decode slices, one after the other; raises :class:`ImageReadError` where a picture is damaged."""
    with Decoder() as decoder:
        for file, stored in zip(files, formats, strict=True):
            values = _through_gdcm(file, stored, decoder) if file.syntax in JPEG else _decoded(file, stored)
            yield values.reshape(stored.rows, stored.columns)


def _decoded(file: DicomFile, stored: PixelFormat) -> np.ndarray:
    data = pixel_bytes(file)
    if file.syntax == RUN_LENGTH:
        return _clean(_run_length(file, data, stored), stored)
    is_big = file.syntax == BIG_ENDIAN
    if is_big and stored.allocated == 8 and file.pixels is not None and file.pixels.is_words:
        data = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()  # bytes of a word are swapped
    unsigned = np.frombuffer(data, f"{'>' if is_big else '<'}u{stored.allocated // 8}", count=stored.rows * stored.columns)
    return _clean(unsigned, stored)


def _check_format(path: Path, stored: PixelFormat) -> None:
    if not (0 < stored.rows <= 0xFFFF and 0 < stored.columns <= 0xFFFF):
        raise ImageReadError(f"{path}: a picture of {stored.columns} x {stored.rows} pixels; the DICOM header is damaged.")
    if (
        stored.allocated not in (8, 16, 32)
        or not 0 < stored.bits <= stored.allocated
        or not stored.bits - 1 <= stored.high < stored.allocated
    ):
        found = f"{stored.bits} bits up to bit {stored.high} in {stored.allocated}"
        raise ImageReadError(f"{path}: values of {found}; expected 8, 16 or 32 bits a voxel.")


def _check_length(file: DicomFile, stored: PixelFormat) -> None:
    """The bytes that there are against the size that the header claims."""
    pixels = file.pixels
    if pixels is None:
        return
    is_compressed = file.syntax in JPEG or file.syntax == RUN_LENGTH
    if not is_compressed and file.syntax not in NATIVE:
        raise ImageReadError(
            f"{file.path}: the transfer syntax {file.syntax[:64]} is not supported; convert it to NIfTI, for instance with dcm2niix."
        )
    if is_compressed != (pixels.fragments is not None):
        raise ImageReadError(f"{file.path}: the pixel data are not stored as the transfer syntax {file.syntax} says; the file is damaged.")
    if is_compressed:
        if file.syntax != RUN_LENGTH:
            _check_picture(file, stored)
        return
    if not 0 <= pixels.length - stored.num_bytes <= 1:  # an odd number of bytes is padded
        size = f"{stored.columns} x {stored.rows} pixels of {stored.allocated} bits"
        raise ImageReadError(
            f"{file.path}: {pixels.length} bytes of pixel data, expected {stored.num_bytes} ({size}). Copy or download the file again."
        )


def _clean(unsigned: np.ndarray, stored: PixelFormat) -> np.ndarray:
    """Keep the bits that count: others may hold an overlay."""
    if stored.bits == stored.allocated:
        return unsigned.astype(unsigned.dtype.newbyteorder("="), copy=False).view(stored.dtype)
    values = unsigned.astype(unsigned.dtype.newbyteorder("="))
    up = stored.allocated - 1 - stored.high
    values = values << up  # the highest bit that counts is the sign now
    shifted: np.ndarray = values.view(stored.dtype) >> (stored.allocated - stored.bits)
    return shifted


# ---- compressed


def _run_length(file: DicomFile, data: bytes, stored: PixelFormat) -> np.ndarray:
    """DICOM's run-length code (PS3.5, annex G): a segment for each byte of the values, the highest first."""
    planes, count = stored.allocated // 8, stored.rows * stored.columns
    if len(data) < _RUN_LENGTH_HEADER or struct.unpack_from("<I", data)[0] != planes:
        raise _damaged(file)
    starts = [*struct.unpack_from(f"<{planes}I", data, 4), len(data)]
    if starts[0] < _RUN_LENGTH_HEADER or any(begin > end for begin, end in itertools.pairwise(starts)):
        raise _damaged(file)
    values = np.zeros(count, f"<u{planes}")
    as_bytes = values.view(np.uint8).reshape(count, planes)
    for index in range(planes):
        decoded = _unpacked(data[starts[index] : starts[index + 1]], count)
        if len(decoded) < count:
            raise _damaged(file)
        as_bytes[:, planes - 1 - index] = np.frombuffer(decoded, np.uint8)
    return values


def _unpacked(segment: bytes, count: int) -> bytes:
    """PackBits, up to ``count`` bytes."""
    result, place = bytearray(), 0
    while place < len(segment) and len(result) < count:
        code = segment[place]
        if code < 128:
            result += segment[place + 1 : place + 2 + code]
            place += 2 + code
        else:
            if code > 128:
                result += segment[place + 1 : place + 2] * (257 - code)
            place += 2 if code > 128 else 1
    return bytes(result[:count])


def _check_picture(file: DicomFile, stored: PixelFormat) -> None:
    """The size in the compressed picture is the one in the header: GDCM reserves what the picture claims."""
    if file.pixels is not None and stored.num_bytes > max(LARGE_SLICE_BYTES, 1000 * file.pixels.length):
        raise ImageReadError(
            f"{file.path}: claims {stored.columns} x {stored.rows} pixels in {file.pixels.length} bytes; the DICOM header is damaged."
        )
    found = _picture_size(pixel_bytes(file, at_most=_PICTURE_HEADER_BYTES))
    if found != (stored.rows, stored.columns):
        what = f"{found[1]} x {found[0]} pixels" if found else "no JPEG header"
        raise ImageReadError(
            f"{file.path}: the compressed picture has {what}, expected {stored.columns} x {stored.rows}. Copy or download the file again."
        )


def _picture_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns of one gray picture, from the header of JPEG, JPEG-LS or JPEG 2000; None where there is none."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 256)
    if start >= 0 and len(data) >= start + 42:
        right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
        return (bottom - top, right - left) if struct.unpack_from(">H", data, start + 40)[0] == 1 else None
    if data[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 10 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], struct.unpack_from(">H", data, place + 2)[0]
        if marker == 0xFF:  # filling
            place += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns, components = struct.unpack_from(">HHB", data, place + 5)
            return (rows, columns) if components == 1 else None
        else:
            place += 2 + length
    return None


def _through_gdcm(file: DicomFile, stored: PixelFormat, decoder: Decoder) -> np.ndarray:
    try:
        values = decoder.decode(_bare_file(file.syntax, pixel_bytes(file), stored))
    except DecoderError as error:
        raise ImageReadError(f"{file.path}: the picture cannot be decoded ({error}). Copy or download the file again.") from None
    if values.size != stored.rows * stored.columns or values.dtype.kind not in "iu":
        raise _damaged(file)
    return values


def _bare_file(syntax: str, data: bytes, stored: PixelFormat) -> bytes:
    """A DICOM file with one compressed picture and nothing else."""
    meta = b"".join(
        (
            _element(0x0002, 0x0001, b"OB", b"\0\1"),
            _element(0x0002, 0x0002, b"UI", _SECONDARY_CAPTURE),
            _element(0x0002, 0x0003, b"UI", b"1.2.3"),
            _element(0x0002, 0x0010, b"UI", syntax.encode()),
        )
    )
    numbers = {
        0x0010: stored.rows,
        0x0011: stored.columns,
        0x0100: stored.allocated,
        0x0101: stored.bits,
        0x0102: stored.high,
        0x0103: int(stored.is_signed),
    }
    return b"".join(
        (
            b"\0" * 128 + b"DICM",
            _element(0x0002, 0x0000, b"UL", struct.pack("<I", len(meta))),
            meta,
            _element(0x0008, 0x0016, b"UI", _SECONDARY_CAPTURE),
            _element(0x0008, 0x0018, b"UI", b"1.2.3"),
            _element(0x0028, 0x0002, b"US", struct.pack("<H", 1)),
            _element(0x0028, 0x0004, b"CS", b"MONOCHROME2"),
            *(_element(0x0028, number, b"US", struct.pack("<H", value)) for number, value in numbers.items()),
            struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF),
            struct.pack("<HHI", 0xFFFE, 0xE000, 0),
            struct.pack("<HHI", 0xFFFE, 0xE000, len(data) + len(data) % 2),
            data + b"\0" * (len(data) % 2),
            struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        )
    )


def _element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += (b" " if vr == b"CS" else b"\0") * (len(value) % 2)
    if vr == b"OB":
        return struct.pack("<HH2sHI", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def _damaged(file: DicomFile) -> ImageReadError:
    return ImageReadError(f"{file.path}: the compressed picture is damaged. Copy or download the file again.")
