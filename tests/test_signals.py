"""A signal ends a command tidily where that is quick, and within the grace in any case."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAD = """
import hashlib, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from medseg3d import signals
from medseg3d.files import replacing
from medseg3d.locks import locked
signals.GRACE_SECONDS = float(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)
out = Path(sys.argv[2])
def write():
    with replacing(out / "image.nii.gz") as temporary:
        temporary.write_bytes(b"1")
        time.sleep(0.2)  # until the main thread waits for this one
        print("ready", flush=True)
        time.sleep(30)
"""
WAITS_FOR_WORKERS = """
with signals.ending_on_signals(), locked(out / ".lock", "is being written", advice=""), ThreadPoolExecutor(1) as pool:
    pool.submit(write).result()
"""
IN_NATIVE_CODE = """
def speak():
    (out / "state").write_text("saved")
with signals.ending_on_signals(), signals.last_words(speak):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
"""
GOES_ON = """
with signals.ending_on_signals():
    print("ready", flush=True)
    time.sleep(0.5)
(out / "done").touch()
"""


def start(code: str, out: Path, *, grace: float, ignored: str = "") -> subprocess.Popen[str]:
    """A process that has said that it is ready."""
    lines = f"import signal; signal.signal(signal.{ignored}, signal.SIG_IGN)\n" if ignored else ""
    command = [sys.executable, "-c", lines + HEAD + code, str(grace), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.fault(
    "C", "SIGTERM or SIGHUP while worker threads are busy", "ends within the grace, exit 143 or 129; temporary files and locks are removed"
)
def test_workers_hold_the_end_up_no_longer_than_the_grace(tmp_path: Path, number: signal.Signals) -> None:
    process = start(WAITS_FOR_WORKERS, tmp_path, grace=0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert "Run the same command again" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("first", "second"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGINT")])
@pytest.mark.fault("C", "a second signal", "ends at once, also while worker threads are busy")
def test_a_second_signal_ends_at_once(tmp_path: Path, first: str, second: str) -> None:
    process = start(WAITS_FOR_WORKERS, tmp_path, grace=60)
    process.send_signal(getattr(signal, first))
    time.sleep(0.3)
    assert process.poll() is None, "the first one waits for the worker"
    process.send_signal(getattr(signal, second))
    process.communicate(timeout=15)
    assert process.returncode == 128 + getattr(signal, second)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("C", "SIGTERM in the middle of a long training step", "the state before the step is saved within ten seconds")
def test_native_code_that_takes_long_does_not_keep_the_state_from_being_saved(tmp_path: Path) -> None:
    process = start(IN_NATIVE_CODE, tmp_path, grace=0.2)
    time.sleep(0.3)  # until it is in there
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert (tmp_path / "state").read_text(encoding="utf-8") == "saved"


@pytest.mark.fault("C", "a terminal that is closed under nohup", "SIGHUP stays ignored, the work goes on")
def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    process = start(GOES_ON, tmp_path, grace=0.1, ignored="SIGHUP")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert (tmp_path / "done").exists()
