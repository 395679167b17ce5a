"""Predict cases on other machines: the workers of a dask scheduler, or whatever an executor stands for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.errors import CaseFailure, InputError
from medseg3d.execution import memory_budget, run_cases
from medseg3d.extensions import loaded_extensions, use_extension
from medseg3d.models.model import Model
from medseg3d.options import PredictOptions
from medseg3d.work_folder import fold_names
from medseg3d.workflows.load import predicting_model
from medseg3d.workflows.predict_cases import predict_cases
from medseg3d.workflows.prediction_record import PredictedCase, RecordFile

_WORKER_LOCK = threading.Lock()


@contextmanager
def cluster_workers(address: str) -> Iterator[Executor]:
    """Run functions on the workers of the scheduler at ``address``. Raises :class:`InputError` where none answers, or without dask."""
    try:
        from distributed import Client  # an optional extra
    except ImportError:
        raise InputError("--cluster needs dask: pip install 'medseg3d[cluster]'.") from None
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"--cluster {address}: no dask scheduler answers there ({error}).") from None
    with client:
        for extension in loaded_extensions():  # they see the same files
            client.run(use_extension, str(extension.path))
        yield client.get_executor()


def predict_there(
    place: Path,
    options: PredictOptions,
    identity: str,
    pending: Sequence[Case],
    targets: dict[str, Path],
    *,
    executor: Executor,
    record: RecordFile,
) -> Iterator[tuple[Case, PredictedCase | CaseFailure]]:
    """Each case wherever the executor runs it, from and into the same folders; a worker loads the model once."""
    absolute = {name: target.resolve() for name, target in targets.items()}
    work = partial(
        _predict_on_worker,
        place=place.resolve(),
        options=replace(options, folds=fold_names(options.folds)),
        identity=identity,
        targets=absolute,
        record=RecordFile(record.path.resolve()),
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
    options: PredictOptions,
    identity: str,
    targets: dict[str, Path],
    record: RecordFile,
) -> PredictedCase:
    with _WORKER_LOCK:  # a worker may have several threads, and the model has one device
        model = _worker_model(place, options, identity)
        budget = memory_budget(None)
        ((_, result),) = predict_cases(model, [case], targets, record=record, probabilities=options.probabilities, budget=budget)
    if isinstance(result, CaseFailure):
        raise InputError(result.reason)
    return result


@lru_cache(maxsize=1)
def _worker_model(place: Path, options: PredictOptions, identity: str) -> Model:
    """Loaded once, and again where the weights have changed since: ``identity`` is that of the model that was asked for."""
    model = predicting_model(place, options)
    if model.weights_identity not in identity:
        raise InputError(f"{place}: a worker sees other weights or extensions there than were asked for. Its folders are not the same.")
    return model
