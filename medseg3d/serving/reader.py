"""Foreign files are read by processes of their own, with limits of memory and time: one at the door, one for the voxels."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from medseg3d.data.dataset import Case
from medseg3d.data.reading import RawCase
from medseg3d.errors import InputError, StorageError
from medseg3d.execution import free_memory, memory_budget
from medseg3d.extensions import extension_arguments
from medseg3d.plan import Plan
from medseg3d.records import from_plain, to_plain

logger = logging.getLogger(__name__)

SECONDS, BYTES_PER_SECOND, SECONDS_PER_FILE = 60.0, 5e6, 0.1
"""A reader may take a minute, and as long as a slow disk and a slow network drive need for the files."""
MIN_BYTES = 2**30
"""A reader may always take so much, whatever is free: what is needed for a header."""
START_SECONDS = 120.0
MAX_ANSWER = 2**24
"""Characters: a header and some warnings are a few thousand."""


class ReaderDefectError(RuntimeError):
    """The code that reads failed by a defect; the message is its traceback."""


class Reader:
    """Reads uploads for a model; processes start when they are first needed, or by :meth:`warm`, and again after a crash."""

    def __init__(self, plan: Plan) -> None:
        first_line = json.dumps(to_plain(plan))
        self._door, self._voxels = _Process(first_line), _Process(first_line)

    def warm(self) -> None:
        """Start the processes."""
        for process in (self._door, self._voxels):
            process.start()

    def close(self) -> None:
        """End the processes."""
        for process in (self._door, self._voxels):
            process.close()

    def case(self, files: Sequence[Path], *, max_unpacked_bytes: int, seconds: float | None = None) -> Case:
        """The case that uploaded files are: :func:`~medseg3d.serving.cases.uploaded_case`, with its errors."""
        request = {"do": "case", "files": [str(file) for file in files], "max_unpacked_bytes": max_unpacked_bytes}
        answer = self._door.ask(request, seconds=seconds or _seconds_for(files), what=files[0].name)
        return from_plain(answer["result"], Case, "the reader's answer")

    def read(self, case: Case, array: Path, *, seconds: float | None = None) -> RawCase:
        """The voxels of a case, through the file ``array``, which is removed again; warnings are logged.

        Raises the :class:`InputError` of what is wrong, also where the reader crashed or took too long, and ``MemoryError``.
        """
        request = {"do": "read", "case": to_plain(case), "array": str(array), "free_bytes": free_memory()}
        paths = [channel.path for channel in case.channels]
        try:
            answer = self._voxels.ask(request, seconds=seconds or _seconds_for(paths), what=case.name)
            image = np.load(array, mmap_mode="c", allow_pickle=False)
        finally:
            array.unlink(missing_ok=True)
        for text in answer["warnings"]:
            logger.warning("%s", text)
        hints = get_type_hints(RawCase)
        rest = {name: from_plain(value, hints[name], "the reader's answer") for name, value in answer["result"].items()}
        return RawCase(image=image, labels=None, **rest)


def _seconds_for(paths: Sequence[Path]) -> float:
    files = [file for path in paths for file in (path.iterdir() if path.is_dir() else [path])]
    return SECONDS + sum(file.stat().st_size for file in files) / BYTES_PER_SECOND + SECONDS_PER_FILE * len(files)


class _Process:
    """One child, asked by one thread at a time."""

    def __init__(self, first_line: str) -> None:
        self._first_line = first_line
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Have a child that is ready."""
        with self._lock:
            self._running()

    def ask(self, request: dict[str, Any], *, seconds: float, what: str) -> dict[str, Any]:
        """The answer to a request; raises as it says, and :class:`InputError` naming ``what`` where none comes."""
        limits = {"max_bytes": max(MIN_BYTES, memory_budget(None)), "max_seconds": seconds}
        with self._lock:
            child = self._running()
            line, is_late = _exchange(child, json.dumps({**request, **limits}), seconds)
            if not line.endswith("\n"):
                self._child = None
                raise _end_of(child, what, seconds, is_late=is_late)
        answer: dict[str, Any] = json.loads(line)
        _raise_error(answer.get("error"))
        return answer

    def close(self) -> None:
        """End the child; what it reads is of no use any more."""
        child, self._child = self._child, None
        if child is not None:
            _stop(child)

    def _running(self) -> subprocess.Popen[str]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            child = subprocess.Popen(
                [sys.executable, "-m", "medseg3d.serving.reader_process", *extension_arguments()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="ascii",
                env=_environment(),
            )
            line, _ = _exchange(child, self._first_line, START_SECONDS)
            if line != "ready\n":
                _stop(child)
                raise ReaderDefectError("The process that reads uploads did not start.")
            self._child = child
        return self._child


def _environment() -> dict[str, str]:
    """This program's, with the same places of modules and without its secrets."""
    places = os.pathsep.join(place for place in sys.path if place)
    return {name: value for name, value in os.environ.items() if not name.startswith("MEDSEG3D_")} | {"PYTHONPATH": places}


def _exchange(child: subprocess.Popen[str], line: str, seconds: float) -> tuple[str, bool]:
    """Send a line and wait for one, and whether that took too long; the child is killed then."""
    if child.stdin is None or child.stdout is None:
        raise ValueError("the child was started without pipes")
    is_late = threading.Event()

    def kill() -> None:
        is_late.set()
        child.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        child.stdin.write(line + "\n")
        child.stdin.flush()
        return child.stdout.readline(MAX_ANSWER), is_late.is_set()
    except (BrokenPipeError, UnicodeDecodeError):
        return "", is_late.is_set()
    finally:
        timer.cancel()


def _end_of(child: subprocess.Popen[str], what: str, seconds: float, *, is_late: bool) -> Exception:
    """Why a child gave no answer."""
    _stop(child)
    if is_late or child.returncode == -getattr(signal, "SIGXCPU", 0):
        return InputError(f"{what}: reading it took longer than {seconds:.0f} s and was stopped. The file is damaged, or much too large.")
    if child.returncode == -getattr(signal, "SIGKILL", 9):
        return MemoryError(f"{what}: the system ended its reader, as memory is short.")
    return InputError(f"{what}: the program that reads it crashed. The file is damaged, or too large for the server's memory.")


def _stop(child: subprocess.Popen[str]) -> None:
    if child.stdin is not None and child.stdout is not None:
        child.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
    try:
        child.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _raise_error(error: dict[str, str] | None) -> None:
    """The error of the child, here."""
    if error is None:
        return
    kinds: dict[str, type[Exception]] = {"input": InputError, "memory": MemoryError, "storage": StorageError}
    raise kinds.get(error["kind"], ReaderDefectError)(error["message"])
