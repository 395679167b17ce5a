"""The web server: runs an application on an open socket until a signal comes."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from medseg3d.serving.jobs import Jobs
from medseg3d.serving.protocol import PatientProtocol
from medseg3d.signals import end_now, listened


def run_server(app: FastAPI, listening: socket.socket) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP; a second one ends at once.

    Clients that wait for the job at hand get their answer, those in the queue are sent away.
    """
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="on", ws="none", http=PatientProtocol)
    server = _Server(config, app.state.jobs)
    with _signals_end_here(server):
        server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """Drops jobs that wait, before it waits for their clients."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs) -> None:
        super().__init__(config)
        self._jobs = jobs

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            end_now(sig)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._jobs.stop()
        await super().shutdown(sockets)


@contextmanager
def _signals_end_here(server: _Server) -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more at its end; by then it has done what it was asked for.

    SIGHUP, which it does not listen to, is taken for SIGTERM, where it is not ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, lambda *_: None) for number in listened()}
    if hasattr(signal, "SIGHUP") and signal.SIGHUP in previous:
        signal.signal(signal.SIGHUP, lambda _, frame: server.handle_exit(signal.SIGTERM, frame))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
