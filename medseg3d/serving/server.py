"""The web server: runs an application on an open socket until a signal comes."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from medseg3d.serving.jobs import Jobs
from medseg3d.serving.protocol import PatientProtocol


def run_server(app: FastAPI, listening: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM. Clients that wait for the job at hand get their answer, those in the queue are sent away."""
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="on", ws="none", http=PatientProtocol)
    with _signals_end_here():
        _Server(config, app.state.jobs).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Drops jobs that wait, before it waits for their clients."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs) -> None:
        super().__init__(config)
        self._jobs = jobs

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._jobs.stop()
        await super().shutdown(sockets)


@contextmanager
def _signals_end_here() -> Iterator[None]:
    """uvicorn raises the signal that stopped it once more at its end; by then it has done what it was asked for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
