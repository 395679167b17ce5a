"""Probabilities on disk: rows go into a file that is mapped into memory, which then becomes ``CASE.npz`` beside the label map.

They take disk and not memory, whatever the number of classes.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from medseg3d.errors import InputError
from medseg3d.files import NOT_SUPPORTED, remove_file, replacing, scratch_name, storage, storage_errors, write_text
from medseg3d.geometry import Geometry, to_canonical
from medseg3d.labels import Labels
from medseg3d.options import ProbabilityFormat
from medseg3d.prediction.predict_case import PreparedCase


@contextmanager
def probability_array(
    target: Path, prepared: PreparedCase, labels: Labels, wanted: ProbabilityFormat | None
) -> Iterator[np.ndarray | None]:
    """Zeros ``(K, S, A, R)`` float16 in a file beside the output, which the system writes when memory gets short; None if not wanted."""
    if wanted is None:
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
        yield to_canonical(scratch_probabilities(target, shape, wanted, mode="r+"), prepared.orientation)
    except BaseException:
        remove_file(scratch)
        raise


def scratch_probabilities(
    target: Path, shape: tuple[int, ...], wanted: ProbabilityFormat | None, *, mode: Literal["r", "r+"] = "r"
) -> np.ndarray:
    """Probabilities (class, x, y, z) in the scratch file; for nnU-Net classes lie one after the other, z first."""
    scratch = scratch_file(target)
    if wanted == "nnunet":
        return np.memmap(scratch, np.float16, mode, shape=(shape[0], *shape[:0:-1])).transpose(0, 3, 2, 1)
    return np.memmap(scratch, np.float16, mode, shape=shape, order="F")


def write_probabilities(target: Path, shape: tuple[int, ...], labels: Labels, wanted: ProbabilityFormat, grid: Geometry) -> None:
    """``CASE.npz`` from the scratch file, slice by slice; ``shape`` is (class, x, y, z).

    ``probabilities`` float16 in that order and the labels' ``values``; for nnU-Net (class, z, y, x) alone, and its facts beside them.
    """
    is_nnunet = wanted == "nnunet"
    with (
        scratch_file(target).open("rb") as scratch,
        replacing(probability_file(target)) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
    ):
        with file.open("probabilities.npy", "w", force_zip64=True) as stream:
            stored = (shape[0], *shape[:0:-1]) if is_nnunet else shape
            header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": not is_nnunet, "shape": stored}
            np.lib.format.write_array_header_2_0(stream, header)
            shutil.copyfileobj(scratch, stream, 1 << 20)
        if not is_nnunet:
            with file.open("values.npy", "w") as stream:
                np.lib.format.write_array(stream, np.asarray(labels.values))
    if is_nnunet:
        write_text(facts_file(target), json.dumps(_facts_of(grid), indent=2) + "\n")


def _facts_of(grid: Geometry) -> dict[str, object]:
    """What nnU-Net keeps of an image that SimpleITK read, under its names: world axes are LPS there, spacings those of z, y, x."""
    to_lps = np.diag([-1.0, -1.0, 1.0])
    return {
        "sitk_stuff": {
            "spacing": list(grid.spacing),
            "origin": [float(value) for value in to_lps @ np.asarray(grid.origin)],
            "direction": [float(value) for value in (to_lps @ np.asarray(grid.direction)).ravel()],
        },
        "spacing": list(grid.spacing[::-1]),
    }


def check_nnunet_labels(labels: Labels) -> None:
    """Raise :class:`InputError` where nnU-Net could not know which class a channel is of: there the place is the value."""
    if labels.values != tuple(range(labels.num_classes)):
        raise InputError(
            f"--probabilities-format nnunet: nnU-Net's labels are 0, 1, 2 and so on, these are {', '.join(map(str, labels.values))}. Leave "
            "the format out: CASE.npz then holds the values beside the probabilities."
        )


def has_probabilities(target: Path, wanted: ProbabilityFormat | None) -> bool:
    """What is wanted lies beside a label map already."""
    is_there = probability_file(target).exists()
    return wanted is None or (is_there and facts_file(target).exists() == (wanted == "nnunet"))


def remove_probabilities(target: Path) -> None:
    """Those of an earlier model do not stay beside a new label map."""
    remove_file(probability_file(target))
    remove_file(facts_file(target))


def facts_file(target: Path) -> Path:
    """``CASE.nnunet.json`` beside the label map, in the place of nnU-Net's pickle."""
    return probability_file(target).with_suffix(".nnunet.json")


def probability_file(target: Path) -> Path:
    """``CASE.npz`` beside the label map ``CASE.nii.gz``."""
    name = target.name
    for ending in (".gz", ".nii", ".dcm", ".seg", ".rtstruct", ".sr"):
        name = name.removesuffix(ending)
    return target.with_name(f"{name}.npz")


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
