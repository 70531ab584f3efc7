"""Which pages may speak to the server; what pages of ours are told about others."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from gristmill.serve.origins import Origins, cors, is_loopback


def client(loopback: bool = True, allowed: tuple[str, ...] = ()) -> TestClient:
    async def page(request: Request) -> HTMLResponse:
        return HTMLResponse("<p>")

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse({})

    return TestClient(
        Starlette(
            routes=[Route("/", page), Route("/v1/x", answer, methods=["GET", "POST"])],
            middleware=[Middleware(Origins, loopback, allowed), *cors(allowed)],
        ),
        base_url="http://127.0.0.1:8000",
    )


LOOPBACK = [
    "localhost",
    "localhost:8000",
    "LOCALHOST:1",
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.9.9.9",
]
LOOPBACK += ["[::1]", "[::1]:8000", "app.localhost:80", "localhost."]
ELSEWHERE = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
]
ELSEWHERE += [
    "10.0.0.1",
    "0.0.0.0:8000",
    "[fe80::1]",
    "evil.example#@localhost",
    "evil@localhost",
    "[",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_on_loopback_its_own_names_are_served(host: str) -> None:
    assert client().post("/v1/x", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ELSEWHERE)
def test_on_loopback_other_names_are_refused(host: str) -> None:
    refused = client().post("/v1/x", headers={"host": host})
    assert refused.status_code == 421 and "localhost" in refused.json()["error"]["message"]


def test_elsewhere_any_name_is_served() -> None:
    assert client(loopback=False).post("/v1/x", headers={"host": "gpu7.lan"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://127.0.0.1:8000"},
        {"origin": "https://chat.example", "sec-fetch-site": "same-origin"},  # behind a proxy
    ],
)
def test_programs_and_the_servers_own_page_are_served(headers: dict[str, str]) -> None:
    got = client().post("/v1/x", headers=headers)
    assert got.status_code == 200
    assert not any(name.startswith("access-control") for name in got.headers)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999"])
def test_other_pages_are_refused(origin: str) -> None:
    headers = {"origin": origin, "sec-fetch-site": "cross-site", "content-type": "text/plain"}
    refused = client().post("/v1/x", headers=headers)
    assert refused.status_code == 403 and "--cors-origin" in refused.json()["error"]["message"]
    assert "access-control-allow-origin" not in refused.headers


def test_named_origins_may_preflight_ask_and_read() -> None:
    http = client(allowed=("https://chat.example",))
    asked = {
        "origin": "https://chat.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    preflight = http.options("/v1/x", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    got = http.post("/v1/x", headers={"origin": "https://chat.example"})
    assert got.headers["access-control-allow-origin"] == "https://chat.example"
    assert http.post("/v1/x", headers={"origin": "https://evil.example"}).status_code == 403
    anyone = client(allowed=("*",)).post("/v1/x", headers={"origin": "https://evil.example"})
    assert anyone.headers["access-control-allow-origin"] == "*"


def test_pages_may_load_nothing_from_elsewhere_and_not_be_framed() -> None:
    headers = client().get("/").headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "content-security-policy" not in client().get("/v1/x").headers


def test_loopback_addresses() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("::1") and not is_loopback("0.0.0.0")
