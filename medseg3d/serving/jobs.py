"""The queue: one upload after the other is predicted, and its label map is kept for a while.

A job is ``receiving`` while its files come, ``queued``, ``running``, then ``done``, ``failed``, or ``dropped`` where it was deleted or the
server stopped before its turn. One thread predicts; all else only changes records under a lock.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import torch

from medseg3d.data.dataset import Case
from medseg3d.dicom_objects.outputs import ENDINGS, NIFTI_ONLY, Outputs
from medseg3d.errors import MedsegError, StorageError
from medseg3d.files import register_temporary, storage_errors
from medseg3d.options import OutputType
from medseg3d.serving.job_folder import job_folder
from medseg3d.serving.settings import is_loopback

logger = logging.getLogger(__name__)

State = Literal["receiving", "queued", "running", "done", "failed", "dropped"]
Reason = Literal["input", "memory", "storage", "defect", "stopped", "deleted"]

ID_BYTES = 16
"""Whoever knows the id of a job gets its label map, so that it must not be guessed."""
MAX_UPLOADS, MAX_UPLOADS_OF_ONE = 64, 8
"""That come at once, so that slow clients neither fill the disk nor lock others out."""
MAX_VIEWS = 8
"""Ended jobs whose slices are kept: a few that somebody looks at, where label maps of a hundred are."""
UPLOAD, LABELS, VIEW = "upload", "labels", "view"
USUAL_SECONDS = 10.0
"""What the first client that is sent away is told to wait."""


class QueueFullError(Exception):
    """As many jobs as may be wait or are in work."""


class StoppingError(Exception):
    """The server takes no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no label map: the kind of reason, and a sentence without paths of the server."""

    reason: Reason
    message: str


def _uncancellable() -> Future[None]:
    """Clients wait for it, and a client that goes away cancels what it waits for."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One upload and what becomes of it; only :class:`Jobs` changes it. ``is_viewed``: slices are to be kept for the viewer;
    ``outputs``: what is written.

    ``seconds`` are those of the stages, first the wait in the queue; ``warnings`` what the command line would have printed.
    ``ended`` resolves when nothing will change any more. ``client`` is the address that it comes from.
    """

    id: str
    folder: Path
    client: str = ""
    is_viewed: bool = False
    outputs: Outputs = NIFTI_ONLY
    state: State = "receiving"
    case: Case | None = None
    stage: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failure: Failure | None = None
    changed_at: float = field(default_factory=time.monotonic)
    ended: Future[None] = field(default_factory=_uncancellable)

    @property
    def upload(self) -> Path:
        """Where its files come; deleted as soon as it ended."""
        return self.folder / UPLOAD

    @property
    def labels(self) -> Path:
        """The label map, or the first of what is written, where it is done."""
        return self.folder / f"{LABELS}{ENDINGS[self.outputs.main]}"

    def file_of(self, kind: OutputType) -> Path:
        """What is written of a kind."""
        return {self.outputs.main: self.labels, **self.outputs.beside(self.labels)}[kind]

    @property
    def view(self) -> Path:
        """What the viewer shows, where it was asked for."""
        return self.folder / VIEW


Work = Callable[[Job, Callable[[str], None]], dict[str, float]]
"""Makes the label map of a job's case, tells each stage as it begins, and returns the seconds of the stages."""


