"""A client of ``medseg3d serve``: images go to the server, label maps come back.

This file needs Python's own library alone, 3.9 or newer, and nothing else of medseg3d: programs such as 3D Slicer take it as it is.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Union
from urllib.parse import quote, urlsplit

BLOCK = 1 << 20
POLL_SECONDS = 1.0
"""Between two looks at a job."""
PATIENCE_SECONDS = 600.0
"""So long a full queue is asked again."""
LOST_SECONDS = 60.0
"""So long a server that gives no answer is asked again how a job does: a network that is away for a moment costs no prediction."""
NO_ANSWER = (None, 502, 504)
"""Statuses that say nothing of the job: none, and those of a proxy in between."""
NIFTI = "nifti"
ENDED = ("done", "failed", "dropped")
Files = Union[str, Path, Sequence[Union[str, Path]]]


@dataclass(frozen=True)
class Answer:
    """What a server sent back; the names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Send = Callable[[str, str, Mapping[str, str], Optional[Iterable[bytes]]], Answer]
"""``send(method, path, headers, body)``: how a request gets to the server."""


class ServerError(Exception):
    """A request that was not served: the server's sentence, its status (None where there was no answer), and when to come again."""

    def __init__(self, message: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class StoppedError(ServerError):
    """The caller wanted no label map any more."""


class Server:
    """A server by its address, such as ``http://127.0.0.1:8000``, and its token where it asks for one."""

    def __init__(self, address: str, token: str | None = None, *, timeout: float = 60.0, send: Send | None = None) -> None:
        self.address = address.rstrip("/")
        self._token = token or None
        self._send = send or _over_http(self.address, timeout)

    def health(self) -> dict[str, Any]:
        """Whether the server works, how busy it is, and which model it serves; needs no token."""
        return self._document("GET", "/health")

    def model(self) -> dict[str, Any]:
        """What the model segments, and from what."""
        return self._document("GET", "/model")

    def labels(self) -> dict[int, str]:
        """The names of the label values, without the background."""
        return {label["value"]: label["name"] for label in self.model()["labels"] if label["value"] != 0}

    def submit(self, files: Files, *, output: str = NIFTI) -> str:
        """Send the files of one case, one per channel, or the folder of a DICOM series; returns the id of its job.

        Of a DICOM series the server can make other kinds of ``output``: dicom-seg, dicom-rtstruct, dicom-sr; several with commas between.
        """
        with ExitStack() as stack:
            paths = [_as_file(Path(each), stack) for each in ([files] if isinstance(files, (str, Path)) else files)]
            boundary = secrets.token_hex(16)
            parts = [(_part_head(path.name, boundary), path) for path in paths]
            tail = f"\r\n--{boundary}--\r\n".encode()
            length = sum(len(head) + path.stat().st_size for head, path in parts) + len(tail)
            headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(length)}
            answer = self._asked("POST", f"/predict?wait=false&output={quote(output)}", headers, _body(parts, tail))
        return str(json.loads(answer.body)["id"])

    def job(self, name: str) -> dict[str, Any]:
        """How a job does: its ``state`` (queued, running, done, failed or dropped), ``place``, ``stage``, ``message`` and ``warnings``."""
        return self._document("GET", f"/jobs/{quote(name, safe='')}")

    def fetch(self, name: str, target: str | Path, *, output: str = NIFTI) -> Path:
        """Write what a job that is done has made, NIfTI (.nii.gz) or another ``output`` that it was sent for; a temporary name first."""
        answer = self._asked("GET", f"/jobs/{quote(name, safe='')}/labels?output={quote(output)}")
        target = Path(target)
        temporary = target.with_name(f".{secrets.token_hex(4)}.{target.name}")
        try:
            temporary.write_bytes(answer.body)
            os.replace(temporary, target)
        finally:
            if temporary.exists():
                temporary.unlink()
        return target

    def delete(self, name: str) -> None:
        """Let the server forget a job and its files; one that it has forgotten already is none the worse."""
        try:
            self._asked("DELETE", f"/jobs/{quote(name, safe='')}")
        except ServerError as error:
            if error.status != 404:
                raise

    def predict(
        self,
        files: Files,
        target: str | Path,
        *,
        output: str = NIFTI,
        on: Callable[[dict[str, Any]], object] = lambda job: None,
        is_stopped: Callable[[], bool] = lambda: False,
        sleep: Callable[[float], object] = time.sleep,
    ) -> dict[str, Any]:
        """Send a case, wait for its label map, write it, and let the server forget it; returns the job.

        ``on`` hears how the job does. A full queue is asked again for ten minutes. Raises :class:`ServerError` with what is wrong with the
        image, and :class:`StoppedError` when ``is_stopped`` says so.
        """
        name = self._submitted(files, output, is_stopped, sleep)
        try:
            while (job := self._looked_at(name, is_stopped, sleep))["state"] not in ENDED:
                on(job)
                if is_stopped():
                    raise StoppedError("Stopped.")
                sleep(POLL_SECONDS)
            if job["state"] != "done":
                raise ServerError(job["message"] or f"The job was {job['state']}.", 422)
            self.fetch(name, target, output=output)
        finally:
            self.delete(name)
        return job

    def _submitted(self, files: Files, output: str, is_stopped: Callable[[], bool], sleep: Callable[[float], object]) -> str:
        waited = 0.0
        while True:
            try:
                return self.submit(files, output=output)
            except ServerError as error:
                if error.status != 503 or error.retry_after is None or waited > PATIENCE_SECONDS or is_stopped():
                    raise
                pause = max(POLL_SECONDS, error.retry_after)
                waited += pause
                sleep(pause)

    def _looked_at(self, name: str, is_stopped: Callable[[], bool], sleep: Callable[[float], object]) -> dict[str, Any]:
        """How a job does, asked until there is an answer."""
        waited = 0.0
        while True:
            try:
                return self.job(name)
            except ServerError as error:
                if error.status not in NO_ANSWER or waited >= LOST_SECONDS:
                    raise
                if is_stopped():
                    raise StoppedError("Stopped.") from error
                waited += POLL_SECONDS
                sleep(POLL_SECONDS)

    def _document(self, method: str, path: str) -> dict[str, Any]:
        found = json.loads(self._asked(method, path).body)
        return dict(found)

    def _asked(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Iterable[bytes] | None = None) -> Answer:
        sent = dict(headers or {})
        if self._token is not None:
            sent["Authorization"] = f"Bearer {self._token}"
        answer = self._send(method, path, sent, body)
        if answer.status >= 400:
            text = answer.headers.get("retry-after", "")
            raise ServerError(_reason(answer), answer.status, float(text) if text.isdigit() else None)
        return answer


