"""Write a file whole or not at all: a temporary name beside it, then a rename."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg3d.errors import StorageError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` (same suffixes); rename it to ``path`` when the block succeeds.

    The folder is made if it is missing. Raises :class:`StorageError` where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}.tmp.{path.name}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def file_digest(path: Path) -> str:
    """A hexadecimal digest (BLAKE2b, 128 bit) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only file system or a missing permission into :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{path}: the disk is full. Everything finished so far is kept; free some space and run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise StorageError(
                f"{path}: cannot be written ({error.strerror}). Name another work folder with -w, or change its permissions."
            ) from error
        raise
