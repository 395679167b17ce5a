"""The viewer of the server's page: a job that was sent for it gives every slice of image and label map, and a browser shows them."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medseg3d.data.dataset import Case, ChannelFile
from medseg3d.data.open_dataset import open_dataset
from medseg3d.data.reading import read_case
from medseg3d.frame import CANONICAL_FRAME
from medseg3d.geometry import orientation_of, to_canonical
from medseg3d.models.model import Model
from medseg3d.reporting.scene import Plane
from medseg3d.reporting.unsure import predict_uncertainty
from medseg3d.serving import jobs as jobs_module
from medseg3d.serving.view import keep_image
from tests.browser import CHROMIUM, browser

pytest.importorskip("fastapi", reason="needs medseg3d[serve]")
pytest.importorskip("httpx", reason="Starlette's client for tests needs httpx")
pytest.importorskip("python_multipart", reason="needs medseg3d[serve]")


def send(client: Any, scan: Path, **fields: str) -> str:
    answer = client.post("/predict", files=[("file", (scan.name, scan.read_bytes()))], data=fields)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-job-id"])


def layers_of(packed: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, prediction and uncertainty of one slice of one channel."""
    size = shape[0] * shape[1]
    parts = np.frombuffer(packed, np.uint8).reshape(4, *shape).astype(np.uint16)
    assert len(packed) == 4 * size
    return np.cumsum(parts[0] | (parts[1] << 8), axis=1, dtype=np.uint16), parts[2], parts[3]


def test_every_slice_is_that_of_the_image_and_of_the_label_map(client: Any, scan: Path) -> None:
    job = send(client, scan, view="true")
    scene = client.get(f"/jobs/{job}/view").json()
    loaded = nibabel.load(scan)
    orientation = orientation_of(loaded.affine)
    image = to_canonical(np.asarray(loaded.dataobj), orientation)
    stored = nibabel.Nifti1Image.from_bytes(gzip.decompress(client.get(f"/jobs/{job}/labels").content))
    label_map = to_canonical(np.asarray(stored.dataobj), orientation)
    assert (tuple(scene["shape"]), scene["layers"]) == (image.shape, ["prediction", "uncertainty"])
    assert [label["name"] for label in scene["labels"]] == ["shell", "core"]
    (levels,) = scene["channels"]
    for axis in range(3):
        for index in (0, scene["shape"][axis] - 1, scene["position"][axis]):
            plane = Plane(axis=axis, indices=(index,), box=tuple(slice(0, n) for n in scene["shape"]))  # type: ignore[arg-type]
            answer = client.get(f"/jobs/{job}/view/{axis}/{index}")
            numbers, prediction, uncertainty = layers_of(answer.content, plane.shape)
            expected = np.take(image, index, axis)[::-1, ::-1]
            assert np.abs(numbers * levels["step"] + levels["offset"] - expected).max() <= levels["step"]
            assert np.array_equal(np.array([0, 3, 7])[prediction], np.take(label_map, index, axis)[::-1, ::-1])
            assert uncertainty.max() <= 255
    assert scene["has_directions"]


def test_the_report_shows_the_same_uncertainty(client: Any, scan: Path, model: Model, trained: Path) -> None:
    job = send(client, scan, view="true")
    scene = client.get(f"/jobs/{job}/view").json()
    (case, *_) = [case for case in open_dataset(trained).test if case.channels[0].path.name == scan.name]
    found = predict_uncertainty(model, case)
    assert found is not None
    canonical = to_canonical(found, orientation_of(nibabel.load(scan).affine))
    index = scene["position"][0]
    box = (slice(0, scene["shape"][0]), slice(0, scene["shape"][1]), slice(0, scene["shape"][2]))
    packed = client.get(f"/jobs/{job}/view/0/{index}").content
    _, _, uncertainty = layers_of(packed, Plane(axis=0, indices=(index,), box=box).shape)
    assert np.array_equal(uncertainty, canonical[index][::-1, ::-1])
    assert canonical.max() > 0


