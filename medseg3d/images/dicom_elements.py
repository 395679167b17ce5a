"""The elements of a DICOM file: bytes at an offset in, tag, representation, length and the offset of the value out.

Nothing recurses, and nothing is read or reserved beyond what the file holds.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from medseg3d.errors import ImageReadError

MAX_DEPTH = 32
"""Sequences within sequences; those of radiotherapy and structured reports have ten."""
MAX_ELEMENTS = 100_000
"""A header of a slice has hundreds, one with many private sequences thousands."""
ITEM, ITEM_END, SEQUENCE_END = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
UNDEFINED = 0xFFFFFFFF
SHORT_LENGTH = frozenset(re.findall(b"[A-Z]+", b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US"))
"""Value representations with a length of 16 bits; all others, also those still to come, have 32."""
KNOWN = SHORT_LENGTH | frozenset(re.findall(b"[A-Z]+", b"OB OD OF OL OV OW SQ SV UC UN UR UT UV"))
_WINDOW_BYTES = 1 << 14
"""Most headers fit; more is read where they do not."""


class Source:
    """The bytes of a file by their offsets, through a small window; counts the elements that were read."""

    def __init__(self, path: Path, stream: io.RawIOBase | io.BytesIO, size: int) -> None:
        self.path, self.size = path, size
        self._stream = stream
        self._num_elements, self._most = 0, MAX_ELEMENTS
        self._window, self._start = b"", 0

    def at(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes, at most a window's; fewer where the file ends."""
        begin = offset - self._start
        if begin < 0 or begin + count > len(self._window):
            self._stream.seek(offset)
            self._window, self._start, begin = self._stream.read(_WINDOW_BYTES) or b"", offset, 0
        return self._window[begin : begin + count]

    def exactly(self, offset: int, count: int) -> bytes:
        """``count`` bytes, which the file must hold."""
        if offset + count > self.size:
            raise self.damaged("is cut off")
        self._stream.seek(offset)
        found = b""
        while len(found) < count:  # an unbuffered file may give fewer at a time
            piece = self._stream.read(count - len(found))
            if not piece:
                raise self.damaged("is cut off")
            found = found + piece if found else piece
        return found

    def damaged(self, what: str) -> ImageReadError:
        """The error of this file."""
        return ImageReadError(f"{self.path}: the DICOM file {what} ({self.size} bytes). Copy or download it again.")

    def count(self) -> None:
        """One more element; too many are refused."""
        self._num_elements += 1
        if self._num_elements > self._most:
            raise self.damaged(f"has more than {self._most} elements in its header")

    def allow(self, most: int) -> None:
        """So many elements may be read in all."""
        self._most = max(self._most, most)


@dataclass(frozen=True, slots=True)
class Coding:
    """How elements are written: ``order`` of bytes (< or >), and whether each says its representation."""

    order: str
    is_explicit: bool


def element(source: Source, offset: int, coding: Coding) -> tuple[int, bytes, int, int]:
    """Tag, value representation, length and the offset of the value."""
    source.count()
    header = source.at(offset, 12)
    if len(header) < 8:
        raise source.damaged("is cut off")
    group, number = struct.unpack_from(f"{coding.order}HH", header)
    tag = group << 16 | number
    if group == 0xFFFE or not coding.is_explicit:
        return tag, b"", struct.unpack_from(f"{coding.order}I", header, 4)[0], offset + 8
    vr = header[4:6]
    if vr in SHORT_LENGTH:
        return tag, vr, struct.unpack_from(f"{coding.order}H", header, 6)[0], offset + 8
    if len(header) < 12 or not (vr.isalpha() and vr.isupper()):
        raise source.damaged("is damaged in its header")
    return tag, vr, struct.unpack_from(f"{coding.order}I", header, 8)[0], offset + 12


def after_sequence(source: Source, offset: int, coding: Coding) -> int:
    """Where a sequence of undefined length ends; what is nested in it is walked over, without recursion."""
    codings = [coding]
    while codings:
        tag, vr, length, value = element(source, offset, codings[-1])
        offset = value
        if tag in (ITEM_END, SEQUENCE_END):
            codings.pop()
        elif length == UNDEFINED:
            if len(codings) >= MAX_DEPTH:
                raise source.damaged(f"has sequences nested more than {MAX_DEPTH // 2} deep")
            codings.append(Coding(coding.order, codings[-1].is_explicit and vr != b"UN"))
        else:
            offset = value + length
    return offset
