"""The prediction of one upload: as ``medseg3d predict`` makes it of the same file, byte for byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from medseg3d.data.dataset import Case
from medseg3d.dicom_objects.made_by import made_by
from medseg3d.dicom_objects.outputs import NIFTI_ONLY, Outputs
from medseg3d.files import remove_file
from medseg3d.models.model import Model
from medseg3d.prediction.probability_file import probability_array, scratch_file, scratch_probabilities
from medseg3d.serving.reader import Reader
from medseg3d.serving.view import keep_image, keep_prediction, unsure


def predict_upload(
    case: Case,
    output: Path,
    *,
    model: Model,
    reader: Reader,
    tell: Callable[[str], None],
    view: Path | None = None,
    outputs: Outputs = NIFTI_ONLY,
) -> dict[str, float]:
    """Write the label map of a case, and return the seconds of the stages read, preprocess, segment and write.

    With ``view``, a folder that is not there yet, what the viewer shows is kept in it.

    ``model`` has seen no image itself: each upload is compared in float32 as the first one is by the command line. ``tell`` hears
    each stage as it begins. Raises the :class:`InputError` of what is wrong, and ``MemoryError``.
    """
    seconds: dict[str, float] = {}
    networks = model.for_one_image()
    with _timed("read", seconds, tell):
        source = outputs.source(case)
        raw = reader.read(case, output.with_name("image.npy"))
        levels = () if view is None else keep_image(view, raw, networks.plan)
    with _timed("preprocess", seconds, tell):
        prepared = networks.prepare(raw, in_place=True)
        del raw
    labels = networks.plan.labels
    keeping = probability_array(output, prepared, labels, "medseg3d") if outputs.needs_probabilities else unsure(view, prepared, labels)
    with _timed("segment", seconds, tell), keeping as chances:
        indices = networks.segment(prepared, probabilities=chances)
    with _timed("write", seconds, tell):
        prepared = replace(prepared, images={}, inside=None)
        label_map = networks.finish(indices, prepared.orientation)
        maker = made_by(networks.plan.dataset, networks.identity)
        if outputs.needs_probabilities:
            chances = scratch_probabilities(output, (labels.num_outputs, *label_map.shape), "medseg3d")
        result = None if source is None else outputs.result(label_map, labels, source, maker, chances)
        outputs.write(output, outputs.main, label_map, prepared.header, result)
        outputs.write_beside(output, label_map, prepared.header, result)
        remove_file(scratch_file(output))
        if view is not None:
            keep_prediction(view, label_map, prepared, networks.plan, levels, case.name)
    return seconds


@contextmanager
def _timed(stage: str, seconds: dict[str, float], tell: Callable[[str], None]) -> Iterator[None]:
    tell(stage)
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began
