"""Serve: a trained model answers over HTTP. It is loaded once; images come in, label maps go out."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg3d.errors import InputError
from medseg3d.events import Event, Listener, silent
from medseg3d.models.loading import load_model
from medseg3d.serving.settings import ServeSettings, is_loopback
from medseg3d.work_folder import Folds


def serve(
    model: Path,
    *,
    configuration: str | None = None,
    folds: Folds = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    max_upload_mb: float = 2048,
    max_upload_minutes: float = 30,
    max_unpacked_mb: float = 8192,
    max_jobs: int = 16,
    keep_minutes: float = 60,
    max_kept: int = 100,
    device: str = "auto",
    tta: str = "auto",
    step: float = 0.5,
    on: Listener = silent,
) -> None:
    """Serve a model until SIGINT or SIGTERM comes; the job at hand ends then, those that wait are dropped, all files are removed.

    ``model`` is anything that :func:`~medseg3d.models.loading.load_model` takes; limits as in :class:`ServeSettings`; port 0
    takes a free one.
    Raises :class:`InputError` where an argument or the model is wrong, the port is taken, or others could ask without a token.
    """
    try:
        from medseg3d.serving.app import build_app
        from medseg3d.serving.server import run_server
    except ImportError as error:
        raise InputError(f"Serving needs fastapi, uvicorn and python-multipart ({error}): pip install 'medseg3d[serve]'") from error
    settings = ServeSettings(
        host=host,
        port=port,
        token=token,
        max_upload_mb=max_upload_mb,
        max_upload_minutes=max_upload_minutes,
        max_unpacked_mb=max_unpacked_mb,
        max_jobs=max_jobs,
        keep_minutes=keep_minutes,
        max_kept=max_kept,
    )
    if not 0 < step <= 1:
        raise InputError(f"--step {step}: expected a number above 0 and up to 1.")
    mirroring = {"auto": None, "on": True, "off": False}[tta]
    with _listening(settings) as listening:
        loaded = load_model(model, configuration=configuration, folds=folds, device=device, mirroring=mirroring, step=step)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        guard = "with the token" if token is not None else "from this machine only"
        on(Event(stage="serve", message=f"Serving {loaded.plan.dataset} at {address}, {guard}. Stop with Ctrl+C."))
        if token is not None and not is_loopback(host):
            on(Event(stage="serve", message="Images and the token travel unencrypted: put a reverse proxy with TLS in front."))
        run_server(build_app(loaded, settings), listening)


@contextmanager
def _listening(settings: ServeSettings) -> Iterator[socket.socket]:
    """The server's address, taken before the model is loaded."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = socket.create_server((settings.host.strip("[]"), settings.port), family=family)
    except OSError as error:
        raise InputError(f"{settings.host}, port {settings.port}: cannot be served on ({error.strerror}). Name another --port.") from None
    with listening:
        yield listening
