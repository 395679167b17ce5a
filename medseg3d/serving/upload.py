"""A request's body into the files of a folder: streamed, counted while it comes, with names that are only names."""

from __future__ import annotations

import asyncio
import shutil
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
"""A client that sends nothing for this long has gone, and its place in the queue is another's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """The files in the order in which they came, each in a folder of its own, and the text fields."""

    files: tuple[Path, ...]
    fields: dict[str, str]


async def receive_upload(request: Request, folder: Path, *, max_bytes: int, check: Callable[[], None]) -> Upload:
    """Write the files of a multipart request into numbered folders below ``folder``.

    ``check`` is called for each piece that comes, and may raise. Raises ``HTTPException``: 413 as soon as there are more than
    ``max_bytes``, 415 for another kind of body, 408 for a client that stalls; :class:`InputError` for a body without a file.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "Expected multipart/form-data with a file; with curl: -F file=@scan.nii.gz", _CLOSE)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    counted = Request(request.scope, _limited(request.receive, max_bytes, check))
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


def _limited(receive: Receive, max_bytes: int, check: Callable[[], None]) -> Receive:
    total = 0

    async def limited() -> Message:
        nonlocal total
        try:
            message = await asyncio.wait_for(receive(), STALL_SECONDS)
        except TimeoutError:
            raise HTTPException(408, f"Nothing came for {STALL_SECONDS:g} seconds.", _CLOSE) from None
        total += len(message.get("body", b""))
        if total > max_bytes:
            raise _too_large(max_bytes)
        check()
        return message

    return limited


_CLOSE = {"Connection": "close"}
"""What was not read of a body would be taken for the next request."""


def _too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"The upload is larger than the {max_bytes / MIB:g} MiB that this server takes.", _CLOSE)
