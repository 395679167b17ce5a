"""Refuse images that name other files: a header that says where its voxels lie could name any file of the server."""

from __future__ import annotations

import re
from pathlib import Path

from medseg3d.errors import InputError
from medseg3d.images import ending_of
from medseg3d.serving.settings import MIB

MAX_HEADER_BYTES = MIB
"""Headers of text have a few hundred bytes."""
READERS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
"""ITK chooses by content, and some of its other formats (HDF5) can name files as well."""
DETACHED = (".nhdr", ".mhd")

_NRRD_END = re.compile(rb"\r?\n\r?\n")
_NRRD_FILE = re.compile(rb"data\s*file", re.IGNORECASE)
_META_LOCAL = re.compile(rb"^ElementDataFile[ \t]*=[ \t]*LOCAL[ \t]*\r?$", re.MULTILINE)


def check_attached(path: Path) -> None:
    """Raises :class:`InputError` where the voxels do not lie in the file itself."""
    ending = ending_of(path)
    if ending in DETACHED:
        raise InputError(f"{path}: a header whose voxels lie in another file. Send one file: .nii.gz, .nrrd or .mha.")
    if ending not in READERS:
        return
    with path.open("rb") as file:
        beginning = file.read(MAX_HEADER_BYTES)
    is_attached = _is_attached_nrrd(beginning) if ending == ".nrrd" else _is_attached_meta(beginning)
    if not is_attached or _reader_of(path) != READERS[ending]:
        raise InputError(f"{path}: not a {ending} file with its voxels inside. Send it as .nii.gz, or write it with the voxels inside.")


def _is_attached_nrrd(beginning: bytes) -> bool:
    end = _NRRD_END.search(beginning)
    return beginning.startswith(b"NRRD") and end is not None and _NRRD_FILE.search(beginning, 0, end.start()) is None


def _is_attached_meta(beginning: bytes) -> bool:
    """The first ``ElementDataFile`` ends the header, and there is none before it in any spelling."""
    end = _META_LOCAL.search(beginning)
    return end is not None and beginning[: end.end()].lower().count(b"elementdatafile") == 1


def _reader_of(path: Path) -> str:
    import SimpleITK as sitk

    return str(sitk.ImageFileReader.GetImageIOFromFileName(str(path)))