class Jobs:
    """All jobs of a server; between ``with Jobs(…)`` and its end there is a folder for their files and a thread that predicts."""

    def __init__(self, work: Work, *, max_jobs: int, keep_seconds: float, max_kept: int) -> None:
        self._work = work
        self._max_jobs, self._keep_seconds, self._max_kept = max_jobs, keep_seconds, max_kept
        self._jobs: dict[str, Job] = {}
        self._queue: list[Job] = []
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._is_stopping = False
        self._last_seconds = USUAL_SECONDS
        self._folder: Path | None = None
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._work_off, name="predict")

    def __enter__(self) -> Self:
        self._folder = self._stack.enter_context(job_folder())
        register_temporary(self._folder)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()
        self._thread.join()
        self._stack.close()

    def open(self, client: str = "") -> Job:
        """A new job with a folder for its files; it counts when these are whole.

        Raises :class:`QueueFullError` where the queue is full already or too many uploads come at once, of all clients or of one that is
        not this machine (where a proxy may stand for many), and :class:`StoppingError`.
        """
        with self._changed:
            self.check_open()
            receiving = [job.client for job in self._jobs.values() if job.state == "receiving"]
            may_stand_for_many = not client or is_loopback(client)
            is_crowded = len(receiving) >= MAX_UPLOADS or (receiving.count(client) >= MAX_UPLOADS_OF_ONE and not may_stand_for_many)
            if self._folder is None or is_crowded or self._is_full():
                raise QueueFullError
            name = secrets.token_urlsafe(ID_BYTES)
            job = self._jobs[name] = Job(id=name, folder=self._folder / name, client=client)
        try:
            with storage_errors(job.upload):
                job.upload.mkdir(parents=True)
        except StorageError:
            self.delete(job)  # it would count as an upload that never ends
            raise
        return job

    def _is_full(self) -> bool:
        return sum(job.state in ("queued", "running") for job in self._jobs.values()) >= self._max_jobs

    def check_open(self) -> None:
        """Raises :class:`StoppingError` where no more is taken."""
        if self._is_stopping:
            raise StoppingError

    def enqueue(self, job: Job, case: Case, *, is_viewed: bool = False, outputs: Outputs = NIFTI_ONLY) -> None:
        """The files are there: let the job wait for its turn. Raises :class:`QueueFullError`, :class:`StoppingError`."""
        with self._changed:
            self.check_open()
            if self._is_full():
                raise QueueFullError
            job.case, job.is_viewed, job.outputs, job.state, job.changed_at = case, is_viewed, outputs, "queued", time.monotonic()
            self._queue.append(job)
            self._changed.notify()

    def find(self, name: str) -> Job | None:
        """A job whose files are all there; None for one that is unknown, deleted or too old."""
        self.sweep()
        with self._changed:
            job = self._jobs.get(name)
            return job if job is not None and job.state != "receiving" else None

    def place(self, job: Job) -> int | None:
        """1 for the job that is next; None where it does not wait."""
        with self._changed:
            return self._queue.index(job) + 1 if job in self._queue else None

    @property
    def num_waiting(self) -> int:
        """Jobs in the queue, without the one that is predicted."""
        return len(self._queue)

    @property
    def is_running(self) -> bool:
        """Whether a job is predicted now."""
        return self._running is not None

    @property
    def is_stopping(self) -> bool:
        """Whether no more jobs are taken."""
        return self._is_stopping

    @property
    def retry_after(self) -> int:
        """Seconds after which a place may be free: as long as the last job took."""
        return max(1, math.ceil(self._last_seconds))

    def delete(self, job: Job) -> None:
        """Forget a job and its files. What is predicted already goes on to its end, and is thrown away then."""
        with self._changed:
            self._jobs.pop(job.id, None)
            self._drop(job, Failure(reason="deleted", message="The job was deleted."))
            is_running = job is self._running
        if not is_running:
            shutil.rmtree(job.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Forget ended jobs that are too old or too many, and the slices of all but the latest ones: these are as large as images."""
        with self._changed:
            ended = sorted((job for job in self._jobs.values() if job.ended.done()), key=lambda job: job.changed_at)
            now = time.monotonic()
            surplus = max(0, len(ended) - self._max_kept)
            old = [job for index, job in enumerate(ended) if index < surplus or now - job.changed_at > self._keep_seconds]
            kept = [job for job in ended if job not in old and job.is_viewed]
            for job in kept[: max(0, len(kept) - MAX_VIEWS)]:
                job.is_viewed = False
                shutil.rmtree(job.view, ignore_errors=True)
        for job in old:
            self.delete(job)

    def stop(self) -> None:
        """Take no more jobs and drop those that wait; the one that is predicted ends."""
        with self._changed:
            self._is_stopping = True
            for job in list(self._queue):
                self._drop(job, Failure(reason="stopped", message="The server was stopped before the job's turn. Send it again."))
            self._changed.notify()

    def _drop(self, job: Job, failure: Failure) -> None:
        if job in self._queue:
            self._queue.remove(job)
        if not job.ended.done():
            self._end(job, "dropped", failure)

    def _end(self, job: Job, state: State, failure: Failure | None) -> None:
        job.failure, job.stage, job.state, job.changed_at = failure, None, state, time.monotonic()
        job.ended.set_result(None)

    def _work_off(self) -> None:
        while (job := self._next()) is not None:
            began = time.monotonic()
            failure = self._run(job)
            shutil.rmtree(job.upload, ignore_errors=True)
            with self._changed:
                self._running = None
                if not job.ended.done():
                    self._end(job, "failed" if failure else "done", failure)
                self._last_seconds = time.monotonic() - began
                is_deleted = job.id not in self._jobs
            if is_deleted:
                shutil.rmtree(job.folder, ignore_errors=True)
            logger.info("Job %s…: %s after %.1f s.", job.id[:6], job.state, self._last_seconds)

    def _next(self) -> Job | None:
        """The job whose turn it is, waited for; None when the server stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_stopping)
            if self._is_stopping:
                return None
            job = self._running = self._queue.pop(0)
            now = time.monotonic()
            job.seconds = {"wait": now - job.changed_at}
            job.state, job.changed_at = "running", now
            return job

    def _run(self, job: Job) -> Failure | None:
        def tell(stage: str) -> None:
            job.stage = stage

        if job.case is None:
            raise ValueError(f"Job {job.id} was queued without a case")
        with _warnings_into(job):
            try:
                job.seconds = {**job.seconds, **self._work(job, tell)}  # others may be reading the old one
            except Exception as error:  # whatever one upload meets, the next one is to be served
                return failure_of(error, job)
        return None


