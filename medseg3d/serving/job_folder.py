"""The folder of the jobs' files: removed when the server ends, and by the next server where one was killed."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from medseg3d.wording import counted

logger = logging.getLogger(__name__)

PREFIX = "medseg3d-serve-"
UNFINISHED = "medseg3d-serve.new-"
"""A folder that is made just now, without its lock yet."""
LOCK, JOBS = "owner", "jobs"
SECONDS_WITHOUT_LOCK = 24 * 3600.0
"""Of folders that are not locked yet, and of those of older versions, which had no lock: unchanged for a day, they are nobody's."""


@contextmanager
def job_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder below a locked one among the system's temporary files, while this process lives; abandoned ones are removed first.

    The lock ends with its process, however that ends, and says the same in every container that shares the folder.
    """
    place = (parent or Path(tempfile.gettempdir())).resolve()
    remove_abandoned(place)
    made = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=place))
    lock = (made / LOCK).open("wb")
    _lock(lock)
    folder = made.rename(place / (PREFIX + made.name.removeprefix(UNFINISHED)))
    try:
        (folder / JOBS).mkdir()
        yield folder / JOBS
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)  # where an open file cannot be removed


def remove_abandoned(place: Path) -> None:
    """Remove the folders that servers of this user left behind when they were killed."""
    abandoned = [folder for prefix in (PREFIX, UNFINISHED) for folder in place.glob(f"{prefix}*") if _is_abandoned(folder)]
    for folder in abandoned:
        shutil.rmtree(folder, ignore_errors=True)
    if abandoned:
        logger.warning("Removed the images of %s that did not end by itself.", counted(len(abandoned), "server"))


def _is_abandoned(folder: Path) -> bool:
    try:
        status = folder.lstat()
        is_own = folder.is_dir() and not folder.is_symlink() and (not hasattr(os, "getuid") or status.st_uid == os.getuid())
        if not is_own:
            return False
        if folder.name.startswith(UNFINISHED) or not (folder / LOCK).is_file():
            return time.time() - status.st_mtime > SECONDS_WITHOUT_LOCK
        with (folder / LOCK).open("rb+") as lock:
            _lock(lock)
    except OSError:  # locked, or gone meanwhile
        return False
    return True


def _lock(file: BinaryIO) -> None:
    """Lock a file for this process; raises ``OSError`` where another one has it."""
    if os.name == "nt":
        import msvcrt

        file.write(b"\0")
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
