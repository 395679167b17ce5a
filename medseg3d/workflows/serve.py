"""Serve: a trained model answers over HTTP. It is loaded once; images come in, label maps go out."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg3d.errors import InputError
from medseg3d.events import Event, Listener, silent
from medseg3d.options import ServeOptions
from medseg3d.serving.settings import ServeSettings, is_loopback
from medseg3d.workflows.load import model_for

NO_OPTIONS = ServeOptions()


def serve(model: Path, options: ServeOptions = NO_OPTIONS, on: Listener = silent) -> None:
    """Serve a model until SIGINT or SIGTERM comes; the job at hand ends then, those that wait are dropped, all files are removed.

    ``model`` is anything that :func:`~medseg3d.models.loading.load_model` takes; port 0 takes a free one.
    Raises :class:`InputError` where an argument or the model is wrong, the port is taken, or others could ask without a token.
    """
    try:
        from medseg3d.serving.app import build_app
        from medseg3d.serving.server import run_server
    except ImportError as error:
        raise InputError(f"Serving needs fastapi, uvicorn and python-multipart ({error}): pip install 'medseg3d[serve]'") from error
    settings = ServeSettings.of(options)
    host, token = settings.host, settings.token
    with _listening(settings) as listening:
        loaded = model_for(model, options)
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