def failure_of(error: Exception, job: Job) -> Failure:
    """What to tell of an error, which is logged where it is no fault of the upload."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        logger.error("Job %s…: not enough memory: %s", job.id[:6], without_paths(str(error), job))
        return Failure(reason="memory", message="The server has not enough memory for this image.")
    if isinstance(error, StorageError):
        logger.error("Job %s…: %s", job.id[:6], error)
        return Failure(reason="storage", message="The server's disk is full or failed; the job's files could not be kept.")
    if isinstance(error, MedsegError):
        return Failure(reason="input", message=without_paths(str(error), job))
    logger.error("Job %s…: failed by a defect", job.id[:6], exc_info=error)
    return Failure(reason="defect", message="The server failed by a defect of its own; its log says more.")


def without_paths(message: str, job: Job) -> str:
    """The names of uploaded files in place of where they lie.

    >>> job = Job(id="x", folder=Path("/tmp/serve/x"))
    >>> without_paths("/tmp/serve/x/upload/0/scan.nii.gz: not a NIfTI file, in /tmp/serve.", job)
    'scan.nii.gz: not a NIfTI file, in the server.'
    """
    message = re.sub(rf"{re.escape(str(job.upload))}/(\d+/)?", "", message)
    message = re.sub(rf"{re.escape(str(job.folder))}/?", "", message)
    return message.replace(str(job.folder.parent), "the server")


@contextmanager
def _warnings_into(job: Job) -> Iterator[None]:
    """The warnings that the package logs meanwhile go to the client, and the log only says that there was one: they name the upload.

    Only one job runs at a time.
    """
    package = logging.getLogger("medseg3d")
    listener = _Warnings(job)
    package.addHandler(listener)
    try:
        yield
    finally:
        package.removeHandler(listener)


class _Warnings(logging.Handler):
    def __init__(self, job: Job) -> None:
        super().__init__(logging.WARNING)
        self._job = job

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            self._job.warnings.append(without_paths(record.getMessage(), self._job))
            record.msg, record.args = f"Job {self._job.id[:6]}…: a warning about the image, which the client is told.", ()
