"""The prediction of one upload: as ``medseg3d predict`` makes it of the same file, byte for byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from medseg3d.data.dataset import Case
from medseg3d.images import write_label_map
from medseg3d.models.model import Model
from medseg3d.serving.reader import Reader
from medseg3d.serving.view import keep_image, keep_prediction, unsure


def predict_upload(
    case: Case, output: Path, *, model: Model, reader: Reader, tell: Callable[[str], None], view: Path | None = None
) -> dict[str, float]:
    """Write the label map of a case, and return the seconds of the stages read, preprocess, segment and write.

    With ``view``, a folder that is not there yet, what the viewer shows is kept in it.

    ``model`` has seen no image itself: each upload is compared in float32 as the first one is by the command line. ``tell`` hears
    each stage as it begins. Raises the :class:`InputError` of what is wrong, and ``MemoryError``.
    """
    seconds: dict[str, float] = {}
    networks = model.for_one_image()
    with _timed("read", seconds, tell):
        raw = reader.read(case, output.with_name("image.npy"))
        levels = () if view is None else keep_image(view, raw, networks.plan)
    with _timed("preprocess", seconds, tell):
        prepared = networks.prepare(raw, in_place=True)
        del raw
    with _timed("segment", seconds, tell), unsure(view, prepared, networks.plan.labels) as chances:
        indices = networks.segment(prepared, probabilities=chances)
    with _timed("write", seconds, tell):
        prepared = replace(prepared, images={}, inside=None)
        label_map = networks.finish(indices, prepared.orientation)
        write_label_map(output, label_map, prepared.header)
        if view is not None:
            keep_prediction(view, label_map, prepared, networks.plan, levels, case.name)
    return seconds


@contextmanager
def _timed(stage: str, seconds: dict[str, float], tell: Callable[[str], None]) -> Iterator[None]:
    tell(stage)
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began
