"""Predict: images → label maps on their own grids. The next image is read and the last label map written while the network works."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from medseg3d.boundary import CaseBoundary
from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.digests import digest_of
from medseg3d.data.prediction_cases import find_prediction_cases
from medseg3d.data.reading import RawCase
from medseg3d.errors import CaseFailure, InputError, PlanMismatchError
from medseg3d.events import Event, Listener, silent
from medseg3d.execution import memory_budget, peak_memory, reset_peak_memory, run_cases
from medseg3d.files import check_writable, file_digest, remove_file, replacing
from medseg3d.fingerprint.familiarity import CHECK, REFUSED, in_words
from medseg3d.images import case_name, ending_of, read_header, write_label_map
from medseg3d.images.header import REFUSED_ENDINGS
from medseg3d.images.readers import READERS, writable
from medseg3d.models.loading import load_model
from medseg3d.models.model import Model
from medseg3d.options import PredictOptions
from medseg3d.prediction.predict_case import PreparedCase
from medseg3d.prediction.probability_file import probability_array, probability_file, scratch_file, write_probabilities
from medseg3d.prediction.sliding_window import SHARE_FOR_SUMS
from medseg3d.wording import counted, listed
from medseg3d.work_folder import fold_names
from medseg3d.workflows.cluster import cluster_workers
from medseg3d.workflows.prediction_record import PredictedCase, Predictions, RecordFile, is_as_recorded, record_name, recorded

logger = logging.getLogger(__name__)
_WORKER_LOCK = threading.Lock()
NO_OPTIONS = PredictOptions()


READING_BYTES_PER_VOXEL = 12
"""Of an image: what its file holds, float32, and one more of that while it is resampled; the resampled image comes on top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictResult:
    """Files written, files kept from an earlier call, cases that failed, by file name how each was made, and the model's identity."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    failures: tuple[CaseFailure, ...]
    cases: dict[str, PredictedCase] = field(default_factory=dict)
    model: str = ""


def predict(
    source: Path | Sequence[Case],
    output: Path,
    options: PredictOptions = NO_OPTIONS,
    *,
    dataset: Path = Path(),
    work: Path | None = None,
    model: Path | None = None,
    executor: Executor | None = None,
    on: Listener = silent,
) -> PredictResult:
    """Predict a folder of images, one image, or cases of a dataset, by ``model``, else by what ``work`` or ``dataset`` holds.

    Outputs that the same model made from the same input are kept; others raise :class:`InputError` without ``overwrite``.
    A case that fails is listed, the others go on. The next image is read ahead where both fit ``max_ram_gb``. With an ``executor``
    (``dask.distributed.Client.get_executor()``) every case is predicted wherever it runs, from and into the same folders.
    """
    if options.cluster is not None and executor is None:
        with cluster_workers(options.cluster) as workers:
            return predict(source, output, options, dataset=dataset, work=work, model=model, executor=workers, on=on)
    if isinstance(source, Path) and not source.exists():
        raise InputError(f"{source}: no such file or folder.")
    strict, probabilities = options.strict, options.probabilities
    load = partial(
        load_model,
        next(place for place in (model, work, dataset) if place is not None),
        configuration=options.configuration,
        folds=fold_names(options.folds),
        device=options.device,
        precision=options.precision,
        mirroring=options.mirroring,
        step=options.step,
        skip_empty=options.skip_empty,
    )
    loaded = load().strictly() if strict else load()
    cases, unusable = _cases_of(source, loaded.plan.channels, options.series_description)
    targets = _targets(cases, source, output)
    folder = next(iter(targets.values())).parent
    check_writable(folder)
    earlier = recorded(folder)
    kept, pending = _divide(
        _part(cases, options.part), targets, earlier, loaded.identity, overwrite=options.overwrite, probabilities=probabilities
    )
    record = RecordFile(folder / record_name(options.part))
    if executor is None:
        budget = memory_budget(options.max_ram_gb)
        made = _predict_here(loaded, pending, targets, record=record, probabilities=probabilities, budget=budget)
    else:
        made = _predict_there(load, loaded.identity, pending, targets, executor, record, probabilities=probabilities, strict=strict)
    _warn_of_changed(kept, earlier)
    doubtful = _doubtful(kept, earlier, strict=strict)
    failures, outputs = [*unusable, *doubtful.values()], {}
    on(Event(stage="predict", total=len(pending)))
    for index, (case, result) in enumerate(made):
        if isinstance(result, CaseFailure):
            failures.append(result)
        else:
            outputs[targets[case.name].name] = result
            if executor is not None and result.warnings:
                logger.warning("%s %s", in_words(case.name, result.warnings), CHECK)
        on(Event(stage="predict", done=index + 1, total=len(pending)))
    return PredictResult(
        written=tuple(folder / name for name in outputs),
        kept=tuple(target for target in kept if target not in doubtful),
        failures=tuple(failures),
        cases=outputs,
        model=loaded.identity,
    )


def _doubtful(kept: Sequence[Path], earlier: Predictions, *, strict: bool) -> dict[Path, CaseFailure]:
    """Outputs of an earlier call with a warning, which is told again; failures where the call is strict now."""
    found = {}
    for target in kept:
        warnings, name = earlier.cases[target.name].warnings, case_name(target)
        if warnings and strict:
            reason = f"{in_words(name, warnings)} {REFUSED} {target} is there from an earlier call."
            found[target] = CaseFailure(case=name, stage="predict", reason=reason)
        elif warnings:
            logger.warning("%s %s", in_words(name, warnings), CHECK)
    return found


def _warn_of_changed(kept: Sequence[Path], earlier: Predictions) -> None:
    changed = [target for target in kept if not is_as_recorded(target, earlier.cases[target.name])]
    if changed:
        logger.warning(
            "%s kept, but changed since predicted: %s. If nobody corrected that by hand, predict again with --overwrite.",
            f"{counted(len(changed), 'output')} {'is' if len(changed) == 1 else 'are'}",
            listed([target.name for target in changed]),
        )


def _cases_of(
    source: Path | Sequence[Case], channels: Sequence[str], series_description: str | None
) -> tuple[tuple[Case, ...], tuple[CaseFailure, ...]]:
    if not isinstance(source, Path):
        return tuple(source), ()
    channel = channels[0] if len(channels) == 1 else ""
    return find_prediction_cases(source, num_channels=len(channels), channel=channel, series_description=series_description)


def _part(cases: Sequence[Case], part: tuple[int, int] | None) -> Sequence[Case]:
    if part is None:
        return cases
    number, total = part
    if not 1 <= number <= total:
        raise InputError(f"--part {number}/{total}: expected two numbers such as 2/8, the first from 1 to the second.")
    return cases[number - 1 :: total]


def _predict_there(
    load: partial[Model],
    identity: str,
    pending: Sequence[Case],
    targets: dict[str, Path],
    executor: Executor,
    record: RecordFile,
    *,
    probabilities: bool,
    strict: bool,
) -> Iterator[tuple[Case, PredictedCase | CaseFailure]]:
    """Each case wherever the executor runs it; a worker loads the model once."""
    absolute = {name: target.resolve() for name, target in targets.items()}
    place, keywords = Path(load.args[0]).resolve(), tuple(sorted(load.keywords.items(), key=lambda item: item[0]))
    work = partial(
        _predict_on_worker,
        place=place,
        keywords=keywords,
        identity=identity,
        targets=absolute,
        record=RecordFile(record.path.resolve()),
        probabilities=probabilities,
        strict=strict,
    )
    found = [replace(case, channels=tuple(_resolved(channel) for channel in case.channels)) for case in pending]
    done = run_cases(work, found, name_of=lambda case: case.name, stage="predict", num_workers=len(pending) or 1, executor=executor)
    for outcome in done:
        yield outcome.item, outcome.failure or outcome.result  # type: ignore[misc]


def _resolved(channel: ChannelFile) -> ChannelFile:
    return replace(channel, path=channel.path.resolve(), files=tuple(file.resolve() for file in channel.files))


def _predict_on_worker(
    case: Case,
    *,
    place: Path,
    keywords: tuple[tuple[str, Any], ...],
    identity: str,
    targets: dict[str, Path],
    record: RecordFile,
    probabilities: bool,
    strict: bool,
) -> PredictedCase:
    with _WORKER_LOCK:  # a worker may have several threads, and the model has one device
        model = _worker_model(place, keywords, identity)
        model = model.strictly() if strict else model
        budget = memory_budget(None)
        ((_, result),) = _predict_here(model, [case], targets, record=record, probabilities=probabilities, budget=budget)
    if isinstance(result, CaseFailure):
        raise InputError(result.reason)
    return result


@lru_cache(maxsize=1)
def _worker_model(place: Path, keywords: tuple[tuple[str, Any], ...], identity: str) -> Model:
    """Loaded once, and again where the weights have changed since: ``identity`` is that of the model that was asked for."""
    model = load_model(place, **dict(keywords))
    if model.weights_identity not in identity:
        raise InputError(f"{place}: a worker sees other weights there than were asked for. Its folders are not the same.")
    return model


@dataclass(slots=True)
class _Ready:
    """A case that is read, and perhaps prepared already, with the seconds that this took."""

    case: Case
    digest: str
    raw: RawCase | None
    prepared: PreparedCase | None
    seconds: dict[str, float]


def _predict_here(
    model: Model,
    pending: Sequence[Case],
    targets: dict[str, Path],
    *,
    record: RecordFile,
    probabilities: bool,
    budget: int,
) -> Iterator[tuple[Case, PredictedCase | CaseFailure]]:
    """Three cases in work at once: one is read and prepared, one is in the network, one is written; within ``budget`` bytes.

    ``record`` is added to by the thread that writes, as soon as an output is whole: a run that is stopped then keeps it.
    """
    writing: list[tuple[Case, Future[PredictedCase]]] = []
    boundary = CaseBoundary("predict")
    sums = int(SHARE_FOR_SUMS * budget) if model.device.device.type == "cpu" else None  # of a GPU its own memory counts
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        upcoming: Future[_Ready] | None = None
        for index, case in enumerate(pending):
            current = upcoming or reader.submit(_read, case, model)
            upcoming = None
            reset_peak_memory()
            prepared = ready = indices = chances = None
            with boundary.around(case.name) as attempt:
                ready = current.result()
                prepared = _prepare(ready, model)
                if index + 1 < len(pending) and prepared.nbytes + _bytes_to_read(pending[index + 1], model) <= budget:
                    upcoming = reader.submit(_read, pending[index + 1], model)
                with (
                    _timed(ready.seconds, "segment"),
                    probability_array(targets[case.name], prepared, model.plan.labels, probabilities) as chances,
                ):
                    indices = model.segment(prepared, probabilities=chances, max_bytes=sums)
            if attempt.failure is not None or prepared is None or ready is None or indices is None:
                current = prepared = ready = indices = chances = None  # type: ignore[assignment]  # before the next one is prepared
                if attempt.failure is not None:
                    yield case, attempt.failure
                continue
            prepared = replace(prepared, images={}, inside=None)  # while it is written, only its header is needed
            chances = None  # the file is whole then; some systems cannot delete a file that is mapped
            writing.append((case, writer.submit(_write, targets[case.name], indices, probabilities, prepared, model, ready, record)))
            prepared = ready = indices = None
            if len(writing) > 1:  # one file is being written while the next image is in the network
                yield from _written(*writing.pop(0), boundary)
        for waiting in writing:
            yield from _written(*waiting, boundary)
    boundary.finish()


def _written(case: Case, future: Future[PredictedCase], boundary: CaseBoundary) -> Iterator[tuple[Case, PredictedCase | CaseFailure]]:
    """What became of an output; a disk that fails ends the run."""
    made = None
    with boundary.around(case.name) as attempt:
        made = future.result()
    outcome = attempt.failure or made
    if outcome is not None:
        yield case, outcome


def _read(case: Case, model: Model) -> _Ready:
    """Read a case, and prepare it where the network runs on another device: on a CPU that would only take its cores."""
    ready = _Ready(case, digest_of(case), None, None, {})
    with _timed(ready.seconds, "read"):
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
    target: Path,
    indices: np.ndarray,
    with_probabilities: bool,
    prepared: PreparedCase,
    model: Model,
    ready: _Ready,
    record: RecordFile,
) -> PredictedCase:
    """Write and record the outputs of one case; probabilities of an earlier model do not stay beside a new label map."""

    began = time.perf_counter()

    def made(digest: str) -> PredictedCase:
        peak = peak_memory()
        return PredictedCase(
            model=model.identity,
            input_digest=ready.digest,
            output_digest=digest,
            finished=time.time(),
            seconds={**ready.seconds, "write": time.perf_counter() - began},
            peak_mib=None if peak is None else round(peak / 2**20, 1),
            shape=prepared.header.geometry.shape,
            precision=model.device.precision,
            warnings=prepared.warnings,
        )

    try:
        remove_file(probability_file(target))
        with replacing(target) as temporary:
            write_label_map(temporary, model.finish(indices, prepared.orientation), prepared.header)
            digest = file_digest(temporary)
            record.start(target, made(digest), digest)
        if with_probabilities:
            write_probabilities(target, (model.plan.labels.num_outputs, *prepared.header.geometry.shape), model.plan.labels)
    finally:
        remove_file(scratch_file(target))
    case = made(digest)
    record.add(target, case)
    return case


def _targets(cases: Sequence[Case], source: Path | Sequence[Case], output: Path) -> dict[str, Path]:
    ending = "" if output.is_dir() else ending_of(output)
    reader = READERS.get(ending)
    if reader is not None and reader.write is not None:
        if len(cases) != 1:
            raise InputError(f"{output}: names one file, but the input holds {len(cases)} cases. Name an output folder.")
        return {cases[0].name: output}
    if reader is not None or ending in REFUSED_ENDINGS:
        raise InputError(f"{output}: label maps are not written as {ending}. Name a file that ends with {writable()}, or a folder.")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; name a folder, or a file that ends with .nii.gz.")
    if isinstance(source, Path) and source.is_dir() and output.exists() and output.resolve() == source.resolve():
        raise InputError(f"{output}: the output folder is the input folder; the images would be overwritten. Name another one.")
    return {case.name: output / f"{case.name}.nii.gz" for case in cases}


def _divide(
    cases: Sequence[Case],
    targets: dict[str, Path],
    record: Predictions,
    identity: str,
    *,
    overwrite: bool,
    probabilities: bool,
) -> tuple[list[Path], list[Case]]:
    kept, pending, foreign = [], [], []
    for case in cases:
        target, entry = targets[case.name], record.cases.get(targets[case.name].name)
        inputs = {channel.path.resolve() for channel in case.channels}
        if target.resolve() in inputs:
            raise InputError(f"{target}: the output would overwrite the input image. Name another output.")
        complete = target.exists() and (not probabilities or probability_file(target).exists())
        if complete and entry is not None and entry.model == identity and _is_of(case, entry.input_digest):
            kept.append(target)
        elif target.exists() and not overwrite and (entry is None or entry.model != identity):
            foreign.append(target)
        else:
            pending.append(case)
    if foreign:
        raise PlanMismatchError(
            f"{counted(len(foreign), 'output')} exist that another model, other settings or another program made ({foreign[0]} …). "
            "Name another output folder, or give --overwrite to replace them."
        )
    return kept, pending


def _is_of(case: Case, digest: str) -> bool:
    """Whether a record is of these inputs; of inputs that cannot be read it is none, and reading will say what is wrong."""
    try:
        return digest_of(case) == digest
    except InputError:
        return False
