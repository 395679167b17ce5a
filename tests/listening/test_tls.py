"""DICOM over TLS on loopback: who is trusted sends and is sent to, all others are told why not."""

from __future__ import annotations

import gc
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from medseg3d.errors import InputError
from medseg3d.listening.night import SendError
from medseg3d.listening.receive import receiving
from medseg3d.listening.rules import Destination, Receive
from medseg3d.listening.send import send
from medseg3d.listening.spool import Spool
from medseg3d.listening.tls import receiving_context, sending_context
from tests.dicom_writer import volume, write_series

pytest.importorskip("pynetdicom", reason="needs medseg3d[dicom]")
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # pynetdicom leaves a refused socket open
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make certificates"),
]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates that vouch for themselves: ours and another's for 127.0.0.1, and one for another host."""
    place = tmp_path_factory.mktemp("certificates")
    for name, host in (("own", "IP:127.0.0.1"), ("other", "IP:127.0.0.1"), ("elsewhere", "DNS:elsewhere.example")):
        words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -batch"
        files = ["-keyout", str(place / f"{name}.key"), "-out", str(place / f"{name}.pem")]
        subprocess.run(
            [*words.split(), "-subj", f"/CN={name}", "-addext", f"subjectAltName={host}", *files], check=True, capture_output=True
        )
    return place


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    found = Spool(tmp_path / "spool")
    found.prepare()
    yield found
    gc.collect()  # refused sockets, while the filter above holds


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    return write_series(tmp_path / "series", volume((4, 4, 1))) / "000.dcm"


def listener(certificates: Path, name: str = "own", **more: object) -> Receive:
    return Receive(port=0, tls_certificate=certificates / f"{name}.pem", tls_key=certificates / f"{name}.key", **more)  # type: ignore[arg-type]


def there(port: int | None, **more: object) -> Destination:
    return Destination(name="us", host="127.0.0.1", port=port or 0, ae_title="MEDSEG3D", **more)  # type: ignore[arg-type]


def received(spool: Spool) -> int:
    return len(list(spool.received.rglob("*.dcm")))


def test_an_instance_comes_over_tls_from_whom_is_trusted(spool: Spool, instance: Path, certificates: Path) -> None:
    own = {"tls_certificate": certificates / "other.pem", "tls_key": certificates / "other.key"}
    with receiving(listener(certificates, tls_trusted=certificates / "other.pem"), spool) as port:
        send(instance, there(port, tls=True, tls_trusted=certificates / "own.pem", **own), ae_title="HERE")
        assert received(spool) == 1
        with pytest.raises(SendError, match="one side does not trust"):  # it shows no certificate
            send(instance, there(port, tls=True, tls_trusted=certificates / "own.pem"), ae_title="HERE")


@pytest.mark.parametrize(("name", "trusted"), [("own", "other"), ("elsewhere", "elsewhere")])
def test_who_is_not_trusted_or_is_another_host_gets_nothing(
    spool: Spool, instance: Path, certificates: Path, name: str, trusted: str
) -> None:
    refused = pytest.raises(SendError, match="nobody answers by TLS, or one side does not trust the certificate of the other")
    with receiving(listener(certificates, name), spool) as port, refused:
        send(instance, there(port, tls=True, tls_trusted=certificates / f"{trusted}.pem"), ae_title="HERE")
    assert received(spool) == 0


def test_a_sender_without_tls_is_not_taken_and_one_that_is_silent_keeps_nobody_waiting(
    spool: Spool, instance: Path, certificates: Path
) -> None:
    with receiving(listener(certificates), spool) as port, socket.create_connection(("127.0.0.1", port or 0)):  # says nothing
        with pytest.raises(SendError, match="nobody answers"):
            send(instance, there(port), ae_title="HERE")
        send(instance, there(port, tls=True, tls_trusted=certificates / "own.pem"), ae_title="HERE")
    assert received(spool) == 1


def test_old_versions_of_tls_are_not_spoken(certificates: Path) -> None:
    for context in (receiving_context(listener(certificates)), sending_context(there(1, tls=True))):
        assert context is not None
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert sending_context(there(1)) is None


def test_files_that_are_no_certificate_or_want_a_password_are_named(certificates: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked.key"
    words = ["openssl", "ec", "-in", str(certificates / "own.key"), "-aes128", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(words, check=True, capture_output=True)
    (tmp_path / "text.pem").write_text("no certificate")
    for key in (locked, tmp_path / "missing.key", certificates / "other.key"):
        with pytest.raises(InputError, match=r"own\.pem with the key .* cannot be used for TLS"):
            receiving_context(Receive(port=0, tls_certificate=certificates / "own.pem", tls_key=key))
    with pytest.raises(InputError, match=r"text\.pem: cannot be used for TLS .* that are trusted"):
        sending_context(there(1, tls=True, tls_trusted=tmp_path / "text.pem"))
