"""Refuse images that name other files: a header that says where its voxels lie could name any file of the server."""

from __future__ import annotations

from pathlib import Path

from medseg3d.errors import ImageReadError, InputError
from medseg3d.images import data_files, ending_of
from medseg3d.images.readers import METAIMAGE, NRRD, READERS, SEGMENTATION

DETACHED = (".nhdr", ".mhd")


def taken() -> str:
    """Endings of images that may be sent, for messages: those whose header names other files are not taken, and segmentations are none."""
    return ", ".join(ending for ending in READERS if ending not in DETACHED and not ending.startswith(".seg."))


def check_attached(path: Path) -> None:
    """Raises :class:`InputError` where the voxels do not lie in the file itself, or its header cannot be read."""
    ending = ending_of(path)
    if ending in DETACHED:
        raise InputError(f"{path}: a header whose voxels lie in another file. Send one file: .nii.gz, .nrrd or .mha.")
    if READERS.get(ending) not in (NRRD, SEGMENTATION, METAIMAGE):
        return
    try:
        is_attached, reason = data_files(path) == (path,), ""
    except ImageReadError as error:
        is_attached, reason = False, f" ({str(error).removeprefix(f'{path}: ').rstrip('.')})"
    if not is_attached:
        raise InputError(
            f"{path}: not a {ending} file with its voxels inside{reason}. Send it as .nii.gz, or write it with the voxels inside."
        )
