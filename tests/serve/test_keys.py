"""Keys: made once, kept as hashes, asked for on every route, reread when the file changes."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import openai
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from gristmill.errors import RequestError
from gristmill.serve import served
from gristmill.serve.auth import Auth, key_of
from gristmill.serve.keys import KeyFile, add_key, read_keys, remove_key

ROUTES = ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/metrics", "/ready"]


def app(keys: KeyFile) -> Starlette:
    async def whoami(request: Request) -> JSONResponse:
        key = key_of(request.scope)
        return JSONResponse({"key": key and key.name})

    routes = [Route("/{path:path}", whoami, methods=["GET", "POST"])]
    return Starlette(routes=routes, middleware=[Middleware(Auth, keys)])


def client(keys: KeyFile) -> TestClient:
    return TestClient(app(keys))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.jsonl"


def test_the_file_holds_the_hash_and_not_the_key(path: Path) -> None:
    secret = add_key(path, "alice", requests_per_minute=60, models=("a",))
    line = json.loads(path.read_text())
    assert line["hash"] == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in path.read_text()
    assert (line["name"], line["requests_per_minute"], line["models"]) == ("alice", 60, ["a"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(secret) >= 43 and add_key(path, "bob") != secret  # 43 characters of base64: 256 bits


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_asks_for_a_key(path: Path, route: str) -> None:
    secret = add_key(path, "alice")
    http = client(KeyFile(path))
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {secret}"},
        {"authorization": secret},
        {"authorization": "Bearer "},
        {"x-api-key": secret[:-1]},
        {"authorization": f"Bearer {hashlib.sha256(secret.encode()).hexdigest()}"},
    ):
        refused = http.post(route, headers=headers)
        assert refused.status_code == 401, headers
        if route.startswith("/v1/messages"):
            assert refused.json()["type"] == "error"
            assert refused.json()["error"]["type"] == "authentication_error"
        else:
            assert refused.json()["error"]["code"] == "invalid_api_key"
        assert refused.headers["www-authenticate"] == "Bearer"
    for headers in (
        {"authorization": f"Bearer {secret}"},
        {"authorization": f"bearer  {secret} "},
        {"x-api-key": secret},
        {"x-api-key": secret, "authorization": "Bearer placeholder"},
        {"x-api-key": "placeholder", "authorization": f"Bearer {secret}"},
    ):
        assert http.post(route, headers=headers).json() == {"key": "alice"}


@pytest.mark.parametrize("route", ["/", "/health", "/static/app.js"])
def test_health_and_the_apps_files_are_open(path: Path, route: str) -> None:
    add_key(path, "alice")
    assert client(KeyFile(path)).get(route).status_code == 200


@pytest.mark.parametrize("route", ["/healthy", "/health/", "/staticfile", "//", "/HEALTH"])
def test_what_looks_like_an_open_route_is_not(path: Path, route: str) -> None:
    add_key(path, "alice")
    http = client(KeyFile(path))
    assert http.get(f"http://testserver{route}").status_code == 401


def test_the_openai_client_says_that_its_key_is_wrong(path: Path) -> None:
    secret = add_key(path, "alice")
    with served(app(KeyFile(path))) as url:
        wrong = openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as error:
            wrong.post("/x", cast_to=object)
        assert error.value.code == "invalid_api_key"
        right = openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)
        assert right.post("/x", cast_to=object) == {"key": "alice"}


def test_a_changed_file_is_seen_at_the_next_request(path: Path) -> None:
    alice = add_key(path, "alice")
    keys = KeyFile(path)
    assert keys.find(alice.encode())
    bob = add_key(path, "bob")
    found = keys.find(bob.encode())
    assert found is not None and found.name == "bob"
    remove_key(path, "alice")
    assert keys.find(alice.encode()) is None
    path.write_text("")  # by an editor, in place
    assert keys.find(bob.encode()) is None


@pytest.mark.parametrize(
    "broken", ['{"name": "alice"', '{"name": "alice"}', '{"nmae": "x"}', "\xff", None]
)
def test_a_broken_edit_keeps_the_keys_and_is_logged(path: Path, caplog, broken: str | None) -> None:
    alice = add_key(path, "alice")
    keys = KeyFile(path)
    good = path.read_bytes()
    if broken is None:
        path.unlink()
    else:
        path.write_bytes(good + broken.encode("latin-1"))
    with caplog.at_level(logging.ERROR, "gristmill.serve"):
        assert keys.find(alice.encode()) and keys.find(alice.encode())
    (logged,) = caplog.records  # once, not at each request
    assert str(path) in logged.getMessage()
    path.write_bytes(good.replace(b"alice", b"carol"))
    found = keys.find(alice.encode())
    assert found is not None and found.name == "carol"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"name": "a"}', "line 1: hash"),
        ("\n{", "line 2"),
        ('{"name": "a b", "hash": "%s", "created": "2026-01-01T00:00:00Z"}' % ("0" * 64), "name"),
        ('{"name": "a", "hash": "abc", "created": "2026-01-01T00:00:00Z"}', "hash"),
        (
            '{"name": "a", "hash": "%s", "created": "2026-01-01T00:00:00Z", "concurrent": 0}'
            % ("0" * 64),
            "concurrent",
        ),
        (
            '{"name": "a", "hash": "%s", "created": "2026-01-01T00:00:00Z", "rpm": 1}' % ("0" * 64),
            "rpm",
        ),
        (
            ('{"name": "a", "hash": "%s", "created": "2026-01-01T00:00:00Z"}\n' % ("0" * 64)) * 2,
            "twice",
        ),
    ],
)
def test_a_broken_file_is_told_by_line_and_field(path: Path, text: str, told: str) -> None:
    path.write_text(text)
    with pytest.raises(RequestError, match=told) as error:
        KeyFile(path)
    assert str(path) in str(error.value)


def test_a_name_that_is_taken_or_unknown_changes_nothing(path: Path) -> None:
    add_key(path, "alice")
    before = path.read_bytes()
    with pytest.raises(RequestError, match="has a key alice already"):
        add_key(path, "alice")
    with pytest.raises(RequestError, match='Did you mean "alice"'):
        remove_key(path, "alcie")
    assert path.read_bytes() == before
    with pytest.raises(RequestError, match="keys add NAME"):
        read_keys(path.with_name("none"))
