"""One DICOM file without its voxels: a path goes in, the tags of a slice come out, and where its pixel data lie.

Read by ourselves, as GDCM crashes on nested sequences of a few hundred bytes and reserves gigabytes for a damaged length. Nothing here
recurses, and nothing is read or reserved beyond what the file holds.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg3d.errors import ImageReadError
from medseg3d.images.dicom_elements import ITEM, KNOWN, SEQUENCE_END, UNDEFINED, Coding, Source, after_sequence, element
from medseg3d.images.dicom_groups import PER_FRAME, SHARED, read_groups
from medseg3d.images.dicom_tags import MAX_VALUE_BYTES, NUMBERS, PRESENT, TAGS, texts

IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
"""The transfer syntaxes whose pixel data are not compressed."""
MAX_INFLATED_BYTES = 1 << 26
"""Of a file that is deflated as a whole: twice the largest slice there is."""

_META_CLASS, _META_INSTANCE, _META_SYNTAX = 0x0002_0002, 0x0002_0003, 0x0002_0010
_PIXELS, _FLOAT_PIXELS = 0x7FE0_0010, (0x7FE0_0008, 0x7FE0_0009)
_BLOCK_BYTES = 512
_START_BYTES = 1024
"""A file without a preamble names a class of the standard (1.2.840.10008.) within these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelData:
    """Where the voxels of a file lie: ``offset`` and ``length`` in bytes; of a compressed picture (offset, length) of each fragment.

    ``is_words`` says that 16 bits belong together, which matters where the larger byte comes first.
    """

    offset: int
    length: int
    fragments: tuple[tuple[int, int], ...] | None = None
    is_float: bool = False
    is_words: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomFile:
    """``tags`` by name; those that are missing or empty are not in it. ``syntax`` is the transfer syntax.

    ``pixels`` is None where the file holds none, as reports. ``damage`` says why the slice cannot be read, though its header told which
    series it belongs to. ``frames`` are the tags of each frame of an enhanced multi-frame file; a slice that is one of its frames is the
    ``frame`` of this number, from 1 on, and 0 otherwise.
    """

    path: Path
    tags: dict[str, str]
    syntax: str
    pixels: PixelData | None
    damage: str = ""
    frames: tuple[dict[str, str], ...] = ()
    frame: int = 0

    @property
    def name(self) -> str:
        """What messages call the slice: its file, and the frame in it."""
        return f"{self.path.name}, frame {self.frame}" if self.frame else self.path.name

    def text(self, tag: str) -> str:
        """The value, empty where there is none."""
        return self.tags.get(tag, "")

    def numbers(self, tag: str, count: int) -> np.ndarray:
        """The numbers of a tag; raises :class:`ImageReadError` where it is missing or something else."""
        try:
            values = np.array([float(v) for v in self.tags[tag].split("\\")])
        except (KeyError, ValueError):
            values = np.empty(0)
        if len(values) != count or not np.isfinite(values).all():
            found = f" ({self.tags[tag][:60]!r})" if tag in self.tags else ""
            expected = "a number" if count == 1 else f"{count} numbers"
            raise ImageReadError(f"{self.path}: the DICOM tag {NUMBERS[tag]} ({tag}) is missing or damaged{found}; expected {expected}.")
        return values

    def integer(self, tag: str, default: int) -> int:
        """The whole number of a tag, ``default`` where it is missing; raises :class:`ImageReadError` where it is something else."""
        text = self.tags.get(tag, str(default))
        try:
            return int(text[:20])
        except ValueError:
            raise ImageReadError(f"{self.path}: the DICOM tag {NUMBERS[tag]} ({tag}) is {text[:40]!r}, expected a whole number.") from None


def looks_like_dicom(path: Path) -> bool:
    """Whether a regular file begins as DICOM does, with or without a preamble."""
    if not path.is_file():  # a named pipe would be waited for
        return False
    with path.open("rb", buffering=0) as file:
        start = file.read(_START_BYTES)
    return start[128:132] == b"DICM" or _is_without_preamble(start)


