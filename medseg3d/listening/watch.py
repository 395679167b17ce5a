"""A watched folder: whatever DICOM is laid into it is taken in when it does not grow any more; the files themselves stay.

What was taken is written down in the spool, so that no restart takes it again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from medseg3d.errors import ImageReadError
from medseg3d.files import storage, storage_errors
from medseg3d.images.dicom import dicom_files
from medseg3d.listening.spool import Spool, digest_of_uid

logger = logging.getLogger(__name__)
TAKEN = "taken.txt"
"""A line for each file that was taken: a digest of its name, size and time. Whoever deletes the file has the folder taken in again."""
QUIET_SECONDS = 2.0
"""A file that has not changed for so long is whole: copies over a slow share write every second."""


@dataclass(slots=True)
class WatchedFolder:
    """The folder, and which of its files were taken: by size and time, so that one that is replaced is taken again."""

    folder: Path
    spool: Spool
    is_whole: bool = False
    """After a look: whether nothing in it is still being written."""
    _taken: set[str] = field(init=False)
    _told: set[Path] = field(default_factory=set)
    _new: dict[Path, tuple[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        record = self.spool.root / TAKEN
        self._taken = set(record.read_text(encoding="ascii", errors="replace").splitlines()) if record.is_file() else set()

    def look(self, now: float) -> int:
        """Take in what is new and whole; how many instances came."""
        came, self.is_whole = 0, True
        for path in self._files():
            try:
                came += self._take(path, now)
            except ImageReadError:
                logger.warning("A file in the watched folder cannot be read as DICOM; it is left where it is.")
            except FileNotFoundError:
                continue
            except OSError as error:  # this file may not be read; the next one may
                self._say_once(path, error)
        return came

    def _files(self) -> list[Path]:
        """Its DICOM files; none while the folder, as one on a share, cannot be looked into, which is said once."""
        try:
            storage().make_folder(self.folder)
            found = list(dicom_files(self.folder, on_error=lambda error: self._say_once(self.folder, error)))
        except OSError as error:
            self._say_once(self.folder, error)
            return []
        self._told.discard(self.folder)
        return found

    def _take(self, path: Path, now: float) -> int:
        """Take in a file that is new and whole; how many instances came."""
        status = path.stat()
        state = digest_of_uid(f"{path.relative_to(self.folder)} {status.st_size} {status.st_mtime_ns}")  # a name may be a patient's
        if state in self._taken:
            return 0
        if now - status.st_mtime < QUIET_SECONDS and self._is_growing(path, state, now):
            self.is_whole = False
            return 0
        self._new.pop(path, None)
        content = path.read_bytes()
        try:
            self.spool.add(content)
        except ImageReadError:
            self._write_down(state)  # what is no DICOM is looked at once
            raise
        self._write_down(state)
        return 1

    def _is_growing(self, path: Path, state: str, now: float) -> bool:
        """Whether a file that its time calls new was not seen as it is for a while: the clock that dates it may be ahead of ours."""
        seen, since = self._new.get(path, ("", now))
        if seen == state and now - since >= QUIET_SECONDS:
            return False
        self._new[path] = (state, since if seen == state else now)
        return True

    def _say_once(self, path: Path, error: OSError) -> None:
        if path not in self._told:
            self._told.add(path)
            what = "The watched folder" if path == self.folder else "A file in the watched folder"
            logger.warning("%s cannot be read (%s); it is tried again.", what, error.strerror or type(error).__name__)

    def _write_down(self, state: str) -> None:
        self._taken.add(state)
        record = self.spool.root / TAKEN
        with storage_errors(record), record.open("a", encoding="ascii") as file:
            file.write(f"{state}\n")
