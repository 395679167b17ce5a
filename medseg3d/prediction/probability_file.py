"""Probabilities on disk: rows go into a file that is mapped into memory, which then becomes ``CASE.npz`` beside the label map.

They take disk and not memory, whatever the number of classes.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from medseg3d.files import NOT_SUPPORTED, remove_file, replacing, scratch_name, storage, storage_errors
from medseg3d.geometry import to_canonical
from medseg3d.labels import Labels
from medseg3d.prediction.predict_case import PreparedCase


@contextmanager
def probability_array(target: Path, prepared: PreparedCase, labels: Labels, is_wanted: bool) -> Iterator[np.ndarray | None]:
    """Zeros ``(K, S, A, R)`` float16 in a file beside the output, which the system writes when memory gets short; None if not wanted."""
    if not is_wanted:
        yield None
        return
    scratch = scratch_file(target)
    shape = (labels.num_outputs, *prepared.header.geometry.shape)
    try:
        with storage_errors(target):
            storage().make_folder(scratch.parent)
            with scratch.open("wb") as file:
                _reserve(file, 2 * prod(shape))
            storage().finish(scratch)
        array: np.ndarray = np.memmap(scratch, np.float16, "r+", shape=shape, order="F")
        yield to_canonical(array, prepared.orientation)
    except BaseException:
        remove_file(scratch)
        raise


def write_probabilities(target: Path, shape: tuple[int, ...], labels: Labels) -> None:
    """``CASE.npz`` from the scratch file, slice by slice: ``probabilities`` (class, x, y, z) float16 and the labels' ``values``."""
    with (
        scratch_file(target).open("rb") as scratch,
        replacing(probability_file(target)) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
    ):
        with file.open("probabilities.npy", "w", force_zip64=True) as stream:
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": True, "shape": shape}
            np.lib.format.write_array_header_2_0(stream, header)
            shutil.copyfileobj(scratch, stream, 1 << 20)
        with file.open("values.npy", "w") as stream:
            np.lib.format.write_array(stream, np.asarray(labels.values))


def probability_file(target: Path) -> Path:
    """``CASE.npz`` beside the label map ``CASE.nii.gz``."""
    return target.with_name(target.name.removesuffix(".gz").removesuffix(".nii") + ".npz")


def scratch_file(target: Path) -> Path:
    """The file that is mapped while probabilities come; whoever asked for it removes it."""
    return scratch_name(probability_file(target))


def _reserve(file: BinaryIO, num_bytes: int) -> None:
    """Make room for all bytes now: a mapped file that finds the disk full later ends the process without a word."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
        else:
            return
    block = bytes(1 << 20)
    for start in range(0, num_bytes, len(block)):
        file.write(block[: num_bytes - start])
