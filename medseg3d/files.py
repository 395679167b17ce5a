"""Write a file atomically: a temporary name beside it, then a rename.

A temporary name says which process made it (``.9f3a21bc-3fae2-9d8f7-5c3e12ab.tmp.plan.json``), so that the next one can tell what a
crash has left from what another process is writing. All that the package writes goes through a :class:`Storage`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medseg3d.errors import InputError, StorageError
from medseg3d.processes import PROCESS, Process, parse_process, this_process


class Storage:
    """The operations that change what lies on a disk. Tests put a double in its place that fails or kills at the n-th of them."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, where they are missing."""
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, content: bytes) -> None:
        """Write a file at once."""
        path.write_bytes(content)
        self.finish(path)

    def finish(self, path: Path) -> None:
        """The content of a file is written, by whatever means; nothing is left to do."""

    def sync(self, path: Path) -> None:
        """Wait until a file or a folder is on the disk; shares and file systems that cannot say so are believed."""
        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
        try:
            number = os.open(path, flags)
        except PermissionError:
            return  # Windows opens no folder
        try:
            os.fsync(number)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
        finally:
            os.close(number)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, in place of what is there."""
        os.replace(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a folder where no other is in its place; an ``OSError`` where one is that holds something."""
        os.rename(source, target)

    def remove(self, path: Path) -> None:
        """Delete a file, where it is there."""
        path.unlink(missing_ok=True)

    def remove_tree(self, folder: Path) -> None:
        """Delete a folder with all that it holds, as far as that is possible."""
        shutil.rmtree(folder, ignore_errors=True)


NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What network shares and FUSE answer where they lack an operation: fsync, chmod, utime, fallocate."""
_storage = Storage()


def storage() -> Storage:
    """Where the package writes."""
    return _storage


@contextmanager
def using_storage(double: Storage) -> Iterator[None]:
    """Let everything be written through ``double`` meanwhile; for tests."""
    global _storage
    before, _storage = _storage, double
    try:
        yield
    finally:
        _storage = before


@contextmanager
def replacing(path: Path, *, is_lasting: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path`` (same suffixes); rename it to ``path`` when the block succeeds.

    The folder is made if it is missing. A lasting file is on the disk before it is renamed, so that it is whole even where the power
    fails then; that takes milliseconds, and is for what took long to make. Raises :class:`StorageError` where the disk is full or
    the folder cannot be written.
    """
    with storage_errors(path):
        _storage.make_folder(path.parent)
        with temporary_for(path) as temporary:
            yield temporary
            _storage.finish(temporary)
            if is_lasting:
                _storage.sync(temporary)
            _storage.replace(temporary, path)
            if is_lasting:
                _storage.sync(path.parent)


@contextmanager
def temporary_for(path: Path, kind: str = "tmp") -> Iterator[Path]:
    """A name of this process beside ``path``; what has it when the block ends is deleted."""
    temporary = _temporary_name(path, kind, secrets.token_hex(4))
    try:
        yield temporary
    finally:
        _remove(temporary)
        _own_temporaries.pop(temporary, None)


def scratch_name(path: Path) -> Path:
    """The one name beside ``path`` for what this process puts aside until ``path`` is made; whoever uses it deletes the file."""
    return _temporary_name(path, "tmp", hashlib.blake2b(os.fsencode(path.name), digest_size=4).hexdigest())


def _temporary_name(path: Path, kind: str, token: str) -> Path:
    temporary = path.with_name(f".{this_process()}-{token}.{kind}.{_shortened(path.name)}")
    register_temporary(temporary)
    return temporary


def register_temporary(path: Path) -> None:
    """Let a file or folder be deleted where this process must end before it does that itself."""
    _own_temporaries[path] = os.getpid()


MAX_NAME_BYTES = 100
"""Of a name within a temporary one: file systems take 255 bytes, some 143."""
_own_temporaries: dict[Path, int] = {}
"""Each with the number of the process."""


def _shortened(name: str) -> str:
    """The end of a long name, as its suffix tells writers what to write."""
    return os.fsdecode(os.fsencode(name)[-MAX_NAME_BYTES:])


