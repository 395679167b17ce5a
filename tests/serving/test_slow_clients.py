"""Clients that are slow, or many, lock nobody out."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medseg3d.data.dataset import Case
from medseg3d.models.model import Model
from medseg3d.serving.jobs import MAX_UPLOADS, MAX_UPLOADS_OF_ONE, Job, Jobs, QueueFullError

pytest.importorskip("fastapi", reason="needs medseg3d[serve]")
pytest.importorskip("uvicorn", reason="needs medseg3d[serve]")
pytest.importorskip("python_multipart", reason="needs medseg3d[serve]")


@contextlib.contextmanager
def queue(max_jobs: int) -> Iterator[tuple[Jobs, threading.Event]]:
    """A queue whose jobs wait until they are let go."""
    go = threading.Event()

    def work(job: Job, tell: Any) -> dict[str, float]:
        go.wait(30)
        return {}

    with Jobs(work, max_jobs=max_jobs, keep_seconds=60, max_kept=10) as jobs:
        yield jobs, go
        go.set()


def test_uploads_that_are_not_whole_take_no_place_in_the_queue() -> None:
    with queue(1) as (jobs, go):
        slow = [jobs.open() for _ in range(20)]
        quick = jobs.open()
        jobs.enqueue(quick, Case(name="a", channels=()))
        with pytest.raises(QueueFullError):
            jobs.open()  # it says so before anything is sent
        with pytest.raises(QueueFullError):
            jobs.enqueue(slow[0], Case(name="b", channels=()))
        go.set()
        quick.ended.result(timeout=30)
        jobs.enqueue(slow[0], Case(name="b", channels=()))


@pytest.mark.parametrize(("client", "most"), [("192.0.2.7", MAX_UPLOADS_OF_ONE), ("127.0.0.1", MAX_UPLOADS)])
def test_one_client_cannot_take_all_uploads(client: str, most: int) -> None:
    with queue(1) as (jobs, _):
        for _ in range(most):
            jobs.open(client)
        with pytest.raises(QueueFullError):
            jobs.open(client)
        if most < MAX_UPLOADS:
            jobs.open("192.0.2.8")


@pytest.fixture
def address(model: Model, reader: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A real server on a port of this machine."""
    import uvicorn

    from medseg3d.serving.app import build_app
    from medseg3d.serving.protocol import PatientProtocol
    from medseg3d.serving.settings import ServeSettings

    monkeypatch.setattr(PatientProtocol, "head_seconds", 0.3)
    app = build_app(model, ServeSettings(max_jobs=2), reader)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", ws="none", http=PatientProtocol))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        yield listening.getsockname()
        server.should_exit = True
        thread.join(30)


def ask(address: tuple[str, int], text: str) -> bytes:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(text.encode())
        return b"".join(iter(lambda: connection.recv(2**16), b""))


HEALTH = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.fault(
    "F",
    "20 connections that send a byte a second, in the body or in the headers",
    "closed after 20 seconds; all other clients are answered meanwhile",
)
def test_a_connection_without_whole_headers_is_closed_and_others_are_answered(address: tuple[str, int]) -> None:
    slow = [socket.create_connection(address, timeout=30) for _ in range(20)]
    try:
        for connection in slow:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: loc")
        assert ask(address, HEALTH).startswith(b"HTTP/1.1 200")
        assert [connection.recv(100) for connection in slow] == [b""] * 20
    finally:
        for connection in slow:
            connection.close()


def test_a_later_request_of_a_connection_has_to_be_whole_too(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(HEALTH.replace("Connection: close\r\n", "").encode())
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /health HT")
        while connection.recv(2**16):
            pass  # the rest of the first answer, then the end


def test_uploads_that_hang_leave_the_queue_to_others(address: tuple[str, int], scan: Path) -> None:
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    head += "Content-Length: {}\r\nConnection: close\r\n\r\n"
    slow = [socket.create_connection(address, timeout=30) for _ in range(20)]
    try:
        for connection in slow:
            connection.sendall(head.format(10**6).encode() + b"--x\r\n")
        body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii.gz"\r\n\r\n' + scan.read_bytes() + b"\r\n--x--\r\n"
        with socket.create_connection(address, timeout=60) as connection:
            connection.sendall(head.format(len(body)).encode() + body)
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        for connection in slow:
            connection.close()