def _reason(answer: Answer) -> str:
    """The server's sentence; of a proxy in between, its status."""
    try:
        return str(json.loads(answer.body)["detail"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered with status {answer.status}."


def _part_head(name: str, boundary: str) -> bytes:
    plain = _text(name).replace("\\", "_").replace('"', "_").replace("\r", "_").replace("\n", "_")
    return (
        f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{plain}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()


def _text(name: str) -> str:
    """A file name without bytes that are no UTF-8."""
    return name.encode(errors="replace").decode()


def _body(parts: Sequence[tuple[bytes, Path]], tail: bytes) -> Iterator[bytes]:
    for head, path in parts:
        yield head
        with path.open("rb") as stream:
            while block := stream.read(BLOCK):
                yield block
    yield tail


def _as_file(path: Path, stack: ExitStack) -> Path:
    """A file as it is; of a folder, as of a DICOM series, a zip that is deleted afterwards."""
    if not path.is_dir():
        return path
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="medseg3d-"))
    packed = Path(folder) / f"{path.name or 'series'}.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:  # 1970, as copies have
        for number, file in enumerate(sorted(file for file in path.rglob("*") if file.is_file())):
            archive.write(file, f"{number:06d}/{_text(file.name)}")  # names of files say of which format they are
    return packed


def _over_http(address: str, timeout: float) -> Send:
    """Over a connection of its own for each request."""
    place = urlsplit(address)
    if place.scheme not in ("http", "https") or not place.hostname:
        raise ValueError(f"{address}: expected an address such as http://127.0.0.1:8000")
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection

    def send(method: str, path: str, headers: Mapping[str, str], body: Iterable[bytes] | None) -> Answer:
        connection = kind(str(place.hostname), place.port, timeout=timeout)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # a server may refuse a body before it has read all of it
                connection.request(method, place.path + path, body=body, headers=dict(headers))
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{address}: no answer ({error}). Is medseg3d serve running there?") from error
        finally:
            connection.close()

    return send
