"""One process at a time: a lock in a folder, which survives a crash and works wherever a folder can be renamed.

A lock is a folder with a file ``owner.json`` that says who holds it. It is made under another name and renamed: onto a folder that holds
something that fails, on every file system and share. Its owner touches the file every :data:`HEARTBEAT_SECONDS`. A lock is taken over
at once where its process has ended on this host, and from another host when it was not touched for :data:`STALE_SECONDS`, by the clock
that stamps the files of the folder.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from medseg3d.errors import BusyError
from medseg3d.files import server_time, storage, storage_errors, temporary_for
from medseg3d.processes import parse_process, this_process

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20.0
STALE_SECONDS = 300.0
"""Many heartbeats, and more than the minute for which an NFS client may remember an old time."""
SETTLING_SECONDS = 0.2
"""After a takeover: another process that saw the same stale lock has come to its end by then, and it shows whose lock it is."""
LONGEST_PAUSE = 1.0
"""Between two tries to get a lock, in seconds; the first pauses are shorter."""
SILENT_SECONDS = 3.0
"""So long a process waits without a word."""
OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)
OWNER = "owner.json"
FOREVER = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who holds a lock: ``process`` as its name in files, ``token`` is different for each time that it is taken."""

    process: str
    token: str
    host: str
    pid: int
    since: str
    doing: str

    def __str__(self) -> str:
        """For people: which process, where, and since when."""
        where = "this host" if self.host == socket.gethostname() else self.host
        return f"process {self.pid} on {where}, since {self.since.replace('T', ' ')}"


