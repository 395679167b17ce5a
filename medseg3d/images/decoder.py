"""JPEG's kinds in a process of its own, as GDCM crashes on damaged pictures: DICOM files go in by its standard input, pixels come out.

``python -m medseg3d.images.decoder FOLDER`` reads a length (8 bytes) and a file of that many bytes, and answers with a length and a message
of what is wrong, or with 0, a length, and that many bytes: the type of the values and the values. It ends with its input. ``FOLDER`` is for
the file, as GDCM reads no others; whoever of both processes ends last removes it, so that no image is left behind.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

SECONDS_PER_SLICE = 60.0
"""A picture takes milliseconds; one that takes longer than this never ends."""
MAX_BYTES = 4 << 30
"""What the process may reserve beside what it has when it begins, where the system keeps to it."""
_LENGTH = struct.Struct("<Q")
_TYPE_BYTES = 8


class DecoderError(Exception):
    """A picture that cannot be decoded."""


class Decoder:
    """The process, started with the first picture, and again after one that it did not survive; ended with the ``with`` block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()  # ours, as a process that crashed cannot
            self._folder = None

    def decode(self, file: bytes) -> np.ndarray:
        """The values of a DICOM file with one picture, flat; raises :class:`DecoderError`."""
        process = self._process = self._process or self._start()
        timer = threading.Timer(SECONDS_PER_SLICE, process.kill)
        timer.start()
        try:
            return _ask(process.stdin, process.stdout, file)
        except (EOFError, BrokenPipeError):
            self.__exit__(None, None, None)  # the next picture gets a new one
            raise DecoderError("the decoder crashed or did not end") from None
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        self._folder = tempfile.TemporaryDirectory(prefix="medseg3d-dicom-")
        places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "medseg3d.images.decoder", self._folder.name],  # -P: nothing is imported from where we are
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        )


def _ask(to: IO[bytes] | None, answers: IO[bytes] | None, file: bytes) -> np.ndarray:
    if to is None or answers is None:
        raise EOFError
    to.write(_LENGTH.pack(len(file)) + file)
    to.flush()
    (length,) = _LENGTH.unpack(_exactly(answers, _LENGTH.size))
    if length:
        raise DecoderError(_exactly(answers, length).decode())
    (length,) = _LENGTH.unpack(_exactly(answers, _LENGTH.size))
    dtype = _exactly(answers, _TYPE_BYTES).decode().strip()
    return np.frombuffer(_exactly(answers, length - _TYPE_BYTES), dtype)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    found = stream.read(count)
    if len(found) < count:
        raise EOFError
    return found


def main(folder: Path) -> int:
    """Decode until the input ends; ``folder`` takes the file that is in work."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # native code prints
    _limit_memory()
    path = folder / "slice.dcm"
    try:
        while header := sys.stdin.buffer.read(_LENGTH.size):
            path.write_bytes(sys.stdin.buffer.read(_LENGTH.unpack(header)[0]))
            answers.write(_answer(path))
            answers.flush()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _answer(path: Path) -> bytes:
    import SimpleITK as sitk

    from medseg3d.images.itk import reason_of

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except (RuntimeError, MemoryError) as error:
        reason = (reason_of(error) if isinstance(error, RuntimeError) else "not enough memory").encode()
        return _LENGTH.pack(len(reason)) + reason
    dtype = array.dtype.newbyteorder("<").str.ljust(_TYPE_BYTES).encode()
    return _LENGTH.pack(0) + _LENGTH.pack(len(dtype) + array.nbytes) + dtype + array.tobytes()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _reserved_bytes() + MAX_BYTES
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _reserved_bytes() -> int:
    """NumPy's threads reserve some of it, on a machine with many cores gigabytes; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
