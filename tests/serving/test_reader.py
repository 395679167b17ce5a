"""Foreign files are read by processes that may crash, hang or run out of memory."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg3d.data.prediction_cases import prediction_cases
from medseg3d.errors import InputError
from medseg3d.images import write_image
from medseg3d.models.model import Model
from medseg3d.serving import reader as module
from medseg3d.serving.reader import Reader, ReaderDefectError
from tests.serving.test_app import send

pytest.importorskip("fastapi", reason="needs medseg3d[serve]")
pytest.importorskip("httpx", reason="Starlette's client for tests needs httpx")
pytest.importorskip("python_multipart", reason="needs medseg3d[serve]")
needs_signals = pytest.mark.skipif(os.name == "nt", reason="processes end by signals on Unix only")


def test_a_case_is_what_the_model_reads_itself(reader: Reader, model: Model, scan: Path, tmp_path: Path) -> None:
    (case,) = prediction_cases(scan, num_channels=1)
    assert reader.case([scan], max_unpacked_bytes=2**20) == case
    found, expected = reader.read(case, tmp_path / "image.npy"), model.read(case)
    np.testing.assert_array_equal(found.image, expected.image)
    assert (found.image.dtype, found.image.flags.c_contiguous, found.image.flags.writeable) == (np.float32, True, True)
    for name in ("name", "spacing", "orientation", "header"):
        assert getattr(found, name) == getattr(expected, name)
    assert list(tmp_path.iterdir()) == []


def test_a_header_with_odd_numbers_comes_through(reader: Reader, model: Model, tmp_path: Path) -> None:
    affine = np.array([[0.1, 1.0 / 3, 0, -1e-7], [-1.0 / 3, 0.1, 0, 2**0.5], [0, 0, 2.5, np.pi], [0, 0, 0, 1]])
    path = write_image(tmp_path / "a.nii", np.arange(60.0).reshape(3, 4, 5), affine)
    content = bytearray(path.read_bytes())
    content[88:92] = np.float32(np.nan).tobytes()  # pixdim[3], which the sform makes superfluous
    path.write_bytes(content)
    (case,) = prediction_cases(path, num_channels=1)
    found, expected = reader.read(case, tmp_path / "image.npy").header, model.read(case).header
    assert repr(found) == repr(expected)  # NaN is not equal to itself


@pytest.fixture
def own(model: Model) -> Iterator[Reader]:
    made = Reader(model.plan)
    yield made
    made.close()


def child_of(process: Any) -> int:
    process.start()
    return int(process._child.pid)


@pytest.mark.fault(
    "F",
    "a file that crashes native code in the server (SIGSEGV, SIGABRT)",
    "one message for that upload; the server lives on and answers the next",
)
@needs_signals
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_one_message_and_the_next_file_is_read(own: Reader, scan: Path, tmp_path: Path, number: signal.Signals) -> None:
    (case,) = prediction_cases(scan, num_channels=1)
    pid = child_of(own._voxels)
    os.kill(pid, signal.SIGSTOP)  # so that it is asked before it crashes
    killer = threading.Timer(0.3, lambda: (os.kill(pid, number), os.kill(pid, signal.SIGCONT)))
    killer.start()
    with pytest.raises(InputError, match=r"ball_6: the program that reads it crashed\. The file is damaged"):
        own.read(case, tmp_path / "image.npy")
    assert own.read(case, tmp_path / "image.npy").image.shape == (1, 12, 18, 20)


@pytest.mark.fault("F", "a file that is read without an end", "stopped after its time, one message for that upload")
@needs_signals
def test_a_reader_that_hangs_is_stopped(own: Reader, scan: Path, tmp_path: Path) -> None:
    (case,) = prediction_cases(scan, num_channels=1)
    os.kill(child_of(own._voxels), signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(InputError, match="took longer than 0 s and was stopped"):
        own.read(case, tmp_path / "image.npy", seconds=0.3)
    assert time.monotonic() - began < 10
    assert own.read(case, tmp_path / "image.npy").image.size


@pytest.mark.fault("F", "a reader that the system ends for want of memory", "507 for that upload; the next is read")
@needs_signals
def test_a_reader_that_is_killed_lacked_memory(own: Reader, scan: Path, tmp_path: Path) -> None:
    (case,) = prediction_cases(scan, num_channels=1)
    pid = child_of(own._voxels)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, lambda: os.kill(pid, signal.SIGKILL)).start()
    with pytest.raises(MemoryError, match="memory is short"):
        own.read(case, tmp_path / "image.npy")


@pytest.mark.fault("F", "a file that takes more memory than there is", "507 for that upload, by a limit of the reader's memory")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts mapped memory on Linux only")
def test_memory_is_limited(own: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "large.nii.gz", np.zeros((400, 400, 100), np.uint8), np.eye(4))
    assert path.stat().st_size < 10**5
    (case,) = prediction_cases(path, num_channels=1)
    monkeypatch.setattr(module, "memory_budget", lambda _: 60 * 2**20)
    monkeypatch.setattr(module, "MIN_BYTES", 0)
    with pytest.raises(MemoryError):
        own.read(case, tmp_path / "image.npy")
    monkeypatch.undo()
    assert own.read(case, tmp_path / "image.npy").image.shape == (1, 100, 400, 400)


def test_a_defect_of_the_reader_is_told_as_one(own: Reader) -> None:
    with pytest.raises(ReaderDefectError, match="Traceback"):
        own._door.ask({"do": "nothing"}, seconds=60, what="x")


def test_a_child_that_died_while_idle_is_replaced(own: Reader, scan: Path) -> None:
    process: Any = own._door
    child_of(process)
    process._child.kill()
    process._child.wait()
    assert own.case([scan], max_unpacked_bytes=2**20).name == "ball_6"


def test_children_end_with_their_server(own: Reader) -> None:
    child_of(own._door)
    child: Any = own._door._child
    own.close()
    assert child.wait(timeout=30) is not None


def test_the_token_does_not_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG3D_TOKEN", "secret")
    assert "secret" not in module._environment().values()


# ---- in the server


@needs_signals
def test_the_server_answers_after_a_crash(serving: Callable[..., Any], reader: Reader, scan: Path) -> None:
    client = serving()
    pid = child_of(reader._door)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.3, lambda: (os.kill(pid, signal.SIGSEGV), os.kill(pid, signal.SIGCONT))).start()
    answer = send(client, scan)
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "ball_6_0000.nii.gz: the program that reads it crashed. The file is damaged, or too large for the server's memory.",
    )
    assert send(client, scan).status_code == 200


HOSTILE = {
    "dimension.nrrd": b"NRRD0004\ntype: uchar\ndimension: 16\nsizes: " + b"2 " * 16 + b"\nencoding: raw\nendian: little\n\n" + bytes(2**16),
    "key.nrrd": b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n" + b"k" * 100_000 + b":=v\n\n" + bytes(8),
    "ndims.mha": b"ObjectType = Image\nNDims = 100\nDimSize = "
    + b"2 " * 100
    + b"\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    + bytes(8),
    "negative.mha": b"ObjectType = Image\nNDims = -1\nDimSize = 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n" + bytes(8),
    "nested.dcm": bytes(128) + b"DICM" + b"\x08\x00\x05\x00SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3000,
}


@pytest.mark.fault(
    "B",
    "an upload made to crash ITK or GDCM (16 dimensions, NDims -1 or 100, a key of 100,000 characters, nested sequences)",
    "422 with one message; the server answers the next request",
)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_uploads_do_not_take_the_server_with_them(client: Any, scan: Path, name: str) -> None:
    answer = send(client, (name, HOSTILE[name]))
    if name != "key.nrrd" or answer.status_code != 200:  # some versions of ITK skip such a key
        assert answer.status_code == 422, answer.text
        assert name in answer.json()["detail"]
    assert send(client, scan).status_code == 200
