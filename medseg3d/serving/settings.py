"""What a server takes, keeps and asks for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from medseg3d.errors import InputError

MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Limits of a server, and its address.

    ``max_upload_mb`` (MiB) is for one request, which may take ``max_upload_minutes``; ``max_unpacked_mb`` for the content of one zip;
    ``max_jobs`` may be in work or wait at once. A label map is kept for ``keep_minutes``, and at most ``max_kept`` are. Raises
    :class:`InputError` for what cannot be, and for an address that others can reach without a ``token``.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    max_upload_mb: float = 2048
    max_upload_minutes: float = 30
    max_unpacked_mb: float = 8192
    max_jobs: int = 16
    keep_minutes: float = 60
    max_kept: int = 100

    def __post_init__(self) -> None:
        if self.token is not None and not self.token.strip():
            raise InputError("The token is empty. Give one that cannot be guessed, such as the output of: openssl rand -hex 32")
        if self.token is None and not is_loopback(self.host):
            raise InputError(
                f"--host {self.host}: others could reach the server, and everyone who can would be served. Give a --token (or set "
                "MEDSEG3D_TOKEN), or serve on 127.0.0.1 only."
            )
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port {self.port}: expected a number from 0 (any free one) to 65535.")
        for name in ("max_upload_mb", "max_upload_minutes", "max_unpacked_mb", "max_jobs", "keep_minutes", "max_kept"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: {getattr(self, name)}; expected a number above 0.")

    @property
    def max_upload_bytes(self) -> int:
        """Of one request's body."""
        return int(self.max_upload_mb * MIB)

    @property
    def max_unpacked_bytes(self) -> int:
        """Of all members of one zip."""
        return int(self.max_unpacked_mb * MIB)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    >>> is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("hospital.example")
    (True, True, False, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
