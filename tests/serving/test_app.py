"""The server as its clients see it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import logging
import re
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from medseg3d.models.model import Model
from medseg3d.options import PredictOptions
from medseg3d.serving.attached import taken
from medseg3d.serving.routes import MAX_WARNINGS_HEADER, warnings_header
from medseg3d.workflows.predict import predict
from tests.dicom_writer import MR, volume, write_other, write_series

pytest.importorskip("fastapi", reason="needs medseg3d[serve]")
pytest.importorskip("httpx", reason="Starlette's client for tests needs httpx")
pytest.importorskip("python_multipart", reason="needs medseg3d[serve]")


def by_command_line(source: Path, trained: Path, folder: Path) -> bytes:
    (written,) = predict(source, folder / "by_command_line", PredictOptions(device="cpu"), dataset=trained).written
    return written.read_bytes()


def send(client: Any, *files: Path | tuple[str, bytes], **parameters: Any) -> Any:
    contents = [(f.name, f.read_bytes()) if isinstance(f, Path) else f for f in files]
    return client.post("/predict", files=[("file", content) for content in contents], **parameters)


def image_bytes(array: np.ndarray) -> bytes:
    return gzip.compress(nibabel.Nifti1Image(array, np.eye(4)).to_bytes())


def wait_for_end(client: Any, place: str) -> dict[str, Any]:
    for _ in range(600):
        found = client.get(place).json()
        if found["state"] not in ("queued", "running"):
            return found
        time.sleep(0.05)
    raise AssertionError(f"still {found}")


def folder_of(client: Any) -> Path:
    return Path(client.app.state.jobs._folder)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory, scan: Path) -> Path:
    """The scan as a DICOM series."""
    folder = tmp_path_factory.mktemp("dicom") / "series"
    folder.mkdir()
    volume = np.asarray(nibabel.load(scan).dataobj)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(volume.shape[2]):
        image = sitk.GetImageFromArray(np.ascontiguousarray(volume[:, :, k].T)[None])
        image.SetSpacing((1.0, 1.0, 1.0))
        tags = {
            "0008|0060": "MR",
            "0008|0018": f"1.2.3.1.{k + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.1",
            "0020|0032": f"0\\0\\{1.5 * k}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{k:03d}.dcm"))
        writer.Execute(image)
    return folder


def zipped(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


# ---- label maps


def test_an_uploaded_file_gives_the_bytes_of_the_command_line(client: Any, scan: Path, trained: Path, tmp_path: Path) -> None:
    answer = send(client, scan)
    assert answer.status_code == 200
    assert answer.content == by_command_line(scan, trained, tmp_path)
    assert answer.headers["content-type"] == "application/gzip"
    assert 'filename="ball_6.nii.gz"' in answer.headers["content-disposition"]
    assert all(float(answer.headers[f"x-seconds-{stage}"]) >= 0 for stage in ("wait", "read", "preprocess", "segment", "write"))
    assert client.get(f"/jobs/{answer.headers['x-job-id']}/labels").content == answer.content


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_other_formats_give_the_bytes_of_the_command_line(client: Any, scan: Path, trained: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(sitk.ReadImage(str(scan)), str(path))
    answer = send(client, path)
    assert (answer.status_code, answer.content) == (200, by_command_line(path, trained, tmp_path))


@pytest.mark.parametrize("prefix", ["", "PATIENT/STUDY/"])
def test_a_zip_of_a_dicom_series_gives_the_bytes_of_the_command_line(
    client: Any, series: Path, trained: Path, tmp_path: Path, prefix: str
) -> None:
    slices = [(f"{prefix}{path.name}", path.read_bytes()) for path in series.iterdir()]
    answer = send(client, ("series.zip", zipped(*slices, ("DICOMDIR", b"\0" * 128 + b"DICM"), ("__MACOSX/._x.dcm", b"x"))))
    assert (answer.status_code, answer.content) == (200, by_command_line(series, trained, tmp_path))
    assert 'filename="series.nii.gz"' in answer.headers["content-disposition"]


def test_two_series_in_a_zip_are_refused_and_named(client: Any, series: Path) -> None:
    slices = [(f"{name}/{path.name}", path.read_bytes()) for path in series.iterdir() for name in ("one", "two")]
    other = [(name, data.replace(b"1.2.3.1", b"1.2.3.8") if name.startswith("two") else data) for name, data in slices]
    answer = send(client, ("both.zip", zipped(*other)))
    assert answer.status_code == 422
    assert answer.json()["detail"] == "both.zip: 2 DICOM volumes (one, two); send a zip of one series."
    assert send(client, ("twice.zip", zipped(*slices))).status_code == 200  # the same slices once more are copies


@pytest.mark.fault("B", "a report or a localizer in an uploaded DICOM study", "left out; the one series that is left is predicted")
def test_a_zip_of_a_study_is_predicted_by_its_one_series(client: Any, series: Path, trained: Path, tmp_path: Path) -> None:
    slices = [(f"P/S/{path.name}", path.read_bytes()) for path in series.iterdir()]
    report = write_other(tmp_path / "report", "1.2.840.10008.5.1.4.1.1.88.67").read_bytes()
    answer = send(client, ("study.zip", zipped(*slices, ("P/SR/report", report))))
    assert (answer.status_code, answer.content) == (200, by_command_line(series, trained, tmp_path))
    answer = send(client, ("reports.zip", zipped(("P/SR/report", report))))
    assert answer.status_code == 422
    assert "left out P/SR/report: structured report" in answer.json()["detail"]
    answer = send(client, ("cut.zip", zipped(*slices[1:], (slices[0][0], slices[0][1][:-50]))))
    assert answer.status_code == 422
    assert "cut off" in answer.json()["detail"]


def test_a_second_upload_is_not_changed_by_the_first(client: Any, scan: Path, trained: Path) -> None:
    first = send(client, scan).content
    send(client, trained / "imagesTs/ball_7_0000.nii.gz")
    assert send(client, scan).content == first


def test_two_clients_at_once_get_their_own_label_maps(client: Any, trained: Path) -> None:
    scans = [trained / f"imagesTs/ball_{number}_0000.nii.gz" for number in (6, 7)]
    expected = [send(client, scan).content for scan in scans]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda scan: send(client, scan).content, 3 * scans))
    assert found == 3 * expected


# ---- jobs


def test_a_job_goes_from_the_queue_to_its_label_map_and_is_deleted(client: Any, scan: Path, brake: Any) -> None:
    first, second = (send(client, scan, params={"wait": "false"}) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    brake.wait_until_reached()
    found = client.get(first.headers["location"]).json()
    assert (found["state"], found["stage"], found["place"], found["labels"]) == ("running", "segment", None, None)
    found = client.get(second.headers["location"]).json()
    assert (found["state"], found["place"]) == ("queued", 1)
    early = client.get(f"{second.headers['location']}/labels")
    assert (early.status_code, early.headers["retry-after"]) == (409, "1")
    brake.release()
    found = wait_for_end(client, second.headers["location"])
    assert (found["state"], found["message"], found["warnings"]) == ("done", None, [])
    assert set(found["seconds"]) == {"wait", "read", "preprocess", "segment", "write"}
    assert client.get(found["labels"]).content == client.get(f"{first.headers['location']}/labels").content
    assert client.delete(second.headers["location"]).status_code == 204
    assert client.get(second.headers["location"]).status_code == client.get(found["labels"]).status_code == 404


def test_a_deleted_job_leaves_nothing_whether_it_waits_or_runs(client: Any, scan: Path, brake: Any) -> None:
    running, waiting = (send(client, scan, params={"wait": "false"}).headers["location"] for _ in range(2))
    brake.wait_until_reached()
    assert [client.delete(place).status_code for place in (running, waiting)] == [204, 204]
    brake.release()
    assert send(client, scan).status_code == 200
    assert len(list(folder_of(client).iterdir())) == 1  # that of the last


def test_whoever_waits_for_a_job_that_is_deleted_is_told(client: Any, scan: Path, brake: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(send, client, scan)]
        brake.wait_until_reached()
        jobs = client.app.state.jobs
        client.delete(f"/jobs/{jobs._running.id}")
        answer = waiting[0].result(timeout=30)
    assert (answer.status_code, answer.json()["detail"]) == (410, "The job was deleted.")


def test_the_image_is_deleted_as_soon_as_it_is_predicted(client: Any, scan: Path) -> None:
    send(client, scan)
    for _ in range(100):
        kept = [path for path in folder_of(client).rglob("*") if path.is_file()]
        if len(kept) == 1:
            break
        time.sleep(0.02)
    assert [path.name for path in kept] == ["labels.nii.gz"]


def test_ended_jobs_are_dropped_when_they_are_too_many_or_too_old(serving: Callable[..., Any], scan: Path) -> None:
    client = serving(max_kept=2)
    names = [send(client, scan).headers["x-job-id"] for _ in range(3)]
    assert [client.get(f"/jobs/{name}").status_code for name in names] == [404, 200, 200]
    client = serving(keep_minutes=1e-9)
    assert client.get(f"/jobs/{send(client, scan).headers['x-job-id']}").status_code == 404
    assert not list(folder_of(client).iterdir())


def test_ids_of_jobs_cannot_be_guessed(client: Any, scan: Path) -> None:
    names = [send(client, scan, params={"wait": "false"}).json()["id"] for _ in range(2)]
    assert all(len(name) >= 22 for name in names)
    assert names[0][:6] != names[1][:6]


def test_a_full_queue_says_when_to_come_again(serving: Callable[..., Any], scan: Path, brake: Any) -> None:
    client = serving(max_jobs=2)
    send(client, scan, params={"wait": "false"})
    send(client, scan, params={"wait": "false"})
    answer = send(client, scan)
    assert (answer.status_code, answer.json()["detail"]) == (503, "The queue is full. Try again later.")
    assert int(answer.headers["retry-after"]) >= 1
    brake.release()


def test_uploads_that_were_refused_take_no_place(serving: Callable[..., Any], scan: Path) -> None:
    client = serving(max_jobs=1)
    for _ in range(3):
        assert send(client, ("x.nii.gz", b"x")).status_code == 422
    assert send(client, scan).status_code == 200
    assert len(list(folder_of(client).iterdir())) == 1


def test_health_answers_while_an_image_is_predicted(client: Any, scan: Path, brake: Any) -> None:
    assert client.get("/health").json()["is_predicting"] is False
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(send, client, scan) for _ in range(2)]
        brake.wait_until_reached()
        for _ in range(100):
            found = client.get("/health").json()
            if found["queue_length"] == 1:
                break
            time.sleep(0.02)
        assert (found["status"], found["queue_length"], found["is_predicting"]) == ("ok", 1, True)
        brake.release()
        assert [each.result().status_code for each in waiting] == [200, 200]


def test_a_stopping_server_ends_the_job_at_hand_and_drops_the_others(client: Any, scan: Path, brake: Any) -> None:
    folder = folder_of(client)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(send, client, scan)
        brake.wait_until_reached()
        waiting = pool.submit(send, client, scan)
        while client.get("/health").json()["queue_length"] == 0:
            time.sleep(0.02)
        client.app.state.jobs.stop()
        dropped = waiting.result(timeout=30)
        assert (dropped.status_code, dropped.json()["detail"]) == (
            503,
            "The server was stopped before the job's turn. Send it again.",
        )
        assert "retry-after" in dropped.headers
        assert client.get(f"/jobs/{dropped.headers['x-job-id']}").json()["state"] == "dropped"
        assert client.get("/health").json()["status"] == "stopping"
        assert send(client, scan).status_code == 503
        brake.release()
        assert running.result(timeout=30).status_code == 200
    client.__exit__(None, None, None)
    assert not folder.exists()


# ---- what is refused


def noisy(value: float) -> bytes:
    array = np.zeros((8, 8, 8), np.float32)
    array[2, 3, 4] = value
    return image_bytes(array)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "notes.txt",
            b"hello",
            r"notes\.txt: not an image by its name; expected \.nii\.gz, \.nii, \.nrrd, .*\.dcm, or a \.zip of one DICOM",
        ),
        (
            "report.pdf",
            b"%PDF",
            r"report\.pdf: not an image by its name; expected \.nii\.gz, \.nii, \.nrrd, .*\.dcm, or a \.zip of one DICOM",
        ),
        ("a.png", b"hello", r"a\.png: pictures \(\.png\) are not supported"),
        ("a.nii.gz", b"hello", r"a\.nii\.gz: not a NIfTI file, only 5 bytes long"),
        ("a.nii.gz", noisy(0)[:-40], r"a\.nii\.gz: the compressed file is cut off"),
        ("a.nii.gz", noisy(np.nan), r"a: channel 0 \(a\.nii\.gz\) has 1 NaN or infinite voxels of 512"),
        ("a.nii.gz", image_bytes(np.zeros((8, 8, 8, 3), np.int16)), "4D image with 3 volumes"),
        (".hidden.nii.gz", noisy(0), "cannot be used"),
        ("a.mhd", b"ObjectType = Image\nElementDataFile = /etc/passwd\n", "a header whose voxels lie in another file"),
        ("a.zip", zipped(("readme.txt", b"x")), r"a\.zip: holds neither a DICOM series nor an image"),
        ("a.zip", zipped(("../../evil.dcm", b"x")), "leads out of the folder"),
        ("a.zip", b"PK nothing", "damaged or no zip"),
    ],
)
def test_a_wrong_file_is_refused_with_our_message_and_no_path_of_the_server(client: Any, name: str, content: bytes, message: str) -> None:
    answer = send(client, (name, content))
    assert answer.status_code == 422
    assert re.search(message, answer.json()["detail"])
    assert str(folder_of(client)) not in answer.text
    assert "medseg3d-serve" not in answer.text
    assert "upload/" not in answer.text


def test_a_job_that_fails_later_says_why(client: Any) -> None:
    place = send(client, ("a.nii.gz", noisy(np.inf)), params={"wait": "false"}).headers["location"]
    found = wait_for_end(client, place)
    assert found["state"] == "failed"
    assert found["message"].startswith("a: channel 0 (a.nii.gz) has 1 NaN or infinite voxels")
    answer = client.get(f"{place}/labels")
    assert (answer.status_code, answer.json()["detail"]) == (422, found["message"])


def test_the_wrong_number_of_files_is_refused(client: Any, scan: Path) -> None:
    answer = send(client, scan, ("other.nii.gz", scan.read_bytes()))
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "2 files (ball_6_0000.nii.gz, other.nii.gz), expected 1 channel.",
    )


def test_an_upload_without_a_file_and_slips_in_fields_are_refused(client: Any, scan: Path) -> None:
    assert "with the @" in client.post("/predict", files={"file": (None, "scan.nii.gz")}).json()["detail"]
    assert client.post("/predict", content=b"x").status_code == 415
    assert "Unknown fields of the form: wiat" in send(client, scan, data={"wiat": "false"}).json()["detail"]
    assert "expected true or false" in send(client, scan, data={"wait": "perhaps"}).json()["detail"]
    assert send(client, scan, data={"wait": "false"}).status_code == 202


def test_an_upload_that_is_too_large_is_refused_and_leaves_nothing(serving: Callable[..., Any]) -> None:
    client = serving(max_upload_mb=1)
    answer = send(client, ("a.nii", bytes(2**20)))
    assert (answer.status_code, answer.json()["detail"]) == (413, "The upload is larger than the 1 MiB that this server takes.")
    assert not list(folder_of(client).iterdir())


def test_a_defect_is_logged_and_not_told(
    client: Any, scan: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("secret detail")

    monkeypatch.setattr(Model, "segment", broken)
    answer = send(client, scan)
    assert (answer.status_code, "secret" in answer.text, "Traceback" in answer.text) == (500, False, False)
    assert "secret detail" in caplog.text
    monkeypatch.undo()
    assert send(client, scan).status_code == 200  # the next one is served


def test_missing_memory_is_told_in_a_sentence(client: Any, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg3d.serving.reader.free_memory", lambda: 100)
    answer = send(client, scan)
    assert (answer.status_code, answer.json()["detail"]) == (507, "The server has not enough memory for this image.")


def test_warnings_of_a_prediction_reach_the_client(client: Any) -> None:
    flat = image_bytes(np.ones((20, 18), np.int16))
    answer = send(client, ("flat.nii.gz", flat))
    assert (answer.status_code, answer.headers["x-num-warnings"]) == (200, "1")
    (warning,) = client.get(f"/jobs/{answer.headers['x-job-id']}").json()["warnings"]
    assert warning.startswith("flat: this image has a single slice")
    assert len(logging.getLogger("medseg3d").handlers) == 0


# ---- what the server says of itself


def test_the_model_is_described(client: Any, model: Model) -> None:
    found = client.get("/model").json()
    assert found["labels"] == [{"value": 0, "name": "background"}, {"value": 3, "name": "shell"}, {"value": 7, "name": "core"}]
    assert found["channels"] == ["MRI"]
    assert [c["name"] for c in found["configurations"]] == [m.configuration.name for m in model.members]
    health = client.get("/health").json()
    assert health["model"] == {"identity": found["identity"], "channels": ["MRI"], "labels": {"background": 0, "shell": 3, "core": 7}}


def test_the_page_loads_nothing_and_runs_its_own_script_only(client: Any) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", answer.text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'; connect-src 'self'" in answer.headers["content-security-policy"]
    assert answer.text.count("<script") == 1
    assert not re.search(r"https?://(?!HOST)|src=", answer.text)
    assert all(name in answer.text for name in ("Balls", "shell", "core", "MRI", 'action="predict"'))


def test_the_interface_describes_itself(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/health",
        "/model",
        "/predict",
        "/jobs/{name}",
        "/jobs/{name}/labels",
        "/jobs/{name}/view",
        "/jobs/{name}/view/{axis}/{index}",
    }
    form = paths["/predict"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert taken() in form["properties"]["file"]["description"]
    assert taken() in client.get("/").text
    assert client.get("/docs").status_code == 200


def test_many_threads_may_ask_for_jobs_while_they_change(client: Any, scan: Path) -> None:
    places = [send(client, scan, params={"wait": "false"}).headers["location"] for _ in range(4)]
    failures: list[int] = []
    ask = threading.Thread(target=lambda: failures.extend(client.get(place).status_code for place in 25 * places))
    ask.start()
    ends = [wait_for_end(client, place)["state"] for place in places]
    ask.join()
    assert (ends, set(failures)) == (["done"] * 4, {200})


def test_warnings_of_any_length_are_a_list_that_can_be_read() -> None:
    for warnings in (["short", "x" * 9000], ["\u00fc" * 9000], [f"warning {number}" for number in range(900)]):
        text = warnings_header(warnings)
        assert len(text) <= MAX_WARNINGS_HEADER
        (first, *_) = json.loads(text)
        assert warnings[0].startswith(first)


def test_a_series_comes_back_as_dicom_where_that_is_asked_for(client: Any, tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", volume((20, 18, 12)), kind=MR)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for path in series.iterdir():
            archive.write(path, path.name)
    content = (tmp_path / "s.zip").read_bytes()
    answer = client.post("/predict?output=dicom-seg,dicom-sr", files={"file": ("s.zip", content)})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/dicom")
    seg = pydicom.dcmread(io.BytesIO(answer.content))
    assert (seg.Modality, seg.ReferencedSeriesSequence[0].SeriesInstanceUID) == ("SEG", "1.2.3.1")
    job = answer.headers["X-Job-Id"]
    report = pydicom.dcmread(io.BytesIO(client.get(f"/jobs/{job}/labels?output=dicom-sr").content))
    assert (report.Modality, report.StudyInstanceUID) == ("SR", seg.StudyInstanceUID)
    assert client.get(f"/jobs/{job}/labels?output=nifti").status_code == 404


def test_an_output_that_does_not_fit_the_image_is_refused(client: Any, scan: Path) -> None:
    files = {"file": ("scan.nii.gz", scan.read_bytes())}
    answer = client.post("/predict", files=files, data={"output": "dicom-seg"})
    assert (answer.status_code, "no DICOM series" in answer.json()["detail"]) == (422, True)
    answer = client.post("/predict?output=gif", files=files)
    assert (answer.status_code, "--output-type gif: expected nifti" in answer.json()["detail"]) == (422, True)
