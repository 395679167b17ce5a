"""A result goes out: by C-STORE to another application, by STOW-RS to a DICOMweb server, or as a file into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg3d.errors import StorageError
from medseg3d.files import copy_file
from medseg3d.listening.night import SendError
from medseg3d.listening.rules import Destination
from medseg3d.listening.tls import sending_context
from medseg3d.listening.web import client_for, web_errors

ARRIVED = (0x0000, 0xB000, 0xB006, 0xB007, 0x0111)
"""Success, success with a warning (PS3.4, B.2.3), and "duplicate SOP instance": it is there already."""
SECONDS = 60.0
"""After which silence means that nobody is there."""


def send(path: Path, destination: Destination, *, ae_title: str) -> None:
    """Send one file; ``ae_title`` is ours. Raises :class:`SendError` where it did not arrive. To send it again is harmless."""
    if destination.folder is not None:
        try:
            copy_file(path, destination.folder / f"{path.parent.name}-{path.name}")
        except StorageError as error:
            raise SendError(str(error)) from error
    elif path.suffix != ".dcm":
        return  # a NIfTI file stays in the spool: only a folder takes it
    else:
        try:
            if destination.dicomweb is not None:
                _stow(path, destination)
            else:
                _store(path, destination, ae_title)
        except (OSError, ValueError, RuntimeError, TypeError) as error:  # a name that does not resolve, a result that is damaged
            raise SendError(f"{destination.host or destination.dicomweb}: cannot be sent to ({type(error).__name__}).") from error


def _result(path: Path) -> Any:
    """A result as pydicom reads it."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        return dcmread(path)
    except InvalidDicomError:
        raise ValueError("no DICOM file") from None


def _store(path: Path, destination: Destination, ae_title: str) -> None:
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
    from pynetdicom import AE

    dataset = _result(path)
    entity = AE(ae_title=ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = SECONDS
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        entity.add_requested_context(dataset.SOPClassUID, syntax)
    context = sending_context(destination)
    tls = None if context is None else (context, destination.host)
    association = entity.associate(destination.host, destination.port, ae_title=destination.ae_title, tls_args=tls)
    if not association.is_established:
        silent = "nobody answers" if tls is None else "nobody answers by TLS, or one side does not trust the certificate of the other"
        reason = "it refused the association" if association.is_rejected else silent
        raise SendError(f"{destination.host}, port {destination.port}, title {destination.ae_title}: {reason}.")
    try:
        if not association.accepted_contexts:
            advice = ' With segmentation_type = "binary" it may.' if dataset.SOPClassUID.endswith(".66.7") else ""
            raise SendError(f"{destination.ae_title} does not take {dataset.SOPClassUID.name or dataset.SOPClassUID}.{advice}")
        answer = association.send_c_store(dataset)
    finally:
        association.release()
    status = answer.get("Status")
    if status not in ARRIVED:
        told = "no answer" if status is None else f"status 0x{status:04X} {answer.get('ErrorComment', '')}".strip()
        raise SendError(f"{destination.ae_title} did not store it ({told}).")


def _stow(path: Path, destination: Destination) -> None:
    url = str(destination.dicomweb)
    with web_errors(url):
        answer = client_for(url, destination.user, destination.password).store_instances([_result(path)])
    failed = answer.get("FailedSOPSequence", [])
    if any(item.get("FailureReason") not in ARRIVED for item in failed):
        raise SendError(f"{url} did not store it (failure {failed[0].get('FailureReason')}).")
