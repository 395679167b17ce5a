"""The client speaks with a server as it is: what programs around medseg3d rely on."""

from __future__ import annotations

import ast
import http.client
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import medseg3d
from medseg3d.client import Answer, Server, ServerError, StoppedError
from medseg3d.models.model import Model

ROOT = Path(__file__).parents[1]
TOKEN = "a token"


@pytest.fixture(scope="module")
def model(trained: Path) -> Model:
    return medseg3d.load_model(trained, device="cpu")


@pytest.fixture(scope="module")
def connect(model: Model) -> Any:
    """``connect(token)`` is a client of a server in this process: the same requests and answers, without a socket."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fastapi.testclient import TestClient
    from medseg3d.serving.app import build_app
    from medseg3d.serving.settings import ServeSettings

    app = build_app(model, ServeSettings(token=TOKEN))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as spoken:

        def send(method: str, path: str, headers: Mapping[str, str], body: Iterable[bytes] | None) -> Answer:
            content = None if body is None else b"".join(body)
            assert content is None or headers["Content-Length"] == str(len(content)), "announced before it is read"
            found = spoken.request(method, path, headers=dict(headers), content=content)
            return Answer(found.status_code, dict(found.headers), found.content)

        yield lambda token=TOKEN: Server("http://localhost", token, send=send)


def test_a_case_is_sent_and_its_label_map_comes_back(connect: Callable[..., Server], model: Model, trained: Path, tmp_path: Path) -> None:
    server, scan = connect(), trained / "imagesTs" / "ball_6_0000.nii.gz"
    stages: list[str] = []
    job = server.predict(scan, tmp_path / "labels.nii.gz", on=lambda job: stages.append(job["state"]), sleep=lambda seconds: None)
    found = nibabel.load(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), model.predict(nibabel.load(scan)))
    assert job["state"] == "done"
    assert set(stages) <= {"queued", "running"}
    assert [file.name for file in tmp_path.iterdir()] == ["labels.nii.gz"]
    with pytest.raises(ServerError) as error:
        server.job(job["id"])
    assert error.value.status == 404, "the server has forgotten it"


def test_labels_have_their_names(connect: Callable[..., Server]) -> None:
    assert connect().labels() == {3: "shell", 7: "core"}
    assert connect(None).health()["model"]["labels"]["core"] == 7


def test_what_is_wrong_is_said_by_the_server(connect: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"no image")
    with pytest.raises(ServerError, match=r"scan.nii.gz"):
        connect().predict(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", sleep=lambda seconds: None)
    assert not (tmp_path / "labels.nii.gz").exists()
    with pytest.raises(ServerError, match="token") as error:
        connect("another").model()
    assert error.value.status == 401


def test_a_folder_is_sent_as_a_zip(connect: Callable[..., Server], trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    image = folder / os.fsdecode(b"M\xfcller.nii.gz")  # no UTF-8
    image.write_bytes((trained / "imagesTs" / "ball_7_0000.nii.gz").read_bytes())
    os.utime(image, (0, 0))  # a zip knows no time before 1980
    connect().predict(folder, tmp_path / "labels.nii.gz", sleep=lambda seconds: None)
    assert nibabel.load(tmp_path / "labels.nii.gz").shape == (20, 18, 12)
    connect().predict(image, tmp_path / "again.nii.gz", sleep=lambda seconds: None)
    assert nibabel.load(tmp_path / "again.nii.gz").shape == (20, 18, 12)


def scripted(*answers: Answer) -> tuple[Server, list[str]]:
    """A server that gives these answers in turn."""
    waiting, asked = list(answers), list[str]()

    def send(method: str, path: str, headers: Mapping[str, str], body: Iterable[bytes] | None) -> Answer:
        asked.append(f"{method} {path}")
        return waiting.pop(0)

    return Server("http://localhost", send=send), asked


def answer(status: int, text: str, **headers: str) -> Answer:
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, text.encode())


def test_a_full_queue_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    pauses: list[float] = []
    server, asked = scripted(
        answer(503, '{"detail": "The queue is full."}', retry_after="7"),
        answer(202, '{"id": "1"}'),
        answer(200, '{"state": "done", "message": null}'),
        answer(200, "label map"),
        answer(204, ""),
    )
    server.predict(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", sleep=pauses.append)
    assert (pauses, asked[-1]) == ([7.0], "DELETE /jobs/1")
    server, _ = scripted(answer(503, '{"detail": "The server is stopping."}'))
    with pytest.raises(ServerError, match="stopping"):
        server.predict(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", sleep=pauses.append)


def test_a_server_that_is_away_for_a_moment_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    away, pauses = answer(502, "<html>Bad Gateway</html>"), list[float]()
    done = (answer(200, '{"state": "done", "message": null}'), answer(200, "label map"), answer(204, ""))
    server, _ = scripted(answer(202, '{"id": "1"}'), answer(200, '{"state": "running"}'), away, away, *done)
    server.predict(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", sleep=pauses.append)
    assert (tmp_path / "labels.nii.gz").read_text() == "label map"
    assert pauses == [1.0, 1.0, 1.0]
    server, _ = scripted(answer(202, '{"id": "1"}'), *[away] * 61, answer(204, ""))
    with pytest.raises(ServerError, match="status 502"):
        server.predict(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", sleep=pauses.append)


@pytest.mark.parametrize("said", [answer(200, '{"state": "running"}'), answer(502, "<html>Bad Gateway</html>")], ids=["running", "away"])
def test_whoever_stops_waiting_leaves_no_job(tmp_path: Path, said: Answer) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"")
    server, asked = scripted(answer(202, '{"id": "1"}'), said, answer(204, ""))
    with pytest.raises(StoppedError):
        server.predict(tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz", is_stopped=lambda: True, sleep=lambda seconds: None)
    assert asked[-1] == "DELETE /jobs/1"


def test_where_nobody_listens_the_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: http.client.HTTPConnection) -> None:
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(http.client.HTTPConnection, "connect", refuse)
    with pytest.raises(ServerError, match=r"http://127.0.0.1:1: no answer.*Is medseg3d serve running there"):
        Server("http://127.0.0.1:1").health()
    with pytest.raises(ValueError, match="expected an address such as"):
        Server("localhost:8000")


def test_a_request_on_the_wire_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Through Python's own HTTP, without a network: what is written to the socket is what the server's form reader takes."""
    (tmp_path / 'sc"an.nii.gz').write_bytes(b"voxels")
    written = io.BytesIO()

    class Socket:
        def sendall(self, data: bytes) -> None:
            written.write(data)

        def makefile(self, mode: str, *args: object) -> io.BytesIO:
            return io.BytesIO(b'HTTP/1.1 202 Accepted\r\nContent-Length: 11\r\n\r\n{"id": "9"}')

        def close(self) -> None:
            pass

    monkeypatch.setattr(http.client.HTTPConnection, "connect", lambda self: setattr(self, "sock", Socket()))
    assert Server("http://localhost:8000/behind/a/proxy", "secret").submit(tmp_path / 'sc"an.nii.gz') == "9"
    head, _, body = written.getvalue().partition(b"\r\n\r\n")
    assert head.startswith(b"POST /behind/a/proxy/predict?wait=false&output=nifti HTTP/1.1")
    assert b"Authorization: Bearer secret" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert b'filename="sc_an.nii.gz"' in body
    assert b"\r\n\r\nvoxels\r\n--" in body


def test_the_client_stands_alone_and_the_copy_is_the_same() -> None:
    text = (ROOT / "medseg3d" / "client.py").read_text(encoding="utf-8")
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert {str(name).partition(".")[0] for name in imported} <= set(sys.stdlib_module_names)
    assert (ROOT / "integrations/slicer/Medseg3D/medseg3d_client.py").read_text(encoding="utf-8") == text
    ast.parse(text, feature_version=(3, 9))
