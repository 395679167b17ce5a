"""Whether the files of a case are those that something was made from: a digest of their bytes, and a stamp that is read faster.

Both change with the extension that reads the files, where one does: another version may see another image in the same bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from medseg3d.data.soft_labels import soft_files
from medseg3d.errors import ImageReadError
from medseg3d.extensions import version_of
from medseg3d.images.opening import disk_error

if TYPE_CHECKING:
    from medseg3d.data.dataset import Case


def digest_of(case: Case) -> str:
    """A digest of the bytes of a case's files as they lie on the disk: channels in order, then the label map.

    It changes with what the case was annotated for as well. Raises :class:`ImageReadError` for a file that is missing or may not be read,
    :class:`StorageError` for a disk that fails.
    """
    digest = hashlib.blake2b(digest_size=16)
    paths = list(dict.fromkeys((channel.path, channel.files) for channel in case.channels))
    for path, files in (*paths, *((file, ()) for file in _label_files(case))):
        try:
            for file in files or _files_of(path):
                digest.update(f"{file.stat().st_size} ".encode())
                with file.open("rb", buffering=0) as stream:
                    while block := stream.read(1 << 20):
                        digest.update(block)
        except FileNotFoundError:
            raise ImageReadError(f"{case.name}: {path}: no such file.") from None
        except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise ImageReadError(f"{case.name}: {path}: cannot be read ({error.strerror}). Check the file and its permissions.") from None
        except OSError as error:
            raise disk_error(path, error) from error
    digest.update(" ".join(f"{paths.index((channel.path, channel.files))}:{channel.volume}" for channel in case.channels).encode())
    digest.update(f"{_readers_of(case)}{_annotated(case)}".encode())
    return digest.hexdigest()


def stamp_of(case: Case) -> str:
    """Sizes and times of a case's files: while it is the same, they have not been written since, and need not be read to know it.

    Empty where a file cannot be looked at.
    """
    places = dict.fromkeys((channel.path, channel.files) for channel in case.channels)
    places.update({(file, ()): None for file in _label_files(case)})
    try:
        states = [file.stat() for path, files in places for file in files or _files_of(path)]
    except (OSError, ImageReadError):
        return ""
    return ",".join(f"{state.st_size}-{state.st_mtime_ns}" for state in states) + _readers_of(case) + _annotated(case)


def _annotated(case: Case) -> str:
    """What the case was annotated for, which no file of it says; empty for everything."""
    return "" if case.annotated is None else f" annotated for {'; '.join(sorted(case.annotated))}"


def _label_files(case: Case) -> tuple[Path, ...]:
    if case.label is None:
        return ()
    return soft_files(case.label) if case.soft else (case.label,)


def _readers_of(case: Case) -> str:
    """The extensions that read the files of a case; empty where none does."""
    from medseg3d import images

    paths = [*(channel.path for channel in case.channels), *([case.label] if case.label else [])]
    return "".join(f" {version_of(provider)}" for path in paths if (provider := images.provider_of(path)))


def _files_of(path: Path) -> tuple[Path, ...]:
    """The files that an image consists of, all of them plain files: a pipe would wait for ever."""
    from medseg3d import images

    found = images.data_files(path)
    if not path.is_dir():
        for file in found:
            images.check_is_file(file)
    return found
