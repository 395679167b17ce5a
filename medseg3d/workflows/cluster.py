"""Train folds and predict cases on other machines: the workers of a dask scheduler, or whatever an executor stands for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from medseg3d.data.dataset import Case
from medseg3d.dicom_objects.outputs import Outputs
from medseg3d.errors import BusyError, CaseFailure, InputError
from medseg3d.evaluation.metrics import Evaluation
from medseg3d.execution import memory_budget, run_cases
from medseg3d.locks import STALE_SECONDS
from medseg3d.models.model import Model
from medseg3d.models.parts import names_of
from medseg3d.options import PredictOptions, TrainOptions
from medseg3d.work_folder import fold_names
from medseg3d.workflows.load import predicting_model
from medseg3d.workflows.predict_cases import predict_cases
from medseg3d.workflows.prediction_record import PredictedCase, RecordFile
from medseg3d.workflows.train import train
from medseg3d.workflows.workers import Workers, begin_on_worker, resolved, tell_client

_WORKER_LOCK = threading.Lock()
"""A worker may have several threads, and has one device."""
Evaluations = dict[str | None, Evaluation | None]


def train_there(
    root: Path, work: Path | None, folds: Sequence[TrainOptions], workers: Workers
) -> Iterator[tuple[TrainOptions, Evaluations]]:
    """Train and validate folds, each on a worker, in the order in which they finish; from and into the same folders.

    A fold whose worker died goes on from its last epoch on another one. An error of a fold is raised; the others end where they are.
    """
    place, waiting = None if work is None else work.resolve(), list(folds)
    running: dict[Future[Evaluations], TrainOptions] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers.num_networks:
                fold = waiting.pop(0)
                running[workers.networks.submit(_train_on_worker, root.resolve(), place, fold)] = fold
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield running.pop(future), future.result()
    finally:
        for future in running:
            future.cancel()


def _train_on_worker(root: Path, work: Path | None, options: TrainOptions) -> Evaluations:
    """A fold may be locked still by a worker that died on another machine, until nothing was heard of it for some minutes."""
    until = time.monotonic() + 2 * STALE_SECONDS
    with _WORKER_LOCK:
        begin_on_worker()
        while True:
            try:
                return train(root, work, options, tell_client)
            except BusyError:
                if time.monotonic() > until:
                    raise
                time.sleep(LOCK_PAUSE)


LOCK_PAUSE = 10.0
"""Seconds between two looks at a fold that is locked."""


def predict_there(
    place: Path,
    options: PredictOptions,
    identity: str,
    pending: Sequence[Case],
    targets: dict[str, Path],
    *,
    executor: Executor,
    record: RecordFile,
    outputs: Outputs,
) -> Iterator[tuple[Case, PredictedCase | CaseFailure]]:
    """Each case wherever the executor runs it, from and into the same folders; a worker loads the model once."""
    absolute = {name: target.resolve() for name, target in targets.items()}
    work = partial(
        _predict_on_worker,
        place=place.resolve(),
        options=replace(  # tuples: a worker keeps the model by its options
            options,
            folds=fold_names(options.folds),
            configuration=names_of(options.configuration),
            scales=tuple(options.scales),
            output_type=tuple(options.output_type),
            flips=None if options.flips is None else tuple(options.flips),
            statistics=False,  # measured here, when all are done
            distances=(),
            radiomics=False,
        ),
        identity=identity,
        targets=absolute,
        record=replace(record, path=record.path.resolve()),
        outputs=outputs,
    )
    found = [resolved(case) for case in pending]
    done = run_cases(work, found, name_of=lambda case: case.name, stage="predict", num_workers=len(pending) or 1, executor=executor)
    for outcome in done:
        yield outcome.item, outcome.failure or outcome.result  # type: ignore[misc]


def _predict_on_worker(
    case: Case,
    *,
    place: Path,
    options: PredictOptions,
    identity: str,
    targets: dict[str, Path],
    record: RecordFile,
    outputs: Outputs,
) -> PredictedCase:
    with _WORKER_LOCK:
        model = _worker_model(place, options, identity)
        budget = memory_budget(options.max_ram_gb)
        ((_, result),) = predict_cases(
            model, [case], targets, record=record, probabilities=options.wanted_probabilities, budget=budget, outputs=outputs
        )
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
