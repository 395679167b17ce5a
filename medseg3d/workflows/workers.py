"""The workers of a dask scheduler, on other machines: functions go to them as to a pool of threads, files lie in folders that all see."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from medseg3d.data.dataset import Case, ChannelFile, Dataset
from medseg3d.errors import CaseFailure, InputError
from medseg3d.events import Event, Listener, silent
from medseg3d.extensions import loaded_extensions, use_extension

TOPIC = "medseg3d"
"""Of the events that workers send."""
GPU = "GPU"
"""The resource that a worker with a GPU is started with: ``dask worker --resources "GPU=1" --nthreads 1``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Where work runs: ``cases`` goes to any worker, ``networks`` to those with a GPU where there are any, and to any otherwise."""

    cases: Executor
    networks: Executor
    num_threads: int
    num_networks: int


@contextmanager
def cluster_workers(address: str | None, on: Listener = silent) -> Iterator[Workers | None]:
    """The workers of the scheduler at ``address``, None for None; what they tell goes to ``on``.

    A worker that dies costs nothing but the time that it spent: others do its work again, from the files that it left. Raises
    :class:`InputError` where no scheduler or no worker answers, or without dask.
    """
    if address is None:
        yield None
        return
    try:
        from distributed import Client  # an optional extra
    except ImportError:
        raise InputError("--cluster needs dask: pip install 'medseg3d[cluster]'.") from None
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f"--cluster {address}: no dask scheduler answers there ({error}).") from None
    with client:
        found = client.scheduler_info(n_workers=-1)["workers"].values()
        if not found:
            raise InputError(f"--cluster {address}: the scheduler has no worker. Start some, with dask worker {address}.")
        client.register_plugin(_extensions_plugin())
        client.subscribe_topic(TOPIC, lambda told: on(event_of(told[1])))
        with_gpu = [worker for worker in found if worker["resources"].get(GPU)]
        is_done = False
        try:
            yield Workers(
                cases=_Pool(client.get_executor(pure=False)),
                networks=_Pool(client.get_executor(pure=False, **({"resources": {GPU: 1}} if with_gpu else {}))),
                num_threads=sum(worker["nthreads"] for worker in found),
                num_networks=len(with_gpu or found),
            )
            is_done = True
        finally:
            if not is_done:  # stopped, or an error: what is in work would go on for nobody, and hold its fold
                client.run(end_on_worker)


_unwanted = threading.Event()
"""In a worker: whoever asked for the work at hand is gone."""


def end_on_worker() -> None:
    """Nobody waits for the work at hand any more."""
    _unwanted.set()


def begin_on_worker() -> None:
    """New work was asked for, by somebody who is there."""
    _unwanted.clear()


def tell_client(event: Event) -> None:
    """A listener for work on a worker: whoever asked for it hears of it.

    Raises :class:`InputError` where nobody wants it any more; a training then goes on from its last epoch when it is asked for again.
    """
    from distributed import get_worker

    if _unwanted.is_set():
        raise InputError("Stopped: whoever asked for this work is gone.")
    get_worker().log_event(TOPIC, told_of(event))


def told_of(event: Event) -> dict[str, Any]:
    """What is sent of an event: how far the work is, a line for the screen, and the cases that it goes on without."""
    failures = [asdict(failure) for failure in event.failures]
    return {"stage": event.stage, "done": event.done, "total": event.total, "message": event.message, "failures": failures}


def event_of(told: dict[str, Any]) -> Event:
    """The event of :func:`told_of`; dask adds who it was."""
    failures = tuple(CaseFailure(**failure) for failure in told["failures"])
    return Event(stage=told["stage"], done=told["done"], total=told["total"], message=told["message"], failures=failures)


def on_absolute_paths(dataset: Dataset) -> Dataset:
    """The same dataset with files that are found from any folder."""
    return replace(dataset, training=tuple(map(resolved, dataset.training)), test=tuple(map(resolved, dataset.test)))


def resolved(case: Case) -> Case:
    """The same case with files that are found from any folder."""
    channels = tuple(_resolved_channel(channel) for channel in case.channels)
    return replace(case, channels=channels, label=None if case.label is None else case.label.resolve())


def _resolved_channel(channel: ChannelFile) -> ChannelFile:
    return replace(channel, path=channel.path.resolve(), files=tuple(file.resolve() for file in channel.files))


def _extensions_plugin() -> Any:
    """What every worker does when it starts, also in the place of one that died: it runs the same extensions, from the same files."""
    from distributed import WorkerPlugin

    class Extensions(WorkerPlugin):  # type: ignore[misc]  # dask may be missing
        def __init__(self, paths: list[str]) -> None:
            self.paths = paths

        def setup(self, worker: Any) -> None:
            for path in self.paths:
                use_extension(path)

    return Extensions([str(extension.path) for extension in loaded_extensions()])


class _Pool(Executor):
    """dask's executor, whose errors are those of a case: work that kills one worker after the other is refused with a reason."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        """As of any executor."""
        future: Future[Any] = Future()
        inner = self._executor.submit(work, *arguments, **keywords)

        def finish(done: Future[Any]) -> None:
            if not future.set_running_or_notify_cancel():
                return
            error = done.exception()
            if error is None:
                future.set_result(done.result())
            elif type(error).__name__ == "KilledWorker":
                future.set_exception(InputError(KILLED))
            else:
                future.set_exception(error)

        inner.add_done_callback(finish)
        return future


KILLED = (
    "every worker that was given this work died, most likely for want of memory. Start workers with more of it (--memory-limit), "
    "or with fewer threads (--nthreads 1)."
)