def _remove(path: Path) -> None:
    """Delete a temporary file or folder, where it is there; what cannot be deleted is left to the next start."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            _storage.remove_tree(path)
        elif os.path.lexists(path):
            _storage.remove(path)


def remove_own_temporaries() -> None:
    """Delete what this process is writing; for its end, where nobody will go on."""
    for path in list(_own_temporaries):
        if path in _own_temporaries and _own_temporaries[path] == os.getpid():  # a child that was forked has those of its parent
            _remove(path)


def remove_file(path: Path) -> None:
    """Delete a file, where it is there; raises :class:`StorageError` where that fails."""
    with storage_errors(path):
        _storage.remove(path)


def remove_tree(folder: Path) -> None:
    """Delete a folder: it is gone at once, so that nothing can find half of it."""
    if not folder.is_dir():
        return
    with storage_errors(folder), temporary_for(folder) as doomed:
        _storage.replace(folder, doomed)


TEMPORARY = re.compile(rf"\.(?:(?P<process>{PROCESS.pattern})-)?[0-9a-f]{{2,8}}\.(?P<kind>tmp|old)(?:\..*)?", re.DOTALL)
"""Names that :func:`temporary_for` gives; earlier versions did not say which process it was."""
ABANDONED_SECONDS = 3600.0
"""A temporary file of a host that cannot be asked, which has not changed for an hour, belongs to nobody."""


def remove_leftovers(folder: Path, *, kind: str = "tmp", name: str | None = None, is_recursive: bool = False) -> None:
    """Delete the temporary files and folders that processes which ended have left; those of others that run stay.

    With ``name`` only those of the file or folder of that name.
    """
    for path in abandoned(folder, kind=kind, name=name, is_recursive=is_recursive):
        _remove(path)


def abandoned(folder: Path, *, kind: str = "tmp", name: str | None = None, is_recursive: bool = False) -> Iterator[Path]:
    """The temporary files and folders of a kind in ``folder`` whose process has ended."""
    pattern = f".*.{kind}*"
    found = sorted(folder.rglob(pattern) if is_recursive else folder.glob(pattern)) if folder.is_dir() else []
    for path in found:
        match = TEMPORARY.fullmatch(path.name)
        if match is None or match["kind"] != kind or (name is not None and not path.name.endswith(f".{kind}.{_shortened(name)}")):
            continue
        if _is_abandoned(path, parse_process(match["process"] or "")):
            yield path


def _is_abandoned(path: Path, process: Process | None) -> bool:
    is_alive = process.is_alive if process is not None else None
    if is_alive is not None:
        return not is_alive
    try:
        changed = path.stat().st_mtime
    except FileNotFoundError:  # its process has just finished it
        return False
    return server_time(path.parent) - changed > ABANDONED_SECONDS


def server_time(folder: Path) -> float:
    """Now, by the clock that stamps the files of a folder: that of a file server may differ from ours.

    Our own clock where the folder cannot be written.
    """
    try:
        with temporary_for(folder / "clock") as probe:
            probe.touch()
            return probe.stat().st_mtime
    except OSError:
        return time.time()


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def copy_file(source: Path, target: Path) -> Path:
    """Copy a file atomically, with its times and permissions where the target's file system takes them."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
        with suppress(OSError):
            shutil.copystat(source, temporary)
    return target


def check_writable(folder: Path) -> None:
    """Make the folder and try a temporary file in it, so that hours of work do not end at a folder that cannot be written. What processes
    that were killed have left in it is removed.

    Raises :class:`StorageError`.
    """
    with storage_errors(folder):
        _storage.make_folder(folder)
        remove_leftovers(folder)
        with temporary_for(folder / "probe") as probe:
            _storage.write(probe, b"\0")


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
        if error.errno in _FAILURES:
            raise StorageError(
                f"{path}: the disk or the share failed ({error.strerror or error}). Everything finished so far is kept; look after it, and "
                "run the same command again."
            ) from error
        reason = _REASONS.get(error.errno or 0)
        if reason is None and error.errno == errno.ENOENT and _is_there(error.filename, path):
            reason = "nothing can be made here"
        if reason is None:
            raise
        raise StorageError(f"{path}: cannot be written ({reason}). Choose another folder, or change its permissions.") from error


_FAILURES = tuple(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "EREMOTEIO", "ETIMEDOUT", "EHOSTDOWN", "ENOTCONN", "ENXIO", "ENODEV", "ECONNRESET", "EBADFD")
    if hasattr(errno, name)
)
"""What a broken disk or a share that went away answers."""
_REASONS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "the file system is read-only",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EFBIG: "the file is larger than the file system, or ulimit -f, allows",
    errno.ELOOP: "links that lead in a circle",
}


def _is_there(missing: object, path: Path) -> bool:
    """Whether what was "not found" is ``path``, its folder or a file in it: /proc and its like say so of all that is new.

    Any other file that is not found has nothing to do with where to write.
    """
    return isinstance(missing, str) and (Path(missing) in (path, *path.parents) or Path(missing).parent in (path, path.parent))
