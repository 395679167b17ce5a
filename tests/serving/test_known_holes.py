"""Holes that were found in other servers of segmentation models (MONAI Label's of November 2026 among them) stay closed here."""

from __future__ import annotations

import gzip
import io
import stat
import time
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.serving.test_app import folder_of, image_bytes, send, zipped

pytest.importorskip("fastapi", reason="needs medseg3d[serve]")
pytest.importorskip("httpx", reason="Starlette's client for tests needs httpx")
pytest.importorskip("python_multipart", reason="needs medseg3d[serve]")

SECRET = b"root:x:0:0:secret"
IMAGE = image_bytes(np.random.default_rng(0).normal(100, 10, (12, 12, 12)).astype(np.int16))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the server that no client may see."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET * 200)
    return path


def files_outside(client: Any) -> set[str]:
    """What lies beside the jobs' folder and in the folders above it, by name."""
    folder = folder_of(client).parent
    return {path.name for place in (folder, folder.parent, Path.cwd()) for path in place.iterdir() if "evil" in path.name}


@pytest.mark.fault(
    "F",
    "file names of an upload that lead elsewhere (`../`, absolute, Windows, encoded)",
    "only the last part is used, as a name inside of the job's folder, or the upload is refused",
)
@pytest.mark.parametrize(
    "name",
    [
        "../../evil.nii.gz",
        "/tmp/evil.nii.gz",
        "..\\..\\evil.nii.gz",
        "C:\\evil.nii.gz",
        "....//....//evil.nii.gz",
        "%2e%2e%2fevil.nii.gz",
        "file:///tmp/evil.nii.gz",
        "~/evil.nii.gz",
        "$(touch evil).nii.gz",
        "`touch evil`.nii.gz",
    ],
)
def test_names_of_uploads_lead_nowhere(client: Any, name: str) -> None:
    answer = send(client, (name, IMAGE))
    assert answer.status_code in (200, 422)
    assert files_outside(client) == set()
    if answer.status_code == 200:
        shown = answer.headers["content-disposition"].partition("filename")[2]
        assert "/" not in shown
        assert "\\" not in shown


