"""A server from its start to its end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from medseg3d.errors import InputError
from medseg3d.options import ServeOptions
from medseg3d.workflows.serve import serve

pytest.importorskip("fastapi", reason="needs medseg3d[serve]")
pytest.importorskip("uvicorn", reason="needs medseg3d[serve]")

COMMAND = """
import os, sys, tempfile
from pathlib import Path
from medseg3d.options import ServeOptions
from medseg3d.workflows.serve import serve
tempfile.tempdir = sys.argv[2]
serve(Path(sys.argv[1]), ServeOptions(port=0, device="cpu"), lambda event: print(event, flush=True))
"""


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_server_that_is_stopped_leaves_nothing(trained: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", COMMAND, str(trained), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            assert process.stdout is not None
            address = next(word for line in process.stdout for word in line.split() if word.startswith("http://")).rstrip(",")
            with urllib.request.urlopen(f"{address}/health", timeout=30) as answer:
                assert answer.status == 200
            assert [path.name.startswith("medseg3d-serve-") for path in tmp_path.iterdir()] == [True]
            process.send_signal(number)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_named_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}: cannot be served on"):
            serve(Path("no such model"), ServeOptions(port=port))


def test_an_address_for_others_without_a_token_is_refused_first() -> None:
    with pytest.raises(InputError, match="Give a --token"):
        serve(Path("no such model"), ServeOptions(host="0.0.0.0"))


def test_a_model_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match="no such model"):
        serve(Path("no such model"), ServeOptions(port=0))


def test_what_is_missing_is_said_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "medseg3d.serving.app", None)
    with pytest.raises(InputError, match=r"pip install 'medseg3d\[serve\]'"):
        serve(Path("no such model"))
