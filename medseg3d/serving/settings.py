"""What a server takes, keeps and asks for."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from medseg3d.errors import InputError
from medseg3d.options import ServerOptions

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ServeSettings(ServerOptions):
    """The options of a server. Raises :class:`InputError` for what cannot be, and for an address open to others without a token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token is not None and not self.token.strip():
            raise InputError("The token is empty. Give one that cannot be guessed, such as the output of: openssl rand -hex 32")
        if self.token is None and not is_loopback(self.host):
            raise InputError(
                f"--host {self.host}: others could reach the server, and everyone who can would be served. Give a --token (or set "
                "MEDSEG3D_TOKEN), or serve on 127.0.0.1 only."
            )

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