@pytest.mark.fault("F", "ids of jobs that are paths", "404")
@pytest.mark.parametrize("name", ["%2e%2e", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", ".", "*", "a%00b", "../owner", "..%5c..%5cx"])
@pytest.mark.parametrize("end", ["", "/labels"])
def test_ids_of_jobs_are_no_paths(client: Any, name: str, end: str) -> None:
    answer = client.get(f"/jobs/{name}{end}")
    assert answer.status_code == 404
    assert client.delete(f"/jobs/{name}").status_code in (404, 405)


@pytest.mark.fault(
    "F", "values of a request that are code (`__import__`, templates, YAML tags, pickles)", "refused as values, nothing is evaluated"
)
@pytest.mark.parametrize(
    "value",
    [
        "__import__('pathlib').Path('evil').touch()",
        "{{7*7}}",
        "${7*7}",
        "!!python/object/apply:os.system ['touch evil']",
        "True or 1",
        "0x1",
    ],
)
def test_values_are_not_evaluated(client: Any, value: str) -> None:
    for answer in (
        send(client, ("a.nii.gz", IMAGE), params={"wait": value}),
        send(client, ("a.nii.gz", IMAGE), data={"wait": value}),
        send(client, ("a.nii.gz", IMAGE), data={"params": value}),
    ):
        assert answer.status_code == 422
        assert "49" not in answer.text
    assert files_outside(client) == set()


def test_what_the_server_does_not_know_of_a_request_changes_nothing(client: Any, secret: Path) -> None:
    query = {"model": str(secret), "target": "/tmp/evil", "device": "cuda", "config": "evil"}
    assert send(client, ("a.nii.gz", IMAGE), params=query).content == send(client, ("a.nii.gz", IMAGE)).content
    assert send(client, ("a.nii.gz", IMAGE), params={"output": "/tmp/evil"}).status_code == 422  # a kind of answer, never a place
    assert send(client, ("a.nii.gz", IMAGE), data={"image": f"file://{secret}"}).status_code == 422
    assert files_outside(client) == set()


META = "ObjectType = Image\nNDims = 3\nDimSize = 10 10 10\nElementType = MET_UCHAR\n"
NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 10 10 10\nencoding: raw\n"


@pytest.mark.fault(
    "F",
    "headers that name other files (`ElementDataFile`, NRRD `data file`, lists and patterns)",
    "422, nothing of the other file comes back",
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mhd", META + "ElementDataFile = {}\n"),
        ("a.mha", META + "ElementDataFile = {}\n"),
        ("a.mha", META + "ElementDataFile = LIST\n{}\n"),
        ("a.mha", META + "ElementDataFile = {}%d 1 1 1\n"),
        ("a.mha", META + "elementdatafile = {}\n"),
        ("a.mha", META + "ElementDataFile = {}\nElementDataFile = LOCAL\n"),
        ("a.nhdr", NRRD + "data file: {}\n\n"),
        ("a.nrrd", NRRD + "data file: {}\n\n"),
        ("a.nrrd", NRRD + "datafile: {}\n\n"),
        ("a.nrrd", NRRD + "DATA FILE: {}\n\n"),
        ("a.nrrd", NRRD + "data file: LIST\n{}\n"),
        ("a.nrrd", NRRD + "data file: {}%d 1 1 1\n\n"),
        ("a.nii", META + "ElementDataFile = {}\n"),
        ("a.nii.gz", NRRD + "data file: {}\n\n"),
        ("a.dcm", META + "ElementDataFile = {}\n"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["alone", "in a zip"])
def test_headers_cannot_name_other_files(client: Any, secret: Path, name: str, text: str, packed: bool) -> None:
    content = text.replace("{}", str(secret)).encode() + bytes(1000)
    answer = send(client, ("a.zip", zipped((name, content))) if packed else (name, content))
    assert answer.status_code == 422
    assert SECRET not in answer.content
    assert str(folder_of(client).parent) not in answer.text
    missing = secret.with_name("nobody")
    content = text.replace("{}", str(missing)).encode() + bytes(1000)
    other = send(client, ("a.zip", zipped((name, content))) if packed else (name, content))
    assert other.text.replace(str(missing), str(secret)) == answer.text, "nor does it tell whether the other file is there"


@pytest.mark.fault("F", "zips whose members lie outside, are links or devices, or unpack without end", "422 before anything is unpacked")
@pytest.mark.parametrize(
    "name", ["../../evil.dcm", "/tmp/evil.dcm", "a/../../../evil.dcm", "..\\evil.dcm", "C:evil.dcm", "evil\0.dcm/../../x"]
)
def test_members_of_a_zip_stay_inside(client: Any, name: str) -> None:
    assert send(client, ("a.zip", zipped((name, IMAGE)))).status_code == 422
    assert files_outside(client) == set()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])
def test_links_in_a_zip_are_refused(client: Any, secret: Path, kind: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        member = zipfile.ZipInfo("a.nii.gz")
        member.external_attr = (kind | 0o777) << 16
        archive.writestr(member, str(secret))
    answer = send(client, ("a.zip", buffer.getvalue()))
    assert (answer.status_code, SECRET in answer.content) == (422, False)


def bomb(shape: tuple[int, int, int]) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    return gzip.compress(header.binaryblock + bytes(2**20))


@pytest.mark.fault("F", "an upload of a few bytes that claims 32767³ voxels, or is cut off", "422 or 507 within seconds")
@pytest.mark.parametrize("content", [bomb((32767, 32767, 32767)), bomb((900, 900, 900))], ids=["32767", "900"])
def test_claims_of_a_header_take_no_memory(client: Any, content: bytes) -> None:
    began = time.monotonic()
    assert send(client, ("a.nii.gz", content)).status_code in (422, 507)
    assert time.monotonic() - began < 30


@pytest.mark.fault(
    "F", "bodies of another kind: JSON of 100,000 brackets, models and pickles, XML with entities, nothing", "415 or 422, unread"
)
def test_bodies_of_another_kind_are_refused(client: Any, record_property: Any) -> None:
    bodies = {
        "application/json": b"[" * 100_000,
        "application/xml": b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        "application/x-www-form-urlencoded": b"file=/etc/passwd",
        "multipart/form-data": b"--x--",
        "multipart/form-data; boundary=": b"--x--",
        "multipart/form-data; boundary=" + "x" * 5000: b"--x--",
        "": b"x",
    }
    for kind, body in bodies.items():
        answer = client.post("/predict", content=body, headers={"content-type": kind})
        assert answer.status_code in (400, 415, 422), (kind, answer.text)
    for name in ("model.pth", "model.pt", "model.pkl", "a.npy", "a.medseg3d", "a.py", "a.json"):
        assert send(client, (name, b"\x80\x04cos\nsystem\n(S'touch evil'\ntR.")).status_code == 422
    assert files_outside(client) == set()
    record_property("tries", len(bodies) + 7)


def test_names_do_not_reach_headers_or_the_log(client: Any) -> None:
    for name in ("a\r\nX-Evil: 1.nii.gz", 'a".nii.gz', "a\n.nii.gz", "é 肝.nii.gz"):
        answer = send(client, (name, IMAGE))
        assert answer.status_code in (200, 400, 422)
        assert "x-evil" not in answer.headers


def test_no_other_site_is_allowed_in(client: Any) -> None:
    answer = client.options("/predict", headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"})
    assert not any(name.lower().startswith("access-control") for name in answer.headers)
