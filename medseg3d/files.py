"""Write a file whole or not at all: a temporary name beside it, then a rename."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg3d.errors import InputError, StorageError


@contextmanager
def replacing(path: Path, *, is_lasting: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` (same suffixes); rename it to ``path`` when the block succeeds.

    The folder is made if it is missing. A lasting file is on the disk before it is renamed, so that it is whole even where the power
    fails then; that takes milliseconds, and is for what took long to make. Raises :class:`StorageError` where the disk is full or
    the folder cannot be written.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}.tmp.{path.name}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if is_lasting:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def check_writable(folder: Path) -> None:
    """Make the folder and try a temporary file in it, so that hours of work do not end at a folder that cannot be written.

    Raises :class:`StorageError`.
    """
    trial = folder / f".{secrets.token_hex(4)}.tmp"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            trial.write_bytes(b"\0")
        finally:
            trial.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """A hexadecimal digest (BLAKE2b, 128 bit) of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def unreadable(path: Path, error: OSError) -> InputError:
    """The error to raise where a file that was named cannot be read: missing, a folder, or without the permission."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return InputError(f"{path}: no such file.")
    reason = "it is a folder" if isinstance(error, IsADirectoryError) else error.strerror or str(error)
    return InputError(f"{path}: cannot be read ({reason}).")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a place that cannot be written or a missing permission into :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{path}: the disk is full. Everything finished so far is kept; free some space and run the same command again."
            ) from error
        reason = _REASONS.get(error.errno or 0)
        if reason is None and error.errno == errno.ENOENT and _is_there(error.filename, path):
            reason = "nothing can be made here"
        if reason is None:
            raise
        raise StorageError(f"{path}: cannot be written ({reason}). Choose another folder, or change its permissions.") from error


_REASONS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "the file system is read-only",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "links that lead in a circle",
}


def _is_there(missing: object, path: Path) -> bool:
    """Whether what was "not found" is ``path``, its folder or a file in it: /proc and its like say so of all that is new.

    Any other file that is not found has nothing to do with where to write.
    """
    return isinstance(missing, str) and (Path(missing) in (path, *path.parents) or Path(missing).parent in (path, path.parent))
