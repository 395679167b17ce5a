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

    def __post_init__(self) -> None:
        record = self.spool.root / TAKEN
        self._taken = set(record.read_text(encoding="ascii", errors="replace").splitlines()) if record.is_file() else set()

    def look(self, now: float) -> int:
        """Take in what is new and whole; how many instances came."""
        storage().make_folder(self.folder)
        came, self.is_whole = 0, True
        for path in dicom_files(self.folder, on_error=lambda error: None):
            try:
                status = path.stat()
                state = digest_of_uid(f"{path.relative_to(self.folder)} {status.st_size} {status.st_mtime_ns}")  # a name may be a patient's
                if state in self._taken:
                    continue
                if now - status.st_mtime < QUIET_SECONDS:
                    self.is_whole = False
                    continue
                self.spool.add(path.read_bytes())
                came += 1
            except ImageReadError:
                logger.warning("A file in the watched folder cannot be read as DICOM; it is left where it is.")
            except FileNotFoundError:
                continue
            self._write_down(state)
        return came

    def _write_down(self, state: str) -> None:
        self._taken.add(state)
        record = self.spool.root / TAKEN
        with storage_errors(record), record.open("a", encoding="ascii") as file:
            file.write(f"{state}\n")
