"""How a command ends that a signal stops: one message, or one document with ``--json``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medseg3d.signals import STOPPED

SIGNAL = """
import os, signal, time
os.kill(os.getpid(), signal.{name})
time.sleep(10)
"""
"""An extension: the signal comes while it runs."""
HELD_UP = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
finally:
    os.kill(os.getpid(), signal.{name})
    time.sleep(30)
"""


def stopped(code: str, name: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A command that gets a signal."""
    extension = folder / "stop.py"
    extension.write_text(code.format(name=name), encoding="utf-8")
    command = [sys.executable, "-m", "medseg3d", "info", str(folder), "--extension", str(extension), *more]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 128 + getattr(signal, name)
    return ended


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_command_that_is_stopped_prints_one_document(name: str, tmp_path: Path) -> None:
    ended = stopped(SIGNAL, name, tmp_path, "--json")
    assert json.loads(ended.stdout) == {"error": "InterruptedBySignalError", "message": STOPPED, "exit_code": ended.returncode}
    assert ended.stderr == ""


def test_without_json_it_prints_a_line_on_standard_error(tmp_path: Path) -> None:
    ended = stopped(SIGNAL, "SIGINT", tmp_path)
    assert (ended.stdout, ended.stderr) == ("", f"\n{STOPPED}\n")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_so_does_one_that_a_second_signal_ends_at_once(name: str, tmp_path: Path) -> None:
    ended = stopped(HELD_UP, name, tmp_path, "--json")
    assert json.loads(ended.stdout)["exit_code"] == ended.returncode
