"""Label maps of a cascade's first stage on the grid of stored cases, which the second stage reads its patches from.

``<folder>/CASE.b2nd`` holds label indices ``(n0, n1, n2)``, ``CASE.json`` what it was made from and its checksum. The label map is written
first: where a process is killed in between, the checksum does not fit, and it is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg3d.errors import InputError
from medseg3d.files import replacing
from medseg3d.preprocessing.chunked_array import ChunkedArray, save_array
from medseg3d.preprocessing.store import file_checksum
from medseg3d.records import read_record, write_record


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousRecord:
    """``CASE.json``; ``digest`` stands for the stored case and for the weights that made the label map."""

    digest: str
    checksum: str


class PreviousMaps:
    """The label maps in ``folder``; ``patch_size`` (network order) shapes the chunks that are written."""

    def __init__(self, folder: Path, *, patch_size: Sequence[int]) -> None:
        self.folder = folder
        self.patch_size = tuple(patch_size)

    def is_current(self, name: str, digest: str) -> bool:
        """The label map is there, undamaged, and made from what ``digest`` stands for."""
        try:
            record = read_record(self._record(name), PreviousRecord, "previous stage")
            return record.digest == digest and file_checksum(self._array(name)) == record.checksum
        except (InputError, OSError):
            return False

    def write(self, name: str, indices: np.ndarray, digest: str) -> None:
        """Write a label map in place of an older one."""
        path = self._array(name)
        with replacing(path) as temporary:
            save_array(temporary, indices, self.patch_size)
            checksum = file_checksum(temporary)
        write_record(self._record(name), PreviousRecord(digest=digest, checksum=checksum), "previous stage")

    def read(self, name: str) -> ChunkedArray:
        """Sliced like an array, from any thread."""
        return ChunkedArray(self._array(name))

    def _array(self, name: str) -> Path:
        return self.folder / f"{name}.b2nd"

    def _record(self, name: str) -> Path:
        return self.folder / f"{name}.json"
