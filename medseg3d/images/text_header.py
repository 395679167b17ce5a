"""Images whose header is text (NRRD, MetaImage): what their headers have in common, and their voxels.

A header is parsed and checked here before anything else is read, with bounds on everything that it can claim.
"""

from __future__ import annotations

import bz2
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.geometry import geometry_of
from medseg3d.images.grid import check_affine
from medseg3d.images.header import Image, ImageHeader, volume_of
from medseg3d.images.opening import check_claim, check_is_file, check_memory, tell_of_rest

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""ITK counts x to the left and y to the back; NIfTI to the right and to the front."""
MAX_HEADER_BYTES = 1 << 22
MAX_LINE = 1 << 15
"""Characters. 3D Slicer's conversion parameters take a few thousand."""
MAX_LINES = 20_000
MAX_BYTES_BEHIND = 1 << 26
"""Of compressed voxels beyond the last one: more of them are not read, only to compare a checksum."""
MAX_AXES = 5
MAX_FILES = 100_000

Encoding = Literal["raw", "gzip", "zlib", "bzip2", "text", "hex"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Voxels:
    """Where voxels lie and how they are stored.

    ``sizes`` of all axes, the fastest first; ``files`` hold equal parts, one after the other. ``skip`` bytes stand before the voxels
    (-1: they are the last bytes of the file), ``skip_lines`` lines before those. ``is_attached``: they lie in the header's own file.
    """

    sizes: tuple[int, ...]
    dtype: np.dtype
    encoding: Encoding
    files: tuple[Path, ...]
    is_attached: bool
    skip: int = 0
    skip_lines: int = 0

    @property
    def nbytes(self) -> int:
        """Of all voxels, decoded."""
        return math.prod(self.sizes) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class TextHeader:
    """A checked header: its voxels, the axis that counts volumes or values per voxel (None: one each), and affine to RAS+ mm."""

    voxels: Voxels
    volume_axis: int | None
    affine: np.ndarray
    is_color: bool = False
    notes: tuple[str, ...] = ()


def image_header(path: Path, kind: str, parsed: TextHeader) -> ImageHeader:
    """See :func:`medseg3d.images.read_header`; compares the header with the sizes of the files."""
    voxels = parsed.voxels
    if parsed.is_color:
        raise ImageReadError(f"{path}: color image; a volume with one value per voxel is needed.")
    spatial = [n for axis, n in enumerate(voxels.sizes) if axis != parsed.volume_axis]
    notes = check_affine(path, parsed.affine, "the header")
    _check_files(path, voxels)
    shape = (*spatial, 1)[:3]
    num_volumes = 1 if parsed.volume_axis is None else voxels.sizes[parsed.volume_axis]
    return ImageHeader(
        geometry=geometry_of(shape, parsed.affine),
        stored_shape=tuple(spatial) if len(spatial) == 2 and num_volumes == 1 else (*shape, num_volumes) if num_volumes > 1 else shape,
        format=kind,
        num_volumes=num_volumes,
        dtype=str(voxels.dtype.newbyteorder("=")),
        notes=(*parsed.notes, *notes),
    )


def read_image(path: Path, kind: str, parsed: TextHeader, *, volume: int | None) -> Image:
    """See :func:`medseg3d.images.read_image`."""
    header = image_header(path, kind, parsed)
    try:
        index = volume_of(header.num_volumes, volume)
    except ValueError as error:
        raise ImageReadError(f"{path}: {error}.") from None
    voxels = parsed.voxels
    check_memory(path, voxels.nbytes, voxels.sizes)
    array = _decoded(path, voxels).reshape(voxels.sizes, order="F")
    if parsed.volume_axis is not None:
        array = array.take(index, axis=parsed.volume_axis)
    array = array.reshape(header.geometry.shape, order="F")
    return Image(array=array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")), header=header)


# ---- text


def header_lines(path: Path, stream: BinaryIO) -> Iterator[str]:
    """The lines of a header, without their ends; raises :class:`ImageReadError` beyond any honest size."""
    total = 0
    for _ in range(MAX_LINES):
        line = stream.readline(MAX_LINE + 1)
        total += len(line)
        if len(line) > MAX_LINE or total > MAX_HEADER_BYTES:
            raise ImageReadError(f"{path}: the header is damaged: a line of more than {MAX_LINE} characters, or no end. Convert it anew.")
        if not line:
            return
        yield line.decode("utf-8", "replace").rstrip("\r\n")
    raise ImageReadError(f"{path}: the header is damaged: more than {MAX_LINES} lines. Convert the image anew.")


def integers(path: Path, field: str, text: str, *, least: int, most: int, count: int | None = None) -> tuple[int, ...]:
    """Whole numbers between two bounds; raises :class:`ImageReadError` naming the field."""
    words = text.split()
    expected = f"expected {count if count is not None else 'some'} whole numbers from {least} to {most}"
    if not words or (count is not None and len(words) != count) or not all(re.fullmatch(r"[+-]?\d{1,18}", word) for word in words):
        raise damaged(path, field, text, expected)
    values = tuple(int(word) for word in words)
    if not all(least <= value <= most for value in values):
        raise damaged(path, field, text, expected)
    return values


def numbers(path: Path, field: str, text: str, count: int) -> np.ndarray:
    """``count`` numbers, NaN among them; raises :class:`ImageReadError` naming the field."""
    words = text.split()
    try:
        values = np.array([float(word) for word in words if len(word) <= 64])
    except ValueError:
        values = np.empty(0)
    if len(words) != count or len(values) != count:
        raise damaged(path, field, text, f"expected {count} numbers")
    return values


def damaged(path: Path, field: str, text: str, expected: str) -> ImageReadError:
    """The error for a field of the header."""
    return ImageReadError(f"{path}: the header is damaged: {field} is {text[:80]!r}, {expected}. Convert the image anew.")


def files_beside(path: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Detached files in the folder of the header or below; raises :class:`ImageReadError` for names that lead elsewhere."""
    found = []
    for name in names:
        if not name or "\0" in name or len(name) > 1000:
            raise damaged(path, "the name of the file with the voxels", name, "expected a file name")
        if Path(name).is_absolute() or ".." in Path(name).parts or re.match(r"[A-Za-z]:|\\", name):
            raise ImageReadError(f"{path}: its voxels lie in {name[:200]}, outside of its folder. Move that file beside the header.")
        found.append(path.parent / name)
    return tuple(found)


def numbered_files(path: Path, pattern: str, first: int, last: int, step: int) -> list[str]:
    """The names of a pattern as ``slice%03d.raw``, with its numbers put in."""
    places = re.findall(r"%0?\d{0,2}d", pattern)
    if len(places) != 1 or pattern.count("%") != 1 or step == 0 or not 0 <= (last - first) // step < MAX_FILES:
        raise damaged(path, "the list of files", f"{pattern} {first} {last} {step}", "expected a name with %d, and its numbers")
    return [pattern % number for number in range(first, last + (1 if step > 0 else -1), step)]


# ---- voxels


def _check_files(path: Path, voxels: Voxels) -> None:
    total, per_file = voxels.nbytes, math.ceil(voxels.nbytes / len(voxels.files))
    if total % len(voxels.files):
        raise ImageReadError(f"{path}: {len(voxels.files)} files cannot hold {' x '.join(map(str, voxels.sizes))} voxels in equal parts.")
    for file in voxels.files:
        check_is_file(file)
        there = file.stat().st_size - max(voxels.skip, 0)
        least = per_file
        if voxels.encoding == "text":  # a digit and a space each
            least = 2 * (per_file // voxels.dtype.itemsize) - 1
        elif voxels.encoding == "hex":
            least = 2 * per_file
        is_packed = voxels.encoding in ("gzip", "zlib", "bzip2")
        there = file.stat().st_size if is_packed else there
        if voxels.encoding != "bzip2":  # which knows no bound
            check_claim(file, least, there=there, is_compressed=is_packed, shape=voxels.sizes)


def _decoded(path: Path, voxels: Voxels) -> np.ndarray:
    array = np.empty(math.prod(voxels.sizes), voxels.dtype)
    parts = array.reshape(len(voxels.files), -1)
    for file, part in zip(voxels.files, parts, strict=True):
        with file.open("rb") as stream:
            if file == path:
                _skip_header(path, stream, voxels)
            for _ in range(voxels.skip_lines):
                stream.readline(MAX_LINE)
            rest = _DECODERS[voxels.encoding](file, stream, part, voxels.skip)
        tell_of_rest(file, rest, slice_bytes=_least_rest(voxels), shape=voxels.sizes)
    return array


def _least_rest(voxels: Voxels) -> int:
    """From how many bytes behind the voxels on the header is in doubt: a slice, or one byte in a file that should hold voxels alone."""
    return voxels.nbytes // voxels.sizes[-1] if voxels.is_attached else 1


def _skip_header(path: Path, stream: BinaryIO, voxels: Voxels) -> None:
    """To the first byte after the header, whose end both formats mark by a line."""
    is_nrrd = stream.read(4) == b"NRRD"
    stream.seek(0)
    for line in header_lines(path, stream):
        if (is_nrrd and not line) or (not is_nrrd and re.match(r"\s*ElementDataFile\s*[=:]", line)):
            return


# Each decoder fills a part and returns how many bytes, decoded, are left behind it.


def _raw(file: Path, stream: BinaryIO, part: np.ndarray, skip: int) -> int:
    if skip == -1:
        stream.seek(-part.nbytes, 2)
    else:
        stream.seek(skip, 1)
    _fill(file, stream, part)
    return file.stat().st_size - stream.tell()


def _gzip(file: Path, stream: BinaryIO, part: np.ndarray, skip: int) -> int:
    from isal import igzip

    with igzip.IGzipFile(fileobj=stream, mode="rb") as unpacked:
        _pass_over(unpacked, skip)
        _fill(file, unpacked, part)
        return _pass_over(unpacked, MAX_BYTES_BEHIND)  # to the end, where the checksum stands


def _zlib(file: Path, stream: BinaryIO, part: np.ndarray, skip: int) -> int:
    """A stream of zlib or gzip; decompressed by pieces, so that it cannot become more than was claimed."""
    stream.seek(max(skip, 0), 1)
    unpack, target, done = zlib.decompressobj(47), memoryview(part).cast("B"), 0  # type: ignore[arg-type]
    waiting = b""
    while done < len(target):
        waiting = waiting or stream.read(1 << 20)
        if not waiting:
            raise _too_short(file)
        piece = unpack.decompress(waiting, min(len(target) - done, 1 << 24))
        waiting = unpack.unconsumed_tail
        target[done : done + len(piece)] = piece
        done += len(piece)
        if unpack.eof and done < len(target):
            raise _too_short(file)
    rest = 0
    while not unpack.eof and rest < MAX_BYTES_BEHIND:  # to the end, where the checksum stands
        waiting = waiting or stream.read(1 << 20)
        if not waiting:
            raise _too_short(file)
        rest += len(unpack.decompress(waiting, 1 << 20))
        waiting = unpack.unconsumed_tail
    return rest


def _bzip2(file: Path, stream: BinaryIO, part: np.ndarray, skip: int) -> int:
    with bz2.BZ2File(stream) as unpacked:
        _pass_over(unpacked, skip)
        _fill(file, unpacked, part)
        return _pass_over(unpacked, MAX_BYTES_BEHIND)


def _text(file: Path, stream: BinaryIO, part: np.ndarray, skip: int) -> int:
    stream.seek(max(skip, 0), 1)
    words = stream.read(64 * part.size + MAX_LINE).split()
    if len(words) < part.size:
        raise _too_short(file)
    part[:] = np.array(words[: part.size], dtype=np.float64 if part.dtype.kind == "f" else np.int64)
    return (len(words) - part.size) * part.itemsize


def _hex(file: Path, stream: BinaryIO, part: np.ndarray, skip: int) -> int:
    stream.seek(max(skip, 0), 1)
    content = bytes.fromhex(stream.read(3 * part.nbytes + MAX_LINE).decode("ascii"))
    if len(content) < part.nbytes:
        raise _too_short(file)
    part[:] = np.frombuffer(content[: part.nbytes], part.dtype)
    return len(content) - part.nbytes


_DECODERS = {"raw": _raw, "gzip": _gzip, "zlib": _zlib, "bzip2": _bzip2, "text": _text, "hex": _hex}


def _pass_over(stream: Any, count: int) -> int:
    """Bytes that cannot be jumped over, piece by piece; returns how many there were."""
    done = 0
    while done < count and (piece := stream.read(min(count - done, 1 << 20))):
        done += len(piece)
    return done


def _fill(file: Path, stream: Any, part: np.ndarray) -> None:
    target, done = memoryview(part).cast("B"), 0  # type: ignore[arg-type]
    while done < len(target):
        count = stream.readinto(target[done:])
        if not count:
            raise _too_short(file)
        done += count


def _too_short(file: Path) -> ImageReadError:
    return ImageReadError(f"{file}: the file ends before its last voxel. Copy or download it again.")