def read_dicom_file(path: Path) -> DicomFile:
    """Read a header; raises :class:`ImageReadError` where the file is no DICOM, or is damaged before it names its series."""
    with _opened(path) as source:
        meta, start = _meta(source)
        syntax = meta.get(_META_SYNTAX, "")
        if syntax == DEFLATED:
            source, start = _inflated(source, start), 0
        first = source.at(start, 6)
        is_big = syntax == BIG_ENDIAN or (not syntax and first[:2] == b"\0\x08")
        coding = Coding(">" if is_big else "<", first[4:6] in KNOWN)  # what is declared is not always what was written
        values: dict[str, bytes] = {}
        groups: dict[int, list[dict[str, str]]] = {}
        pixels, damage = None, ""
        try:
            pixels = _dataset(source, start, coding, values, groups)
        except ImageReadError as error:
            if "SeriesInstanceUID" not in values:
                raise
            damage = str(error)
    tags = {name: text for name, text in texts(values, coding.order).items() if text}
    for tag, name in ((_META_CLASS, "SOPClassUID"), (_META_INSTANCE, "SOPInstanceUID")):
        if meta.get(tag):
            tags.setdefault(name, meta[tag])
    syntax = syntax or (BIG_ENDIAN if is_big else EXPLICIT if coding.is_explicit else IMPLICIT)
    shared = (groups.get(SHARED) or [{}])[0]
    frames = tuple({**shared, **own} for own in groups.get(PER_FRAME, ()))
    return DicomFile(path=path, tags=tags, syntax=syntax, pixels=pixels, damage=damage, frames=frames)


def pixel_bytes(file: DicomFile, *, at_most: int | None = None) -> bytes:
    """The pixel data as they are stored; of a compressed picture its fragments, one after the other; ``at_most`` the first bytes."""
    if file.pixels is None:
        raise ImageReadError(f"{file.path}: holds no pixel data.")
    with _opened(file.path) as source:
        if file.syntax == DEFLATED:
            source = _inflated(source, _meta(source)[1])
        pieces = file.pixels.fragments if file.pixels.fragments is not None else ((file.pixels.offset, file.pixels.length),)
        if at_most is not None:
            pieces = tuple((offset, min(length, at_most)) for offset, length in pieces[:1])
        return b"".join(source.exactly(offset, length) for offset, length in pieces)


# ---- bytes


@contextmanager
def _opened(path: Path) -> Iterator[Source]:
    with path.open("rb", buffering=0) as stream:
        yield Source(path, stream, path.stat().st_size)


def _inflated(source: Source, start: int) -> Source:
    """What stands behind the meta information of a deflated file."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflate.decompress(source.exactly(start, source.size - start), MAX_INFLATED_BYTES)
    except zlib.error:
        raise source.damaged("cannot be inflated") from None
    if inflate.unconsumed_tail:
        raise source.damaged(f"inflates to more than {MAX_INFLATED_BYTES >> 20} MiB")
    return Source(source.path, io.BytesIO(data), len(data))


# ---- elements


def _is_without_preamble(start: bytes) -> bool:
    """An element of the groups 0002 or 0008 first, and a class of the standard."""
    is_big = start[:2] == b"\0\x08"
    if start[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08") or b"1.2.840.10008." not in start:
        return False
    length = struct.unpack_from(">I" if is_big else "<I", start, 4)[0]
    return start[4:6] in KNOWN or length <= len(start)


def _meta(source: Source) -> tuple[dict[int, str], int]:
    """The file's meta information, and where the data set begins."""
    start = source.at(0, _START_BYTES)
    if start[128:132] == b"DICM":
        offset = 132
    elif _is_without_preamble(start):
        offset = 0
    else:
        raise ImageReadError(f"{source.path}: not a DICOM file.")
    meta: dict[int, str] = {}
    coding = Coding("<", is_explicit=True)
    while source.at(offset, 2) == b"\x02\0":
        tag, _, length, value = element(source, offset, coding)
        if value + length > source.size:
            raise source.damaged("is cut off")
        if tag in (_META_CLASS, _META_INSTANCE, _META_SYNTAX) and length <= MAX_VALUE_BYTES:
            meta[tag] = source.at(value, length).decode("latin-1").strip(" \0")
        offset = value + length
    return meta, offset


