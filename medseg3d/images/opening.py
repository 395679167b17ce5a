"""The door for files of others: what is no plain file is never opened, sizes are compared before anything is read, and whatever goes
wrong with one file is an :class:`ImageReadError`."""

from __future__ import annotations

import errno
import logging
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg3d.errors import DiskReadError, ImageReadError, MedsegError, StorageError
from medseg3d.execution import free_memory
from medseg3d.wording import counted

logger = logging.getLogger(__name__)

MAX_COMPRESSION = 1032
"""Deflate never makes more bytes of one: a file that claims more is damaged, whatever else it says."""
COMPRESSION_SLACK = 1 << 16
"""Bytes that a tiny file may claim beside, as its header is not counted exactly."""

_ONE_FILE = {errno.EIO, errno.ESTALE}
"""A bad sector, or a file that was replaced on a share while it was read."""
_DISK_ERRORS = _ONE_FILE | {
    errno.ENOSPC, errno.EDQUOT, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET,
}  # fmt: skip
"""A disk, a share or a system that fails concerns all files; everything else is the matter of one."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What is wrong with one file or its permissions is an :class:`ImageReadError`, a failing disk a :class:`StorageError`, which is a
    :class:`DiskReadError` where it may fail for this file alone.

    Decoders of others raise whatever they like for damaged bytes: all of it means that the file cannot be decoded.
    """
    from isal.igzip_lib import IsalError

    try:
        yield
    except (MedsegError, MemoryError):
        raise
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise disk_error(path, error) from error
        reason = error.strerror or str(error)
        raise ImageReadError(f"{error.filename or path}: cannot be read ({reason}). Check the file and its permissions.") from error
    except (  # type: ignore[misc]
        ValueError,
        ArithmeticError,
        RuntimeError,
        LookupError,
        EOFError,
        TypeError,
        AttributeError,  # pydicom's word for an element that is not there
        struct.error,
        zlib.error,
        IsalError,
    ) as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise ImageReadError(f"{path}: cannot be decoded ({reason:.300}). Copy or download it again.") from error


def disk_error(path: Path, error: OSError) -> StorageError:
    """The error to raise where the disk or the share failed while a file was read."""
    kind = DiskReadError if error.errno in _ONE_FILE else StorageError
    return kind(f"{path}: cannot be read ({error.strerror or error}). Look after the disk or the share, and copy the file again.")


def check_is_file(path: Path) -> None:
    """Raise :class:`ImageReadError` for what would wait for ever or never end: a named pipe, a socket, a device."""
    if not path.exists():
        is_link = path.is_symlink()
        found = f"a link to {path.readlink()}, which is not there; fetch the file that it stands for" if is_link else "no such file"
        raise ImageReadError(f"{path}: {found}.")
    if not path.is_file():
        kinds = {"is_fifo": "a named pipe", "is_socket": "a socket", "is_char_device": "a device", "is_block_device": "a device"}
        kind = next((name for test, name in kinds.items() if getattr(path, test)()), "a folder" if path.is_dir() else "no file")
        raise ImageReadError(f"{path}: {kind}; expected a file. Copy the image into one.")


_BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS in the place of the file; fetch it with git lfs pull",
    b"../.git/annex": "a pointer of git-annex in the place of the file; fetch it with git annex get",
    b"/annex/objects": "a pointer of git-annex in the place of the file; fetch it with git annex get",
    b"<!doctype": "a web page; the download failed",
    b"<html": "a web page; the download failed",
    b"<?xml": "an XML document; the download failed",
    b"pk\x03\x04": "a zip archive; unpack it",
    b"\x89png": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"bzh": "compressed by bzip2; unpack it",
    b"\xfd7zxz": "compressed by xz; unpack it",
    b"(\xb5/\xfd": "compressed by zstd; unpack it",
    b"nrrd0": "a NRRD file; name it .nrrd",
}
"""How files begin that lie in the place of an image, in lower case."""


def what_it_is(path: Path, beginning: bytes, expected: str) -> ImageReadError:
    """The error for a file that is not of the kind that its name says."""
    known = _known(beginning)
    if known:
        return ImageReadError(f"{path}: not {expected}, but {known}.")
    return ImageReadError(f"{path}: not {expected} (it begins with {beginning[:8]!r}). Check where it comes from.")


def refuse_known(path: Path, beginning: bytes, expected: str) -> None:
    """Raise the error for what people do have under the name of an image."""
    if _known(beginning):
        raise what_it_is(path, beginning, expected)


def _known(beginning: bytes) -> str | None:
    if not beginning.strip(b"\0"):
        return "nothing but zeros" if beginning else "an empty file"
    if beginning[128:132] == b"DICM":
        return "a DICOM file; name it .dcm"
    start = beginning[:200].lstrip().lower()
    return next((words for begin, words in _BEGINNINGS.items() if start.startswith(begin)), None)


def check_claim(path: Path, claimed: int, *, there: int, is_compressed: bool, shape: tuple[int, ...]) -> None:
    """Compare the bytes that a header claims with those that are ``there``; raises :class:`ImageReadError` where they cannot be.

    And where the memory does not hold an honest image: ``MemoryError``.
    """
    most = there * MAX_COMPRESSION + COMPRESSION_SLACK if is_compressed else there
    times = " x ".join(map(str, shape))
    if claimed > most:
        packed = "compressed " if is_compressed else ""
        raise ImageReadError(
            f"{path}: the header claims {times} voxels ({claimed:,} bytes), and the file ends before its last voxel: it holds {there:,} "
            f"{packed}bytes. Copy or download it again."
        )


def tell_of_rest(path: Path, rest: int, *, slice_bytes: int, shape: tuple[int, ...]) -> None:
    """Warn where behind the last voxel stands at least another slice: the header may claim too few or too small voxels."""
    if rest >= slice_bytes:
        logger.warning(
            "%s: behind the %s voxels that the header claims, %s bytes are left, as much as %s. Only what is claimed is read; if the image "
            "is larger, or of another data type, write the file anew.",
            path,
            " x ".join(map(str, shape)),
            f"{rest:,}",
            counted(rest // slice_bytes, "more slice"),
        )


def check_memory(path: Path, needed: int, shape: tuple[int, ...]) -> None:
    """Raise ``MemoryError`` where an image would not fit what is free, before anything is allocated."""
    free = free_memory()
    if needed > free:
        times = " x ".join(map(str, shape))
        raise MemoryError(
            f"{path}: an image of {times} voxels takes {needed / 2**30:.3g} GiB at least, and {free / 2**30:.3g} GiB of memory are "
            "free. Close other programs, or work on a machine with more"
        )
