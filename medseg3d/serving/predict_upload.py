"""The prediction of one upload: as ``medseg3d predict`` makes it of the same file, byte for byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path

from medseg3d.dataset import Case
from medseg3d.execution import free_memory
from medseg3d.images import read_header, write_label_map
from medseg3d.model import Model

MIN_BYTES_PER_VOXEL = 8
"""Of an image in float32 and what its file holds; an image for which not even this is free would take the server down."""


def predict_upload(case: Case, output: Path, *, model: Model, tell: Callable[[str], None]) -> dict[str, float]:
    """Write the label map of a case, and return the seconds of the stages read, preprocess, segment and write.

    ``model`` has seen no image itself: each upload is compared in float32 as the first one is by the command line. ``tell`` hears
    each stage as it begins. Raises the :class:`InputError` of what is wrong, and ``MemoryError``.
    """
    seconds: dict[str, float] = {}
    networks = model.for_one_image()
    with _timed("read", seconds, tell):
        _check_memory(case)
        raw = model.read(case)
    with _timed("preprocess", seconds, tell):
        prepared = networks.prepare(raw, in_place=True)
        del raw
    with _timed("segment", seconds, tell):
        indices = networks.segment(prepared)
    with _timed("write", seconds, tell):
        prepared = replace(prepared, images={}, inside=None)
        write_label_map(output, networks.finish(indices, prepared.orientation), prepared.header)
    return seconds


def _check_memory(case: Case) -> None:
    """A header may claim any size; a folder of DICOM files lies on the disk already, slice by slice."""
    path = case.channels[0].path
    if path.is_dir():
        return
    shape = read_header(path).geometry.shape
    if MIN_BYTES_PER_VOXEL * len(case.channels) * prod(shape) > free_memory():
        raise MemoryError(f"{case.name}: an image of {' x '.join(map(str, shape))} voxels does not fit the server's memory.")


@contextmanager
def _timed(stage: str, seconds: dict[str, float], tell: Callable[[str], None]) -> Iterator[None]:
    tell(stage)
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began
