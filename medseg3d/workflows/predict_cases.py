"""Predict cases one after the other: the next image is read and the last label map written while the network works."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from medseg3d.boundary import CaseBoundary
from medseg3d.data.dataset import Case
from medseg3d.data.digests import digest_of
from medseg3d.data.reading import RawCase
from medseg3d.dicom_objects.made_by import made_by
from medseg3d.dicom_objects.outputs import NIFTI_ONLY, Outputs
from medseg3d.dicom_objects.result import Result
from medseg3d.dicom_objects.source import SourceSeries
from medseg3d.errors import CaseFailure, InputError
from medseg3d.execution import peak_memory, reset_peak_memory
from medseg3d.files import file_digest, remove_file, replacing
from medseg3d.images import read_header
from medseg3d.models.model import Model
from medseg3d.options import ProbabilityFormat
from medseg3d.prediction.predict_case import PreparedCase
from medseg3d.prediction.probability_file import (
    probability_array,
    remove_probabilities,
    scratch_file,
    scratch_probabilities,
    write_probabilities,
)
from medseg3d.prediction.sliding_window import SHARE_FOR_SUMS
from medseg3d.workflows.prediction_record import PredictedCase, RecordFile

READING_BYTES_PER_VOXEL = 12
"""Of an image: what its file holds, float32, and one more of that while it is resampled; the resampled image comes on top."""


@dataclass(slots=True)
class _Ready:
    """A case that is read, and perhaps prepared already, with the seconds that this took."""

    case: Case
    digest: str
    raw: RawCase | None
    prepared: PreparedCase | None
    seconds: dict[str, float]
    source: SourceSeries | None = None


def predict_cases(
    model: Model,
    pending: Sequence[Case],
    targets: dict[str, Path],
    *,
    record: RecordFile,
    probabilities: ProbabilityFormat | None,
    budget: int,
    outputs: Outputs = NIFTI_ONLY,
    on_windows: Callable[[int, int, int], None] = lambda place, done, total: None,
) -> Iterator[tuple[Case, PredictedCase | CaseFailure]]:
    """Three cases in work at once: one is read and prepared, one is in the network, one is written; within ``budget`` bytes.

    ``record`` is added to by the thread that writes, as soon as an output is whole: a run that is stopped then keeps it.
    ``on_windows(place, done, all)`` hears of the windows of the case at ``place``, on a CPU.
    """
    boundary = CaseBoundary("predict")
    writing: list[tuple[Case, Future[PredictedCase]]] = []
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        line = _Line(
            model, pending, targets, probabilities or ("medseg3d" if outputs.needs_probabilities else None), outputs, budget, reader
        )
        for index, case in enumerate(pending):
            reset_peak_memory()
            done = None
            with boundary.around(case.name) as attempt:
                done = line.segment(index, partial(on_windows, index))
            if attempt.failure is not None:
                yield case, attempt.failure
            if done is None:
                continue
            writing.append((case, writer.submit(_write, targets[case.name], probabilities, model, done, record, outputs)))
            done = None
            if len(writing) > 1:  # one file is being written while the next image is in the network
                yield from _written(*writing.pop(0), boundary)
        for waiting in writing:
            yield from _written(*waiting, boundary)
    boundary.finish()


@dataclass(slots=True)
class _Segmented:
    """A case that went through the network: its label indices, and of what was prepared only the header, which is needed to write them."""

    ready: _Ready
    prepared: PreparedCase
    indices: np.ndarray


@dataclass(slots=True)
class _Line:
    """The cases on their way through reader and network; ``upcoming`` is the one that is read meanwhile."""

    model: Model
    pending: Sequence[Case]
    targets: dict[str, Path]
    kept: ProbabilityFormat | None
    outputs: Outputs
    budget: int
    reader: ThreadPoolExecutor
    upcoming: Future[_Ready] | None = None

    def segment(self, index: int, on_windows: Callable[[int, int], None]) -> _Segmented:
        """The case at this place; what it took is free again when this returns, but for the label indices."""
        case, model = self.pending[index], self.model
        current, self.upcoming = self.upcoming or self.reader.submit(_read, case, model, self.outputs), None
        ready = current.result()
        del current
        prepared = _prepare(ready, model)
        following = self.pending[index + 1] if index + 1 < len(self.pending) else None
        if following is not None and prepared.nbytes + _bytes_to_read(following, model) <= self.budget:
            self.upcoming = self.reader.submit(_read, following, model, self.outputs)
        sums = int(SHARE_FOR_SUMS * self.budget) if model.device.device.type == "cpu" else None  # of a GPU its own memory counts
        with (
            _timed(ready.seconds, "segment"),
            probability_array(self.targets[case.name], prepared, model.plan.labels, self.kept) as chances,
        ):
            prepared = model.locate(prepared, max_bytes=sums)
            indices = model.segment(prepared, probabilities=chances, max_bytes=sums, on_windows=on_windows)
        return _Segmented(ready, replace(prepared, images={}, inside=None), indices)


def _written(case: Case, future: Future[PredictedCase], boundary: CaseBoundary) -> Iterator[tuple[Case, PredictedCase | CaseFailure]]:
    """What became of an output; a disk that fails ends the run."""
    made = None
    with boundary.around(case.name) as attempt:
        made = future.result()
    outcome = attempt.failure or made
    if outcome is not None:
        yield case, outcome


def _read(case: Case, model: Model, outputs: Outputs) -> _Ready:
    """Read a case, and prepare it where the network runs on another device: on a CPU that would only take its cores."""
    ready = _Ready(case, digest_of(case), None, None, {})
    with _timed(ready.seconds, "read"):
        ready.source = outputs.source(case)  # what has none is refused before it is predicted
        ready.raw = model.read(case)
    if model.device.device.type != "cpu":
        ready.prepared = _prepare(ready, model)
    return ready


def _prepare(ready: _Ready, model: Model) -> PreparedCase:
    if ready.prepared is None and ready.raw is not None:
        with _timed(ready.seconds, "preprocess"):
            ready.prepared = model.prepare(ready.raw, in_place=True)
    prepared, ready.raw, ready.prepared = ready.prepared, None, None
    if prepared is None:
        raise ValueError(f"{ready.case.name}: was not read")
    return prepared


def _bytes_to_read(case: Case, model: Model) -> int:
    """What the next case takes while it is read and prepared; nothing without a header: reading will say what is wrong with it."""
    try:
        geometry = read_header(case.channels[0].path, files=case.channels[0].files).geometry
    except InputError:
        return 0
    volume_mm3 = prod(geometry.shape) * prod(geometry.spacing)
    resampled = 0.0
    for member in model.members:
        spacing = member.configuration.spacing
        resampled += volume_mm3 / prod(spacing if len(spacing) == 3 else (max(geometry.spacing), *spacing))
    return int(len(case.channels) * (READING_BYTES_PER_VOXEL * prod(geometry.shape) + 4 * resampled))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - began


def _write(
    target: Path, probabilities: ProbabilityFormat | None, model: Model, done: _Segmented, record: RecordFile, outputs: Outputs
) -> PredictedCase:
    """Write and record the outputs of one case; probabilities of an earlier model do not stay beside a new label map."""
    began, ready, prepared = time.perf_counter(), done.ready, done.prepared
    made = partial(_entry, ready, prepared, model, outputs, began)
    try:
        remove_probabilities(target)
        outputs.remove_beside(target)
        shape = (model.plan.labels.num_outputs, *prepared.header.geometry.shape)
        values = model.finish(done.indices, prepared.orientation)
        result = _result_of(values, target, shape, probabilities, model, ready, outputs)
        with replacing(target) as temporary:
            outputs.write(temporary, outputs.main, values, prepared.header, result)
            digest = file_digest(temporary)
            record.start(target, made(digest), digest)
        outputs.write_beside(target, values, prepared.header, result)
        result = None  # a file that is mapped cannot be deleted on some systems
        if probabilities is not None:
            write_probabilities(target, shape, model.plan.labels, probabilities, prepared.header.geometry)
    finally:
        remove_file(scratch_file(target))
    case = made(digest)
    record.add(target, case)
    return case


def _entry(ready: _Ready, prepared: PreparedCase, model: Model, outputs: Outputs, began: float, digest: str) -> PredictedCase:
    """What is recorded of an output with this digest, whose writing began then."""
    peak = peak_memory()
    return PredictedCase(
        model=model.identity + outputs.identity,
        input_digest=ready.digest,
        output_digest=digest,
        finished=time.time(),
        seconds={**ready.seconds, "write": time.perf_counter() - began},
        peak_mib=None if peak is None else round(peak / 2**20, 1),
        shape=prepared.header.geometry.shape,
        precision=model.device.precision,
        warnings=prepared.warnings,
        notes=prepared.notes,
        beside=outputs.beside_identity,
    )


def _result_of(
    values: np.ndarray,
    target: Path,
    shape: tuple[int, ...],
    probabilities: ProbabilityFormat | None,
    model: Model,
    ready: _Ready,
    outputs: Outputs,
) -> Result | None:
    """What DICOM is made of; None where none is wanted."""
    if ready.source is None:
        return None
    chances = scratch_probabilities(target, shape, probabilities) if outputs.needs_probabilities else None
    return outputs.result(values, model.plan.labels, ready.source, made_by(model.plan.dataset, model.identity), chances)
