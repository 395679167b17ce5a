"""Who may ask."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from medseg3d.errors import InputError
from medseg3d.serving.settings import ServeSettings

pytest.importorskip("fastapi", reason="needs medseg3d[serve]")
pytest.importorskip("httpx", reason="Starlette's client for tests needs httpx")

PATHS = ["/", "/model", "/predict", "/jobs/x", "/jobs/x/labels", "/docs", "/openapi.json", "/nothing", "/health/", "//health"]


def password(text: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}, {"Authorization": "Basic §"}])
def test_nothing_but_health_answers_without_the_token(serving: Callable[..., Any], path: str, given: dict[str, str]) -> None:
    client = serving(token="right")
    headers = {name: value.encode("latin-1") for name, value in given.items()}
    answer = client.request("POST" if path == "/predict" else "GET", f"http://localhost{path}", headers=headers)
    assert answer.status_code == 401
    assert "Bearer" in answer.headers["www-authenticate"]


@pytest.mark.parametrize("given", [{"Authorization": "Bearer right ü"}, {"Authorization": "bearer right ü"}, password("anyone:right ü")])
def test_the_token_opens_as_bearer_or_as_password(serving: Callable[..., Any], given: dict[str, str]) -> None:
    client = serving(token="right ü")
    headers = {name: value.encode() for name, value in given.items()}
    assert client.get("/model", headers=headers).status_code == 200
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "server.example", ""])
def test_an_address_for_others_needs_a_token(host: str) -> None:
    with pytest.raises(InputError, match="Give a --token"):
        ServeSettings(host=host)
    assert ServeSettings(host=host, token="x").host == host


@pytest.mark.parametrize("token", ["", "  "])
def test_an_empty_token_is_refused(token: str) -> None:
    with pytest.raises(InputError, match="token is empty"):
        ServeSettings(token=token)


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"max_jobs": 0}, {"max_upload_mb": 0}, {"keep_minutes": float("nan")}, {"max_kept": -1}]
)
def test_limits_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"expected a (whole )?number"):
        ServeSettings(**wrong)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "[", ""])
def test_without_a_token_only_local_names_are_served(serving: Callable[..., Any], host: str) -> None:
    client = serving()
    assert client.get("/model", headers={"Host": host}).status_code == 403
    assert client.get("/model", headers={"Host": "127.0.0.1:8000"}).status_code == 200
    assert client.get("/model", headers={"Host": "[::1]:8000"}).status_code == 200


@pytest.mark.parametrize(
    "said", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]
)
def test_pages_of_other_sites_may_not_send(serving: Callable[..., Any], said: dict[str, str]) -> None:
    client = serving()
    assert client.post("/predict", headers=said).status_code == 403
    assert client.delete("/jobs/x", headers=said).status_code == 403
    assert client.post("/predict", headers={"Origin": "http://localhost"}).status_code == 415
    assert client.post("/predict", headers={"Origin": "https://a.example", "Sec-Fetch-Site": "same-origin"}).status_code == 415