class Lock:
    """A lock that this process holds."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        self.folder, self.owner = folder, owner
        self.depth = 1
        self.thread = threading.get_ident()

    def check(self) -> None:
        """Raise :class:`BusyError` where another process has taken the lock over, as this one was suspended or cut off for long."""
        found = read_owner(self.folder)
        if found is None or found.token != self.owner.token:
            by = f"by {found}" if found is not None else "and given back"
            raise BusyError(
                f"{self.folder.parent}: was taken over {by}, as nothing was heard of this process for {STALE_SECONDS / 60:.0f} minutes. "
                "It stops here, so that no files are mixed."
            )

    def touch(self) -> None:
        """Say that its process lives."""
        file = self.folder / OWNER
        try:
            os.utime(file)
        except FileNotFoundError:
            return
        except OSError:  # a share that sets no times stamps what is written
            with suppress(OSError), file.open("r+b") as stream:
                content = stream.read()
                stream.seek(0)
                stream.write(content)


@contextmanager
def locked(folder: Path, doing: str, *, advice: str, patience: float = 0.0, say: Callable[[str], None] = logger.warning) -> Iterator[Lock]:
    """Hold the lock ``folder`` meanwhile; the thread that holds it gets it again.

    ``doing`` says to others what is done ("is being trained"). Where another process holds it, this one waits up to ``patience``
    seconds, tells that by ``say``, and raises :class:`BusyError` with the ``advice`` then. Raises :class:`StorageError` where the
    lock cannot be written.
    """
    folder = folder.absolute()
    held = _held.get(folder)
    if held is not None and held.thread == threading.get_ident():
        held.depth += 1
        try:
            yield held
        finally:
            held.depth -= 1
        return
    with storage_errors(folder.parent):
        lock = _wait(folder, doing, advice, patience, say)
    _held[folder] = lock
    _start_heart()
    try:
        yield lock
    finally:
        del _held[folder]
        _release(lock)


def _wait(folder: Path, doing: str, advice: str, patience: float, say: Callable[[str], None]) -> Lock:
    began, pause, has_spoken = time.monotonic(), 0.02, False
    while True:
        lock = _try(folder, doing)
        if isinstance(lock, Lock):
            return lock
        waited = time.monotonic() - began
        sentence = f"{folder.parent}: {lock.doing} by {lock}" if lock is not None else f"{folder}: is held by another process"
        if waited >= patience:
            raise BusyError(f"{sentence}. {advice}{_when_it_is_free(folder, lock)}")
        if waited > SILENT_SECONDS and not has_spoken:
            say(f"{sentence}. Waiting for it …{_when_it_is_free(folder, lock)}")
            has_spoken = True
        time.sleep(min(pause, LONGEST_PAUSE, max(0.0, patience - waited)))
        pause *= 1.5


def _when_it_is_free(folder: Path, owner: Owner | None) -> str:
    """A sentence on a process that cannot be seen from here: a host that failed or a container that is gone gives nothing back."""
    process = parse_process(owner.process) if owner is not None else None
    if process is not None and process.is_alive is not None:
        return ""
    try:
        silent = max(0.0, server_time(folder.parent) - (folder / OWNER).stat().st_mtime)
    except OSError:
        return ""
    rest = max(1, math.ceil((STALE_SECONDS - silent) / 60))
    return f" It was heard of {silent:.0f} s ago; where it has ended, as with its host or container, its lock is taken over in {rest} min."


def _try(folder: Path, doing: str) -> Lock | Owner | None:
    """The lock, or who holds it; None where that cannot be read."""
    process = this_process()
    with temporary_for(folder) as own:
        token = own.name.split(".")[1].rpartition("-")[2]
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        owner = Owner(process=str(process), token=token, host=socket.gethostname(), pid=process.pid, since=since, doing=doing)
        storage().make_folder(own)
        storage().write(own / OWNER, json.dumps(_plain(owner), indent=2).encode())
        _tokens.add(token)
        now = _owner_after(own, folder)
    if now is not None and now.token == token:
        return Lock(folder, owner)
    _tokens.discard(token)
    return now


def _owner_after(own: Path, folder: Path) -> Owner | None:
    """Who holds a lock after this process has tried to rename its own into its place."""
    if not _takes_place(own, folder):
        found = read_owner(folder)
        if not _is_stale(folder, found):
            return found
        if not _clear(folder, found) or not _takes_place(own, folder):
            return read_owner(folder)
        time.sleep(SETTLING_SECONDS)
    return read_owner(folder)


def _takes_place(own: Path, folder: Path) -> bool:
    """Rename a new lock into its place; False where a lock is there."""
    for is_last in (False, True):
        try:
            storage().rename(own, folder)
        except OSError as error:
            if error.errno not in OCCUPIED and not folder.is_dir():
                raise
            if is_last:
                return False
            try:
                folder.rmdir()  # an empty one was being given back; some systems do not rename onto it
            except OSError:
                return False
        else:
            return True
    return False


def _is_stale(folder: Path, owner: Owner | None) -> bool:
    if owner is not None and _is_of_this_process(owner):
        return owner.token not in _tokens  # it was given back, and the disk failed just then
    process = parse_process(owner.process) if owner is not None else None
    is_alive = process.is_alive if process is not None else None
    if is_alive is not None:
        return not is_alive
    try:
        touched = (folder / OWNER).stat().st_mtime
    except OSError:
        try:
            touched = folder.stat().st_mtime
        except OSError:
            return False  # it has just been given back
    return server_time(folder.parent) - touched > STALE_SECONDS


def _clear(folder: Path, owner: Owner | None, level: int = logging.WARNING) -> bool:
    """Take a stale lock away; False where another process was faster."""
    with temporary_for(folder) as doomed:
        try:
            storage().rename(folder, doomed)
        except FileNotFoundError:
            return True
        found = read_owner(doomed)
        if (found and found.token) != (owner and owner.token):  # another process has taken it over since we looked
            with suppress(OSError):
                storage().rename(doomed, folder)
            return False
    if not _is_of_this_process(owner):
        sentence = "%s: the lock of %s is taken over: that process has ended without giving it back."
        logger.log(level, sentence, folder.parent, owner or "an unknown process")
    return True


def _is_of_this_process(owner: Owner | None) -> bool:
    return owner is not None and owner.process == str(this_process())


def _release(lock: Lock) -> None:
    _tokens.discard(lock.owner.token)
    found = read_owner(lock.folder)
    if found is None or found.token != lock.owner.token:
        return  # it was taken over
    with suppress(OSError):
        storage().remove(lock.folder / OWNER)
        lock.folder.rmdir()


def remove_stale_locks(folder: Path) -> None:
    """Delete the locks directly in a folder whose processes have ended; for its next start."""
    for lock in folder.glob(".*lock"):
        with suppress(OSError):
            lock.rmdir()  # it was being given back
            continue
        owner = read_owner(lock)
        if _is_stale(lock, owner):
            with suppress(OSError):
                _clear(lock, owner, logging.INFO)


def read_owner(folder: Path) -> Owner | None:
    """Who holds a lock; None where nobody does or it cannot be read."""
    try:
        document = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return Owner(**{name: document[name] for name in Owner.__slots__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain(owner: Owner) -> dict[str, object]:
    return {name: getattr(owner, name) for name in Owner.__slots__}


_held: dict[Path, Lock] = {}
_tokens: set[str] = set()
"""Of the locks that this process holds or is about to take."""
_heart: threading.Thread | None = None


def release_all() -> None:
    """Give back what this process holds; for its end, where nobody will go on."""
    for lock in list(_held.values()):
        if lock.owner.process == str(this_process()):
            _release(lock)


def _start_heart() -> None:
    global _heart
    if _heart is None or not _heart.is_alive():
        _heart = threading.Thread(target=_beat, name="lock heartbeat", daemon=True)
        _heart.start()


def _beat() -> None:
    while True:
        time.sleep(HEARTBEAT_SECONDS)
        for lock in list(_held.values()):
            lock.touch()
