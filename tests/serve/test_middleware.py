"""All that stands before the routes, together and in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from gristmill.serve.errors import ApiError
from gristmill.serve.http import on_error
from gristmill.serve.keys import KeyFile, add_key
from gristmill.serve.middleware import Operations


@pytest.fixture
def secret(tmp_path: Path) -> str:
    return add_key(tmp_path / "keys.jsonl", "alice", requests_per_minute=2, tokens_per_minute=100)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def http(tmp_path: Path, secret: str, lines: list[str]) -> TestClient:
    operations = Operations(
        keys=KeyFile(tmp_path / "keys.jsonl"),
        cors_origins=("https://chat.example",),
        write=lines.append,
        max_body_bytes=1000,
    )

    async def answer(request: Request) -> JSONResponse:
        body = await request.body()
        request.state.allowance.charge(len(body))
        return JSONResponse({})

    async def page(request: Request) -> HTMLResponse:
        return HTMLResponse("<p>")

    return TestClient(
        Starlette(
            routes=[Route("/", page), Route("/v1/x", answer, methods=["POST"])],
            middleware=operations.middleware(),
            exception_handlers={ApiError: on_error},
        ),
        base_url="http://localhost:8000",
    )


def test_a_request_passes_them_all_and_is_logged(http: TestClient, secret: str, lines) -> None:
    got = http.post("/v1/x", headers={"x-api-key": secret}, content=b"x" * 10)
    assert got.status_code == 200
    assert got.headers["x-ratelimit-remaining-requests"] == "1"
    assert got.headers["x-ratelimit-remaining-tokens"] == "90"
    (line,) = map(json.loads, lines)
    assert (line["key"], line["status"], line["id"]) == ("alice", 200, got.headers["x-request-id"])


def test_each_refusal_is_logged_with_its_status(http: TestClient, secret: str, lines) -> None:
    key = {"x-api-key": secret}
    asked = [
        http.post("/v1/x", headers=key | {"host": "evil.example"}),
        http.post("/v1/x", headers=key | {"origin": "https://evil.example"}),
        http.post("/v1/x"),
        http.post("/v1/x", headers=key, content=b"x" * 1001),
        http.post("/v1/x", headers=key, content=b"x" * 101),
        http.post("/v1/x", headers=key),
        http.post("/v2/x", headers=key),
    ]
    told = [got.status_code for got in asked]
    assert told == [421, 403, 401, 413, 429, 429, 429]
    assert [json.loads(line)["status"] for line in lines] == told
    assert all(got.headers["x-request-id"] and got.json()["error"]["message"] for got in asked)
    assert asked[5].headers["retry-after"] == "30"


def test_a_preflight_needs_no_key_and_refusals_can_be_read_by_the_page(http: TestClient) -> None:
    origin = {"origin": "https://chat.example"}
    preflight = http.options("/v1/x", headers=origin | {"access-control-request-method": "POST"})
    assert preflight.status_code == 200
    refused = http.post("/v1/x", headers=origin)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://chat.example"


def test_the_page_is_open_and_safe(http: TestClient) -> None:
    page = http.get("/")
    assert page.status_code == 200 and "content-security-policy" in page.headers
