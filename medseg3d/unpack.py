"""A zip into a folder, or not at all: nothing outside of the folder, nothing but plain files, no more than allowed."""

from __future__ import annotations

import io
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from medseg3d.errors import InputError
from medseg3d.files import storage_errors, unreadable

MIB = 1 << 20
MAX_MEMBERS = 20_000
"""A long CT has 3,000 slices."""
MAX_DIRECTORY_BYTES = 8 * MIB
"""Of the list of members, which is read at once: 20,000 of them with long names take half of it."""
MAX_NAME = 1000
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Python decompresses these two in pieces of bounded size, and never more of a member than the list of members says."""
_LEFT_OUT = ("DICOMDIR", "__MACOSX", "Thumbs.db")
"""What systems and viewers add: indices, companions, previews."""


def unpack(
    archive: Path, folder: Path, *, max_bytes: int, is_wanted: Callable[[PurePosixPath], bool] = lambda name: True
) -> tuple[Path, ...]:
    """Unpack the wanted files of a zip into a new folder, hidden ones and what systems add left out, and return them.

    Raises :class:`InputError` before anything is written where a name leads out of the folder, a member is a link or encrypted, or
    there are too many members or bytes; and where the zip is damaged.
    """
    with _opened(archive) as opened, storage_errors(folder):
        members = [(member, name) for member, name in _checked(archive, opened.infolist()) if is_wanted(name)]
        if sum(member.file_size for member, _ in members) > max_bytes:
            raise InputError(f"{archive}: the zip unpacks to more than the {max_bytes / MIB:g} MiB that are allowed.")
        folder.mkdir(parents=True)
        for member, name in members:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(member) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, MIB)
        return tuple(folder / name for _, name in members)


def names_in(archive: Path) -> tuple[PurePosixPath, ...]:
    """The files that a zip would unpack to; raises as :func:`unpack`."""
    with _opened(archive) as opened:
        return tuple(name for _, name in _checked(archive, opened.infolist()))


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        stream = _CautiousFile(archive)
    except OSError as error:
        raise unreadable(archive, error) from error
    try:
        with stream, zipfile.ZipFile(stream) as opened:
            yield opened
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise InputError(f"{archive}: the zip is damaged or no zip ({error}). Pack or send it again.") from None


class _CautiousFile(io.FileIO):
    """Refuses to be read in one piece larger than the list of members of an honest archive, or from before its beginning."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise InputError(f"{self.name!s}: the zip lists too many members; expected at most {MAX_MEMBERS}.")
        return super().read(-1 if size is None else size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET and offset < 0:
            raise zipfile.BadZipFile("a member lies before the beginning of the file")
        return super().seek(offset, whence)


def _checked(archive: Path, infos: Sequence[zipfile.ZipInfo]) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    members = [member for member in infos if not member.filename.endswith("/")]
    if len(members) > MAX_MEMBERS:
        raise InputError(f"{archive}: {len(members)} members in the zip; expected at most {MAX_MEMBERS}.")
    checked = []
    for member in members:
        name = _checked_member_name(archive, member.filename)
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise InputError(f"{archive}: the member {str(name)!r} is a link or a device; expected plain files.")
        if member.flag_bits & 1:
            raise InputError(f"{archive}: the zip is encrypted; send it without a password.")
        if member.compress_type not in _READABLE:
            raise InputError(f"{archive}: packed by a rare method ({member.compress_type}); pack it with deflate, as usual.")
        if not any(part.startswith(".") or part in _LEFT_OUT for part in name.parts):
            checked.append((member, name))
    names = {name for _, name in checked}
    if len(names) < len(checked) or any(parent in names for name in names for parent in name.parents):
        raise InputError(f"{archive}: two members of the zip have the same name; pack it anew.")
    return checked


def _checked_member_name(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name.replace("\\", "/"))
    is_outside = path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", str(path)) is not None
    is_odd = not path.parts or not name.isprintable() or len(name) > MAX_NAME or any(len(part.encode()) > 255 for part in path.parts)
    if is_outside or is_odd:
        reason = "leads out of the folder" if is_outside else "cannot be used"
        raise InputError(f"{archive}: the name {name[:100]!r} in the zip {reason}; nothing was unpacked.")
    return path