def test_a_view_changes_no_bit_of_the_label_map_and_goes_with_its_job(client: Any, scan: Path) -> None:
    with_view, without = send(client, scan, view="true"), send(client, scan)
    maps = [client.get(f"/jobs/{job}/labels").content for job in (with_view, without)]
    assert maps[0] == maps[1]
    assert client.get(f"/jobs/{without}/view").status_code == 404
    assert "view=true" in client.get(f"/jobs/{without}/view/0/0").json()["detail"]
    assert client.delete(f"/jobs/{with_view}").status_code == 204
    assert client.get(f"/jobs/{with_view}/view").status_code == 404


def test_slices_of_the_latest_jobs_only_are_kept_and_all_label_maps(client: Any, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MAX_VIEWS", 1)
    first, second = send(client, scan, view="true"), send(client, scan, view="true")
    assert client.get(f"/jobs/{first}/view").status_code == 404
    assert client.get(f"/jobs/{first}/labels").status_code == 200
    assert client.get(f"/jobs/{second}/view").status_code == 200


@pytest.mark.parametrize("place", ["3/0", "0/9999", "-1/0", "0/-1"])
def test_a_slice_that_is_not_there_is_refused(client: Any, scan: Path, place: str) -> None:
    job = send(client, scan, view="true")
    assert client.get(f"/jobs/{job}/view/{place}").status_code == 404
    assert client.get(f"/jobs/{job}/view/a/0").status_code == 422


def test_a_field_that_is_neither_yes_nor_no_is_refused(client: Any, scan: Path) -> None:
    answer = client.post("/predict", files=[("file", (scan.name, scan.read_bytes()))], data={"view": "perhaps"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "view=perhaps: expected true or false.")


@pytest.fixture
def address(model: Model, reader: Any) -> Iterator[str]:
    """A server on a port of this machine."""
    import uvicorn

    from medseg3d.serving.app import build_app
    from medseg3d.serving.settings import ServeSettings

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_app(model, ServeSettings(), reader), log_config=None, lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_uploads_an_image_and_scrolls_through_it(address: str, scan: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as page:
        page.open(address)
        node = page.send("DOM.querySelector", nodeId=page.send("DOM.getDocument")["root"]["nodeId"], selector="input[type=file]")
        page.send("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(scan)])
        page.run("document.querySelector('form button').click()")
        page.wait("document.querySelector('.viewer')?.viewer.panels.every((panel) => panel.slice) || document.querySelector('.warn#said')")
        viewer = "document.querySelector('.viewer').viewer"
        assert page.run("document.getElementById('said').textContent").startswith(f"{scan.name}: done in")
        assert page.run(f"{viewer}.scene.layers") == ["prediction", "uncertainty"]
        before = page.run(f"{viewer}.panels[0].place")
        page.run(f"{viewer}.panels[0].canvas.focus()")
        page.key("ArrowUp")
        assert page.run(f"{viewer}.panels[0].place") == before + 1
        assert page.errors == []
        assert all(request.startswith(address) for request in page.requests if not request.startswith("about:"))
        page.run("document.querySelector('.job button').click()")
        page.wait("document.querySelector('.job').textContent.includes('deleted')")


def test_axes_of_any_plan_are_shown_canonical(model: Model, tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    image = nibabel.Nifti1Image(voxels, np.diag([-1.0, 2.0, -3.0, 1.0]))
    path = tmp_path / "a.nii.gz"
    nibabel.save(image, path)
    case = Case(name="a", channels=(ChannelFile(path=path),))
    shown = []
    for frame in (CANONICAL_FRAME, None):
        folder = tmp_path / str(frame is None)
        (levels,) = keep_image(folder, read_case(case, frame=frame), model.plan)
        shown.append(np.load(folder / "channel_0.npy") * levels.step + levels.offset)
    assert np.allclose(shown[0], shown[1])
    assert np.allclose(shown[0], to_canonical(voxels, orientation_of(image.affine)), atol=0.01)


def test_the_command_shows_where_the_networks_were_unsure(trained: Path, tmp_path: Path) -> None:
    from medseg3d.commandline.cli import main

    root = Path(shutil.copytree(trained, tmp_path / "Balls"))
    assert main(["report", str(root), "--uncertainty", "--device", "cpu", "-q"]) == 0
    page = (root / "medseg3d-work" / "report.html").read_text(encoding="utf-8")
    (scenes,) = re.findall(r'<script type="application/json" id="scenes">(.*?)</script>', page, re.S)
    assert [scene["layers"] for scene in json.loads(scenes)] == [["reference", "prediction", "uncertainty"]] * 2
