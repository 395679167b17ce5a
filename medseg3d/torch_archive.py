"""Whether a file that ``torch.save`` wrote is as it was written: torch itself does not compare the checksums in it."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from medseg3d.errors import InputError

BLOCK_BYTES = 4 << 20


def check_archive(path: Path, advice: str) -> None:
    """Compare the checksums of the zip archive; raises :class:`InputError` that ends with ``advice``.

    Other files have none (torch wrote such before 1.6): whoever loads them says what is wrong. Where no checksum fits, torch was told
    to write none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            damaged = [member.filename for member in members if not _is_whole(archive, member)]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return
    if damaged and len(damaged) < len(members):
        raise InputError(f"{path}: damaged: {damaged[0]} in it does not have the checksum that it was written with. {advice}")


def _is_whole(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as stream:
            while stream.read(BLOCK_BYTES):
                pass
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError):
        return False
    return True