def _dataset(
    source: Source, offset: int, coding: Coding, values: dict[str, bytes], groups: dict[int, list[dict[str, str]]]
) -> PixelData | None:
    """Add the values that are wanted, and what is said of frames, up to the pixel data, which are returned."""
    while offset < source.size:
        if source.size - offset < 8 and not source.at(offset, 8).strip(b"\0"):
            break  # padding
        tag, vr, length, value = element(source, offset, coding)
        if tag == _PIXELS or tag in _FLOAT_PIXELS:
            return _pixel_data(source, tag, vr, length, value, coding)
        if tag == SEQUENCE_END and length == 0:
            offset = value  # left over by a careless writer
            continue
        own = Coding(coding.order, coding.is_explicit and vr != b"UN")
        if tag in (SHARED, PER_FRAME):
            groups[tag], end = read_groups(source, value, length, own)
        else:
            end = after_sequence(source, value, own) if length == UNDEFINED else value + length
        if end > source.size:
            raise source.damaged("is cut off")
        name = TAGS.get(tag)
        if name is not None:
            is_read = length <= MAX_VALUE_BYTES and name != "ModalityLUTSequence"
            values.setdefault(name, source.at(value, length) if is_read else PRESENT.encode())
        offset = end
    return None


def _pixel_data(source: Source, tag: int, vr: bytes, length: int, value: int, coding: Coding) -> PixelData:
    is_float = tag in _FLOAT_PIXELS
    if length == UNDEFINED:
        fragments = tuple(_fragments(source, value))
        return PixelData(offset=value, length=sum(count for _, count in fragments), fragments=fragments, is_float=is_float)
    if value + length > source.size:
        raise ImageReadError(
            f"{source.path}: cut off: {source.size - value} bytes of pixel data, expected {length}. Copy or download the file again."
        )
    _check_behind(source, value + length, coding)
    return PixelData(offset=value, length=length, is_float=is_float, is_words=vr != b"OB")


def _fragments(source: Source, offset: int) -> Iterator[tuple[int, int]]:
    """The pieces of a compressed picture, without the table of offsets, which is the first."""
    is_table = True
    while True:
        tag, _, length, value = element(source, offset, Coding("<", is_explicit=True))
        if tag == SEQUENCE_END:
            return
        if tag != ITEM or value + length > source.size:
            raise source.damaged("is cut off or damaged in its pixel data")
        if not is_table:
            yield value, length
        is_table, offset = False, value + length


def _check_behind(source: Source, offset: int, coding: Coding) -> None:
    """What follows the pixel data are elements, as padding or a signature, or zeros up to a block of a disk.

    Other bytes came into the file, perhaps among the pixels; zeros too could be the last pixels of a dark picture.
    """
    end = offset
    try:
        while end < source.size:
            is_block = source.size % _BLOCK_BYTES == 0 and source.size - end < _BLOCK_BYTES
            if is_block and not source.at(end, _BLOCK_BYTES).strip(b"\0"):
                return
            _, vr, length, value = element(source, end, coding)
            is_nested = length == UNDEFINED
            end = after_sequence(source, value, Coding(coding.order, coding.is_explicit and vr != b"UN")) if is_nested else value + length
        is_clean = end <= source.size
    except ImageReadError:
        is_clean = False
    if not is_clean:
        raise ImageReadError(
            f"{source.path}: {source.size - offset} bytes behind the pixel data are no DICOM; bytes came into the file, and the pixels may "
            "be shifted. Copy or download it again."
        )
