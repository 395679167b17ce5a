"""A server of the tiny model, spoken to without a network."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medseg3d
from medseg3d.models.model import Model


@pytest.fixture(scope="session")
def model(trained: Path) -> Model:
    return medseg3d.load_model(trained, device="cpu")


@pytest.fixture(scope="session")
def scan(trained: Path) -> Path:
    return trained / "imagesTs/ball_6_0000.nii.gz"


@pytest.fixture(scope="session")
def reader(model: Model) -> Iterator[Any]:
    """Processes that read, for all servers of a run."""
    from medseg3d.serving.reader import Reader

    made = Reader(model.plan)
    yield made
    made.close()


@pytest.fixture
def serving(model: Model, reader: Any) -> Iterator[Callable[..., Any]]:
    """``serving(max_jobs=2)`` is a client of a server with these settings, which runs until the test ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Starlette wants another client than older ones
        from fastapi.testclient import TestClient
    from medseg3d.serving.app import build_app
    from medseg3d.serving.settings import ServeSettings

    with ExitStack() as stack:

        def start(**settings: Any) -> Any:
            app = build_app(model, ServeSettings(**settings), reader)
            return stack.enter_context(TestClient(app, base_url="http://localhost", raise_server_exceptions=False))

        yield start


@pytest.fixture
def client(serving: Callable[..., Any]) -> Any:
    return serving()


class Brake:
    """Holds each prediction in its network until it is released."""

    def __init__(self) -> None:
        self.reached, self.released = threading.Semaphore(0), threading.Event()

    def wait_until_reached(self) -> None:
        assert self.reached.acquire(timeout=30)

    def release(self) -> None:
        self.released.set()


@pytest.fixture
def brake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Brake]:
    held, segment = Brake(), Model.segment

    def slow(self: Model, *positional: Any, **keywords: Any) -> np.ndarray:
        held.reached.release()
        assert held.released.wait(60)
        return segment(self, *positional, **keywords)

    monkeypatch.setattr(Model, "segment", slow)
    yield held
    held.release()
