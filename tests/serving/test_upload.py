"""What is received is counted while it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg3d.errors import InputError

pytest.importorskip("fastapi", reason="needs medseg3d[serve]")
pytest.importorskip("python_multipart", reason="needs medseg3d[serve]")

from fastapi import HTTPException, Request

from medseg3d.serving import upload
from medseg3d.serving.upload import Upload, UploadLimits, checked_name, receive_upload

HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n'
FORM = {"content-type": "multipart/form-data; boundary=x"}
PIECE = 2**16


def received(
    folder: Path,
    pieces: list[bytes],
    *,
    headers: dict[str, str] = FORM,
    is_whole: bool = False,
    check: Callable[[], None] = lambda: None,
    max_seconds: float = 60.0,
    pause: float = 0.0,
) -> Upload:
    """The upload of a body in pieces; those that were not asked for stay in the list. If it is not whole, nothing comes after the last."""
    limits = UploadLimits(max_bytes=8 * PIECE, max_seconds=max_seconds)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause if pieces else 3600)
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces) or not is_whole}

    scope = {"type": "http", "method": "POST", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    return asyncio.run(receive_upload(Request(scope, receive), folder, limits=limits, check=check))


def test_the_rest_of_what_is_too_large_is_not_asked_for(tmp_path: Path) -> None:
    pieces = [HEAD % b"a.nii"] + [bytes(PIECE)] * 100
    with pytest.raises(HTTPException) as raised:
        received(tmp_path, pieces)
    assert raised.value.status_code == 413
    assert len(pieces) == 100 - 8


def test_what_says_that_it_is_too_large_is_not_asked_for_at_all(tmp_path: Path) -> None:
    pieces = [b"x"]
    with pytest.raises(HTTPException) as raised:
        received(tmp_path, pieces, headers=FORM | {"content-length": str(9 * PIECE)})
    assert (raised.value.status_code, pieces) == (413, [b"x"])


def test_a_client_that_stalls_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "STALL_SECONDS", 0.05)
    with pytest.raises(HTTPException) as raised:
        received(tmp_path, [HEAD % b"a.nii"])
    assert raised.value.status_code == 408


@pytest.mark.fault(
    "F",
    "a client that sends a byte now and then",
    "sent away with 408 after 20 seconds; uploads that are not whole take no place in the queue",
)
def test_a_client_that_trickles_is_sent_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "GRACE_SECONDS", 0.1)
    pieces = [HEAD % b"a.nii", *[b"x"] * 1000]
    with pytest.raises(HTTPException, match="bytes came in 0 seconds") as raised:
        received(tmp_path, pieces, pause=0.01)
    assert raised.value.status_code == 408
    assert len(pieces) > 900


@pytest.mark.fault("F", "an upload that never ends", "sent away with 408 after `--max-upload-minutes`")
def test_an_upload_has_a_total_time(tmp_path: Path) -> None:
    with pytest.raises(HTTPException, match=r"longer than the 0\.002 minutes") as raised:
        received(tmp_path, [HEAD % b"a.nii", *[b"x" * 1000] * 1000], max_seconds=0.12, pause=0.02)
    assert raised.value.status_code == 408


def test_a_server_that_stops_does_not_read_on(tmp_path: Path) -> None:
    def stop() -> None:
        raise InterruptedError

    pieces = [HEAD % b"a.nii"] + [bytes(PIECE)] * 4
    with pytest.raises(InterruptedError):
        received(tmp_path, pieces, check=stop)
    assert len(pieces) == 4


@pytest.mark.parametrize("name", [b"", b"..", b"a/", b".hidden", b"a\x07", b"a" * 300])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: bytes) -> None:
    with pytest.raises(InputError):
        received(tmp_path, [HEAD % name + b"x\r\n--x--\r\n"], is_whole=True)


def test_files_of_one_name_lie_apart(tmp_path: Path) -> None:
    body = HEAD % b"C:\\scans\\a.nii" + b"1\r\n" + HEAD % b"../../a.nii" + b"2\r\n--x--\r\n"
    found = received(tmp_path, [body], is_whole=True)
    assert found.files == (tmp_path / "0/a.nii", tmp_path / "1/a.nii")
    assert [path.read_bytes() for path in found.files] == [b"1", b"2"]


@given(st.text(max_size=300))
def test_a_checked_name_is_one_part_of_a_path(name: str) -> None:
    try:
        checked = checked_name(name)
    except InputError:
        return
    assert Path("folder", checked).parent == Path("folder")
    assert not checked.startswith(".")
    assert checked.isprintable()
