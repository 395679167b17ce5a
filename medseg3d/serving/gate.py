"""Who may ask: requests go through, or are answered with 401 or 403 before anything of them is read."""

from __future__ import annotations

import base64
import binascii
import secrets
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from medseg3d.serving.settings import is_loopback

OPEN_PATHS = ("/health",)
"""Load balancers ask without a token."""
READING_METHODS = ("GET", "HEAD", "OPTIONS")


class Gate:
    """Asks for the token on every path but ``/health``; without a token, serves only who calls this machine by a local name.

    The token comes as ``Authorization: Bearer TOKEN``, or as the password of any user, which a browser asks for. A page of another
    site that a user has open cannot use the server: not by a form (its origin is another), nor by a name that it made point here.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app = app
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._refusal(Headers(scope=scope), scope["method"], scope["path"])
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _refusal(self, headers: Headers, method: str, path: str) -> JSONResponse | None:
        if self._token is None and not is_loopback(_host_of(headers.get("host", ""))):
            reason = "Without a token only local names are served, such as http://127.0.0.1. Start the server with --token."
            return _refused(403, reason)
        if method not in READING_METHODS and _is_from_another_site(headers):
            return _refused(403, "A page of another site may not use this server.")
        if self._token is None or path in OPEN_PATHS or self._is_token(headers.get("authorization", "")):
            return None
        refusal = _refused(401, "The token is missing or wrong; send the header 'Authorization: Bearer TOKEN'.")
        refusal.headers.append("WWW-Authenticate", "Bearer")
        refusal.headers.append("WWW-Authenticate", 'Basic realm="medseg3d: any user name, the token as password", charset="UTF-8"')
        return refusal

    def _is_token(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        found = given.strip().encode("latin-1")  # headers are decoded so
        if scheme.lower() == "basic":
            try:
                found = base64.b64decode(found, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return self._token is not None and secrets.compare_digest(found, self._token)


def _refused(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, status, headers={"Connection": "close"})  # the body is not read


def _host_of(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _is_from_another_site(headers: Headers) -> bool:
    """By what browsers say; programs say nothing."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host", "")
