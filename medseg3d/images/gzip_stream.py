"""The decompressed bytes of a file, through isal, also where something else stands behind the compressed data."""

from __future__ import annotations

import gzip
import io
import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from medseg3d.errors import ImageReadError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def reading_stream(path: Path, read: Callable[[BinaryIO], Result]) -> Result:
    try:
        with _opened(path) as stream:
            return read(stream)
    except _ForeignBytesError:
        with _opened_to_its_end(path) as stream:
            return read(stream)


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


def is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
