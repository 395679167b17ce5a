"""Start the processes that train one network together, a device each, and stand for them: their events come out, and one error."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from medseg3d.errors import InputError, InterruptedBySignalError, ProcessError
from medseg3d.events import Event, Listener
from medseg3d.execution import available_cores
from medseg3d.extensions import extension_arguments
from medseg3d.options import TrainOptions
from medseg3d.records import from_plain, to_plain
from medseg3d.signals import last_words, stop_on_signals

logger = logging.getLogger(__name__)

SECONDS_TO_END = 10.0
"""A process that is told to end saves its state; later it is killed."""


QUIET_TORCH = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
"""DistributedDataParallel warns of a search for unused parameters that finds none, as in a network of two stages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What each process is asked to do; ``devices`` has one for each."""

    dataset: Path
    work: Path | None
    options: TrainOptions
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A line that a process writes: what happened, a message of its log, or why it failed."""

    event: Event | None = None
    level: int | None = None
    message: str = ""
    exit_code: int | None = None


def train_on_devices(root: Path, work: Path | None, options: TrainOptions, devices: Sequence[str], on: Listener) -> None:
    """Train and validate a fold in one process for each device; they are started as ``torchrun`` starts them.

    Where one of them fails, or is killed, all end within seconds. Raises :class:`ProcessError` with what the first one said, and
    :class:`InterruptedBySignalError` where a signal came: the state is saved then.
    """
    request = Request(dataset=root.absolute(), work=None if work is None else work.absolute(), options=options, devices=tuple(devices))
    with tempfile.TemporaryDirectory() as folder, common_store() as port, stop_on_signals() as stop:
        file = Path(folder) / "request.json"
        file.write_text(json.dumps(to_plain(request)), encoding="utf-8")
        command = [sys.executable, "-m", "medseg3d.workflows.team_member", *extension_arguments(), str(file)]
        team = Processes(command, [environment_of(rank, len(devices), port) for rank in range(len(devices))])
        try:
            with last_words(team.kill):
                for report in team.reports():
                    _pass_on(report, on)
                    if stop.signal_number is not None:
                        team.end()
        finally:
            team.end_and_wait()
    if stop.signal_number is not None:
        raise InterruptedBySignalError(stop.signal_number, "Stopped; the state is saved. Run the same command again to go on.")
    team.raise_failure()


def _pass_on(report: Report | None, on: Listener) -> None:
    if report is None:
        return
    if report.event is not None:
        on(report.event)
    elif report.level is not None:
        logger.log(report.level, "%s", report.message)


def environment_of(rank: int, size: int, port: int) -> dict[str, str]:
    """That of ``torchrun``; the processes talk to each other within this machine."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    own = {name: str(value) for name, value in place.items()}
    own |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    usual = {"OMP_NUM_THREADS": str(max(1, available_cores() // size)), **QUIET_TORCH}
    if sys.platform.startswith("linux"):
        usual["GLOO_SOCKET_IFNAME"] = "lo"  # the name of a host may lead nowhere, as in a container
    return {**usual, **os.environ, **own}


@contextmanager
def common_store() -> Iterator[int]:
    """The port of the store where the processes find each other; it outlives each of them."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    yield store.port
    del store


class Processes:
    """The processes that were started, and the first failure of one."""

    def __init__(self, command: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        self._reports: queue.Queue[Report | None] = queue.Queue()
        self._failure: Report | None = None
        self._end: ProcessError | None = None
        self._told: float | None = None
        # a session of their own: Ctrl-C in a terminal reaches this process alone, which passes it on once
        self._all = [
            subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", start_new_session=True
            )
            for environment in environments
        ]
        for process in self._all:
            if process.stdout is not None:
                threading.Thread(target=self._listen, args=(process.stdout,), name="training process", daemon=True).start()

    def reports(self) -> Iterator[Report | None]:
        """What they say, None now and then, until all have ended; those that are left when one fails are ended."""
        while any(process.poll() is None for process in self._all) or not self._reports.empty():
            with suppress(queue.Empty):
                report = self._reports.get(timeout=0.2)
                if report is not None and report.exit_code is not None:
                    self._failure = self._failure or report
                else:
                    yield report
            yield None
            failed = next((process for process in self._all if process.poll()), None)
            if failed is not None and self._end is None:
                self._end = self._end_of(failed)
                self.end()
            if self._told is not None and time.monotonic() - self._told > SECONDS_TO_END:
                self.kill()

    def _end_of(self, process: subprocess.Popen[str]) -> ProcessError:
        number, code = self._all.index(process) + 1, process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        why = " Where the system kills a process it is mostly short of memory." if code == -signal.SIGKILL else ""
        message = f"Process {number} of {len(self._all)} {how}; the others were ended.{why} The same command goes on from the last epoch."
        return ProcessError(message, 1 if code == 1 else ProcessError.exit_code)

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            report = _report(line)
            if report is None:
                sys.stderr.write(line)
            else:
                self._reports.put(report)
        stream.close()

    def end(self) -> None:
        """Tell all to save and end."""
        if self._told is None:
            self._told = time.monotonic()
            for process in self._all:
                if process.poll() is None:
                    process.terminate()

    def kill(self) -> None:
        """End those that are left, at once."""
        for process in self._all:
            if process.poll() is None:
                process.kill()

    def end_and_wait(self) -> None:
        """None is left afterwards."""
        self.end()
        for process in self._all:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=SECONDS_TO_END)
        self.kill()
        for process in self._all:
            process.wait()
            if process.stdin is not None:
                process.stdin.close()

    def raise_failure(self) -> None:
        """Raise :class:`ProcessError` where one has failed."""
        if self._failure is not None:
            raise ProcessError(self._failure.message, self._failure.exit_code or 1)
        if self._end is not None:
            raise self._end


def _report(line: str) -> Report | None:
    """What a line says; None where it is no report, as a library prints something."""
    try:
        document: Any = json.loads(line)
        return from_plain(document, Report, "a training process")
    except (ValueError, InputError):
        return None
