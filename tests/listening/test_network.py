"""Instances over the network, from the sender's hand to the spool and from the spool to an archive; both ends are ours."""

from __future__ import annotations

import os
from pathlib import Path

import pydicom
import pytest

from medseg3d.errors import InputError
from medseg3d.images.dicom_series import find_series
from medseg3d.listening.night import SendError
from medseg3d.listening.receive import receiving
from medseg3d.listening.rules import Destination, Receive
from medseg3d.listening.send import send
from medseg3d.listening.spool import Spool
from medseg3d.listening.watch import WatchedFolder
from tests.dicom_writer import volume, write_series

pytest.importorskip("pynetdicom", reason="needs medseg3d[dicom]")
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom leaves a refused socket open


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    found = Spool(tmp_path / "spool")
    found.prepare()
    return found


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write_series(tmp_path / "series", volume((4, 4, 5)), PatientName="Secret^Name")


def received(spool: Spool) -> list[Path]:
    return sorted(spool.received.rglob("*.dcm"))


def test_what_is_sent_lies_in_the_spool_with_its_voxels(spool: Spool, series: Path) -> None:
    with receiving(Receive(port=0, callers=("HERE",)), spool) as port:
        there = Destination(name="us", host="127.0.0.1", port=port or 0, ae_title="MEDSEG3D")
        for path in [*sorted(series.iterdir()), series / "000.dcm"]:  # one of them twice
            send(path, there, ae_title="HERE")
    assert len(received(spool)) == 5
    pixels = {pydicom.dcmread(path).PixelData for path in series.iterdir()}
    assert {pydicom.dcmread(path).PixelData for path in received(spool)} == pixels
    assert len(find_series(received(spool)).series) == 1


def test_who_is_not_listed_is_refused_and_is_told(spool: Spool, series: Path) -> None:
    with receiving(Receive(port=0, callers=("HERE",)), spool) as port:
        there = Destination(name="us", host="127.0.0.1", port=port or 0, ae_title="MEDSEG3D")
        with pytest.raises(SendError, match="refused the association"):
            send(series / "000.dcm", there, ae_title="ELSEWHERE")
    with pytest.raises(SendError, match="nobody answers"):
        send(series / "000.dcm", there, ae_title="HERE")
    assert not received(spool)


def test_a_name_that_does_not_resolve_and_a_damaged_result_are_told(series: Path) -> None:
    with pytest.raises(SendError, match=r"cannot be sent to|nobody answers"):
        send(series / "000.dcm", Destination(name="x", host="no-such-host.invalid"), ae_title="HERE")
    (series / "000.dcm").write_bytes(b"no DICOM")
    with pytest.raises(SendError, match="cannot be sent to"):
        send(series / "000.dcm", Destination(name="x", host="127.0.0.1"), ae_title="HERE")


def test_a_port_that_is_taken_is_named(spool: Spool) -> None:
    with receiving(Receive(port=0), spool) as port:
        again = receiving(Receive(port=port), spool)
        with pytest.raises(InputError, match=f"port {port}: cannot be listened on"):
            again.__enter__()


def test_a_folder_takes_a_result_as_a_file(tmp_path: Path, series: Path) -> None:
    send(series / "000.dcm", Destination(name="out", folder=tmp_path / "out"), ae_title="HERE")
    assert (tmp_path / "out/series-000.dcm").read_bytes() == (series / "000.dcm").read_bytes()


def test_a_watched_folder_is_taken_in_once_its_files_are_whole(spool: Spool, series: Path) -> None:
    (series / "notes.txt").write_text("no DICOM")
    (series / "gone.dcm").symlink_to("gone.dcm")  # a link in a circle cannot be read
    folder = WatchedFolder(series, spool)
    now = (series / "004.dcm").stat().st_mtime
    assert (folder.look(now), folder.is_whole) == (0, False)
    assert (folder.look(now + 10), folder.is_whole) == (5, True)
    assert folder.look(now + 20) == 0
    assert WatchedFolder(series, spool).look(now + 20) == 0  # as after a restart
    assert len(received(spool)) == 5
    assert len(list(series.iterdir())) == 7


def test_files_that_are_dated_in_the_future_are_taken_when_they_stay_as_they_are(spool: Spool, series: Path) -> None:
    """As a share whose clock is ahead dates them, or a scanner that lives in another year."""
    now, ahead = 1000.0, 9e9
    for path in series.iterdir():
        os.utime(path, (ahead, ahead))
    folder = WatchedFolder(series, spool)
    assert (folder.look(now), folder.is_whole) == (0, False)
    os.utime(series / "004.dcm", (ahead, ahead + 1))  # it is written to
    assert (folder.look(now + 3), folder.is_whole) == (4, False)
    assert (folder.look(now + 6), folder.is_whole) == (1, True)


def test_a_watched_folder_that_is_away_is_looked_for_again(spool: Spool, series: Path, tmp_path: Path) -> None:
    (tmp_path / "share").write_text("no folder")
    folder = WatchedFolder(tmp_path / "share" / "inbox", spool)
    now = (series / "004.dcm").stat().st_mtime + 10
    assert folder.look(now) == 0
    (tmp_path / "share").unlink()
    (tmp_path / "share").mkdir()
    series.rename(tmp_path / "share" / "inbox")
    assert folder.look(now) == 5
