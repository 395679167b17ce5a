"""A night with Orthanc, on loopback: a study goes in, its results come back, also where the listener is killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from medseg3d.commandline.cli import main
from tests.dicom_writer import MR, write_series

pytest.importorskip("pynetdicom", reason="needs medseg3d[dicom]")
ORTHANC = shutil.which("Orthanc")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
PATIENCE = 300.0
"""Seconds: a machine that does other things as well loads torch in a minute."""


def study(folder: Path, trained: Path, study_uid: str = "1.2.840.99.1") -> Path:
    """A case of the tiny dataset as a series."""
    image = np.asarray(nibabel.load(trained / "imagesTs/ball_6_0000.nii.gz").dataobj).astype(np.int16)
    tags = {"kind": MR, "PixelSpacing": ["1", "1"], "step": (0, 0, 1.5), "SliceThickness": "1.5", "PatientName": "Secret^Name"}
    return write_series(folder, image, study=study_uid, series=f"{study_uid}.5", SeriesDescription="T1 axial", **tags)


def rules(place: Path, trained: Path, receive: str, destination: str) -> Path:
    """A file with one rule."""
    path = place / "night.toml"
    path.write_text(
        f'[receive]\nsettle_seconds = 0.5\n{receive}\n[[rule]]\nname = "balls"\nmodel = "{trained / "medseg3d-work"}"\nmodality = "MR"\n'
        f'outputs = ["dicom-seg", "dicom-sr"]\nsend_to = ["there"]\n[[destination]]\nname = "there"\n{destination}\n',
        encoding="utf-8",
    )
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(found: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)


def test_a_watched_folder_is_worked_off_once(trained: Path, tmp_path: Path) -> None:
    series = study(tmp_path / "inbox", trained)
    for path in series.iterdir():  # as if copied a while ago
        long_ago = path.stat().st_mtime - 60
        os.utime(path, (long_ago, long_ago))
    file = rules(tmp_path, trained, 'folder = "inbox"', 'folder = "outbox"')
    assert main(["listen", str(file), "--once", "--device", "cpu", "-q"]) == 0
    seg, report = (next((tmp_path / "outbox").glob(f"*{ending}.dcm")) for ending in (".seg", ".sr"))
    assert len(list((tmp_path / "outbox").iterdir())) == 2
    assert pydicom.dcmread(seg).ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.840.99.1.5"
    assert pydicom.dcmread(report).PatientName == "Secret^Name"
    log = (tmp_path / "spool/listen.log").read_text(encoding="utf-8")
    assert log.count("sent to there") == 1
    assert "Secret" not in log


@dataclass
class Archive:
    """A running Orthanc."""

    http: str
    port: int
    listener: int

    def get(self, path: str) -> object:
        with urllib.request.urlopen(f"{self.http}/{path}", timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, content: bytes) -> object:
        with urllib.request.urlopen(urllib.request.Request(f"{self.http}/{path}", content), timeout=120) as answer:
            return json.loads(answer.read())

    def kinds(self) -> list[str]:
        """The modality of each series, once for each instance."""
        found = self.get("series?expand")
        assert isinstance(found, list)
        return sorted(each["MainDicomTags"]["Modality"] for each in found for _ in each["Instances"])


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    if ORTHANC is None:
        pytest.skip("Orthanc (Debian's package orthanc) is not installed")
    http, dicom, listener = free_port(), free_port(), free_port()
    place = tmp_path / "orthanc"
    place.mkdir()
    configuration = {
        "StorageDirectory": str(place),
        "IndexDirectory": str(place),
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "DicomModalities": {"medseg3d": ["MEDSEG3D", "127.0.0.1", listener]},
        "Plugins": [str(DICOMWEB)] if DICOMWEB.exists() else [],
    }
    (place / "orthanc.json").write_text(json.dumps(configuration), encoding="utf-8")
    with subprocess.Popen([ORTHANC, place / "orthanc.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        found = Archive(http=f"http://127.0.0.1:{http}", port=dicom, listener=listener)

        def answers() -> bool:
            try:
                return bool(found.get("system"))
            except (urllib.error.URLError, OSError):
                return False

        try:
            until(answers)
            yield found
        finally:
            process.kill()


@contextmanager
def listening(file: Path, archive: Archive) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a process of its own, once it takes associations."""
    with subprocess.Popen([sys.executable, "-m", "medseg3d", "listen", str(file), "--device", "cpu", "-q"]) as process:

        def takes() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", archive.listener)) == 0

        try:
            until(takes)
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_a_study_from_orthanc_comes_back_as_seg_and_report_whenever_the_listener_is_killed(
    trained: Path, tmp_path: Path, archive: Archive
) -> None:
    for path in study(tmp_path / "study", trained).iterdir():
        archive.post("instances", path.read_bytes())
    destination = f'host = "127.0.0.1"\nport = {archive.port}\nae_title = "ORTHANC"'
    file = rules(tmp_path, trained, f"port = {archive.listener}", destination)
    name = archive.get("studies")[0]  # type: ignore[index]
    jobs = tmp_path / "spool/jobs"
    with listening(file, archive) as process:
        archive.post("modalities/medseg3d/store", name.encode())
        process.kill()  # kill -9 as soon as the study is answered for
    with listening(file, archive) as process:
        until(lambda: any('"predicted"' in path.read_text() for path in jobs.glob("[!.]*.json")) or len(archive.kinds()) > 12)
        process.kill()
    with listening(file, archive):
        until(lambda: len(archive.kinds()) == 14)
        archive.post("modalities/medseg3d/store", name.encode())  # with its results, as an archive does that sends what changed
        until(lambda: len(list((tmp_path / "spool/received").rglob("*.dcm"))) == 14)
        until(lambda: all('"sent"' in path.read_text() for path in jobs.glob("[!.]*.json")))
    assert archive.kinds() == ["MR"] * 12 + ["SEG", "SR"]
    log = (tmp_path / "spool/listen.log").read_text(encoding="utf-8")
    assert log.count("slices to be predicted") == 1
    assert "Secret" not in log


@pytest.mark.slow
@pytest.mark.skipif(not DICOMWEB.exists(), reason="Orthanc's DICOMweb (Debian's package orthanc-dicomweb) is not installed")
def test_studies_are_fetched_and_results_stored_by_dicomweb(trained: Path, tmp_path: Path, archive: Archive) -> None:
    for path in study(tmp_path / "study", trained).iterdir():
        archive.post("instances", path.read_bytes())
    url = f'dicomweb = "{archive.http}/dicom-web"'
    file = rules(tmp_path, trained, f"{url}\ndays = 20000", url)
    for _ in range(2):
        assert main(["listen", str(file), "--once", "--device", "cpu", "-q"]) == 0
    assert archive.kinds() == ["MR"] * 12 + ["SEG", "SR"]
