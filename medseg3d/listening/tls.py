"""TLS for DICOM: what the rules say of certificates → contexts of Python's ssl, for those who send to us and for those whom we send to."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from medseg3d.errors import InputError
from medseg3d.listening.rules import Destination, Receive

HANDSHAKE_SECONDS = 60.0
"""So long a sender may be silent while it says hello, and between two pieces of what it sends."""


class _LateHandshake(ssl.SSLContext):
    """Says hello in the thread of each sender, not in the one that takes senders on: a silent one would keep all others waiting."""

    def wrap_socket(self, sock: socket.socket, *args: Any, **options: Any) -> ssl.SSLSocket:
        """As the class above, but the handshake comes with the first bytes that are read."""
        sock.settimeout(HANDSHAKE_SECONDS)
        return super().wrap_socket(sock, *args, **{**options, "do_handshake_on_connect": False})


def receiving_context(receive: Receive) -> ssl.SSLContext | None:
    """For the port that others send to; None where no certificate is named. Senders need one that ``tls_trusted`` vouches for, if that is
    named. Raises :class:`InputError` for files that are no certificate or key."""
    if receive.tls_certificate is None:
        return None
    context = _LateHandshake(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_own(context, receive.tls_certificate, receive.tls_key)
    if receive.tls_trusted is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_trusted(context, receive.tls_trusted)
    return context


def sending_context(destination: Destination) -> ssl.SSLContext | None:
    """For one whom we send to; None where it is not spoken to by TLS. The other side must have a certificate of its host's name (or
    address) that ``tls_trusted`` vouches for, or the system where none is named."""
    if not destination.tls:
        return None
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if destination.tls_trusted is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _load_trusted(context, destination.tls_trusted)
    if destination.tls_certificate is not None:
        _load_own(context, destination.tls_certificate, destination.tls_key)
    return context


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")  # nobody is there to type one
    except (OSError, ValueError) as error:
        where = certificate if key is None else f"{certificate} with the key {key}"
        raise InputError(
            f"{where}: cannot be used for TLS ({_told(error)}). Expected a certificate and its key as PEM, without a password."
        ) from None


def _load_trusted(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be used for TLS ({_told(error)}). Expected certificates as PEM that are trusted.") from None


def _told(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__)
