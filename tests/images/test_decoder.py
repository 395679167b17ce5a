"""The process that decodes pictures leaves no image behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medseg3d.images.decoder import Decoder, DecoderError

READER = """
import sys, time
from medseg3d.images.decoder import Decoder, DecoderError
with Decoder() as decoder:
    try:
        decoder.decode(b"no picture")
    except DecoderError:
        print("decoded", flush=True)
    time.sleep(600)
"""


@pytest.mark.fault(
    "F", "slices of a compressed DICOM series in the folder for temporary files", "removed with the series, also after `kill -9`"
)
def test_no_slice_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Decoder() as decoder:
        for _ in range(2):
            with pytest.raises(DecoderError):
                decoder.decode(b"no picture")
        (folder,) = tmp_path.iterdir()
        assert [path.name for path in folder.iterdir()] == ["slice.dcm"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="the temporary folder is named by TMPDIR on Unix only")
def test_no_slice_is_left_behind_where_its_reader_is_killed(tmp_path: Path) -> None:
    reader = subprocess.Popen(
        [sys.executable, "-c", READER], stdout=subprocess.PIPE, encoding="utf-8", env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    try:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "decoded\n"
        assert len(list(tmp_path.iterdir())) == 1
    finally:
        reader.kill()
        reader.communicate()
    for _ in range(200):
        if not list(tmp_path.iterdir()):
            break
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell what is reserved")
def test_what_threads_reserve_on_many_cores_leaves_room_for_a_picture() -> None:
    code = (
        "import mmap; from medseg3d.images import decoder; decoder.MAX_BYTES = 1 << 29\n"
        "reserved = mmap.mmap(-1, 1 << 30)\n"
        "decoder._limit_memory(); print(len(bytearray(1 << 28)))"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == f"{1 << 28}\n"
