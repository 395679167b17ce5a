"""A watched folder: whatever DICOM is laid into it is taken in when it does not grow any more; the files themselves stay."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from medseg3d.errors import ImageReadError
from medseg3d.files import storage
from medseg3d.images.dicom import dicom_files
from medseg3d.listening.spool import Spool

logger = logging.getLogger(__name__)
QUIET_SECONDS = 2.0
"""A file that has not changed for so long is whole: copies over a slow share write every second."""


@dataclass(slots=True)
class WatchedFolder:
    """The folder, and which of its files were taken: by size and time, so that one that is replaced is taken again."""

    folder: Path
    spool: Spool
    is_whole: bool = False
    """After a look: whether nothing in it is still being written."""
    _taken: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def look(self, now: float) -> int:
        """Take in what is new and whole; how many instances came."""
        storage().make_folder(self.folder)
        came, self.is_whole = 0, True
        for path in dicom_files(self.folder, on_error=lambda error: None):
            try:
                status = path.stat()
                state = status.st_size, status.st_mtime_ns
                if self._taken.get(path) == state:
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
            self._taken[path] = state
        return came
