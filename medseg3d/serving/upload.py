"""A request's body into the files of a folder: streamed, counted while it comes, with names that are only names."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from medseg3d.errors import InputError
from medseg3d.files import storage_errors
from medseg3d.serving.settings import MIB

MAX_FILES = 64
"""More channels than any model has."""
MAX_FIELDS = 8
MAX_NAME_BYTES = 200
"""File systems take 255, and endings are added."""
STALL_SECONDS = 60.0
"""A client that sends nothing for this long has gone."""
GRACE_SECONDS, MIN_BYTES_PER_SECOND = 20.0, 2048
"""After the first seconds, a client that has sent less is sent away: a telephone line of old was three times as fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """Of one request's body: bytes, and seconds from its first to its last one."""

    max_bytes: int
    max_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """The files in the order in which they came, each in a folder of its own, and the text fields."""

    files: tuple[Path, ...]
    fields: dict[str, str]


async def receive_upload(request: Request, folder: Path, *, limits: UploadLimits, check: Callable[[], None]) -> Upload:
    """Write the files of a multipart request into numbered folders below ``folder``.

    ``check`` is called for each piece that comes, and may raise. Raises ``HTTPException``: 413 as soon as there are more than
    may be, 415 for another kind of body, 408 for a client that stalls or is too slow; :class:`InputError` for a body without a file.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "Expected multipart/form-data with a file; with curl: -F file=@scan.nii.gz", _CLOSE)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limits.max_bytes:
        raise _too_large(limits.max_bytes)
    counted = Request(request.scope, _limited(request.receive, limits, check))
    files: list[Path] = []
    fields: dict[str, str] = {}
    try:
        with storage_errors(folder):
            async with counted.form(max_files=MAX_FILES, max_fields=MAX_FIELDS) as form:
                for field, value in form.multi_items():
                    if not isinstance(value, UploadFile):
                        fields[field] = value
                    elif value.filename:  # a browser sends one without a name where none was chosen
                        target = folder / str(len(files)) / checked_name(value.filename)
                        await asyncio.to_thread(_copy, value, target)
                        await value.close()
                        files.append(target)
    except ClientDisconnect:
        raise HTTPException(400, "The client went away.") from None
    if not files:
        raise InputError("The request holds no file; with curl: -F file=@scan.nii.gz, with the @")
    return Upload(files=tuple(files), fields=fields)


def checked_name(name: str) -> str:
    r"""The last part of a file name, as the client's system may have written it; raises :class:`InputError` where it is none.

    >>> checked_name("C:\\scans\\a.nii.gz"), checked_name("../../etc/passwd")
    ('a.nii.gz', 'passwd')
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    if not last or last.startswith(".") or not last.isprintable() or len(last.encode(errors="replace")) > MAX_NAME_BYTES:
        raise InputError(f"The file name {name[:MAX_NAME_BYTES]!r} cannot be used; expected one such as scan.nii.gz.")
    return last


def _copy(upload: UploadFile, target: Path) -> None:
    target.parent.mkdir(parents=True)
    with target.open("xb") as file:
        shutil.copyfileobj(upload.file, file, MIB)


def _limited(receive: Receive, limits: UploadLimits, check: Callable[[], None]) -> Receive:
    total, began = 0, time.monotonic()

    async def limited() -> Message:
        nonlocal total
        left = began + limits.max_seconds - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), min(STALL_SECONDS, max(0.0, left)))
        except TimeoutError:
            waited = f"Nothing came for {STALL_SECONDS:g} seconds." if left > STALL_SECONDS else _too_long(limits)
            raise HTTPException(408, waited, _CLOSE) from None
        total += len(message.get("body", b""))
        seconds = time.monotonic() - began
        if total > limits.max_bytes:
            raise _too_large(limits.max_bytes)
        if seconds > GRACE_SECONDS and total < MIN_BYTES_PER_SECOND * seconds:
            raise HTTPException(408, f"Only {total} bytes came in {seconds:.0f} seconds. Send it again over a faster line.", _CLOSE)
        check()
        return message

    return limited


_CLOSE = {"Connection": "close"}
"""What was not read of a body would be taken for the next request."""


def _too_long(limits: UploadLimits) -> str:
    return f"The upload took longer than the {limits.max_seconds / 60:g} minutes that this server gives it."


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"The upload is larger than the {max_bytes / MIB:g} MiB that this server takes.", _CLOSE)
