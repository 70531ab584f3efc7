"""Bodies too large, too slow or too deep; heads that never end. Over real sockets where time and bytes matter."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gristmill.serve import connection, served
from gristmill.serve.bounds import Bounds
from gristmill.serve.depth import check_depth
from gristmill.serve.errors import ApiError
from gristmill.serve.http import on_error

MAX = 100_000
SECONDS = 0.5


def app(answers_its_own_errors: bool) -> Starlette:
    async def size(request: Request) -> JSONResponse:
        return JSONResponse({"size": len(await request.body())})

    return Starlette(
        routes=[Route("/{path:path}", size, methods=["POST"])],
        middleware=[Middleware(Bounds, MAX, SECONDS)],
        exception_handlers={ApiError: on_error} if answers_its_own_errors else None,
    )


@pytest.fixture(scope="module", params=[True, False], ids=["handled", "unhandled"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with served(app(request.param)) as address:
        yield address


def test_a_body_up_to_the_bound_is_taken(url: str) -> None:
    assert httpx.post(f"{url}/x", content=b"x" * MAX).json() == {"size": MAX}
    chunks = (b"x" * 1000 for _ in range(MAX // 1000))
    assert httpx.post(f"{url}/x", content=chunks).json() == {"size": MAX}


@pytest.mark.parametrize("size", [MAX + 1, 20 * MAX])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", ["/x", "/v1/messages"])
def test_a_larger_body_is_refused(url: str, size: int, chunked: bool, path: str) -> None:
    content = (b"x" * 1000 for _ in range(-(-size // 1000))) if chunked else b"x" * size
    refused = httpx.post(url + path, content=content, timeout=20)
    assert refused.status_code == 413
    assert refused.headers["connection"] == "close"
    told = refused.json()["error"]
    assert str(MAX) in told["message"]
    if path == "/v1/messages":
        assert told["type"] == "request_too_large"


def test_a_declared_length_is_refused_before_the_body_comes(url: str) -> None:
    with _connect(url) as connection_:
        connection_.sendall(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 100001\r\n\r\n")
        assert connection_.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("sent", [b"", b"x", b"x" * 5000])
def test_a_body_that_does_not_come_is_refused(url: str, sent: bytes) -> None:
    with _connect(url) as connection_:
        connection_.sendall(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 50000\r\n\r\n" + sent)
        begun = time.monotonic()
        assert connection_.recv(100).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - begun > SECONDS * 0.9
        connection_.settimeout(20)
        while connection_.recv(1000):
            pass  # and then the connection ends


def test_a_body_that_drips_is_refused(url: str) -> None:
    """A byte at a time holds nothing up: what counts is how long it takes altogether."""
    with _connect(url) as connection_:
        connection_.sendall(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 50000\r\n\r\n")
        connection_.settimeout(0.1)
        for _ in range(100):
            connection_.sendall(b"x")
            try:
                assert connection_.recv(100).startswith(b"HTTP/1.1 408 ")
                return
            except TimeoutError:
                pass
        pytest.fail("never refused")


def test_too_many_headers(url: str) -> None:
    headers = {f"x-{number}": "1" for number in range(101)}
    assert httpx.post(f"{url}/x", headers=headers).status_code == 431
    headers = {f"x-{number}": "1" for number in range(80)}
    assert httpx.post(f"{url}/x", headers=headers).status_code == 200


def test_a_head_that_grows_without_end_is_refused(url: str) -> None:
    with _connect(url) as connection_:
        connection_.sendall(b"POST /x HTTP/1.1\r\nhost: x\r\nx-a: ")
        got = b""
        try:
            for _ in range(1000):
                connection_.sendall(b"y" * 1000)
                time.sleep(0.001)
            got = connection_.recv(100)
        except OSError:  # closed on us
            return
        assert got == b"" or got.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("drip", [False, True])
@pytest.mark.parametrize(
    "before", [b"", b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"]
)
def test_a_head_that_does_not_come_ends_its_connection(monkeypatch, drip: bool, before) -> None:
    monkeypatch.setattr(connection.Protocol, "head_seconds", 0.5)
    with served(app(True)) as address, _connect(address) as connection_:
        if before:
            connection_.sendall(before)
            assert connection_.recv(1000).startswith(b"HTTP/1.1 200")
        connection_.settimeout(0.1)
        connection_.sendall(b"POST /x HTTP/1.1\r\n")
        begun = time.monotonic()
        while time.monotonic() - begun < 10:
            try:
                if drip:
                    connection_.sendall(b"x")
                if connection_.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:  # reset: we sent after it was closed
                break
        assert 0.4 < time.monotonic() - begun < 5


def test_a_slow_answer_is_no_slow_head(monkeypatch) -> None:
    """The connection waits for its server as long as that takes."""
    monkeypatch.setattr(connection.Protocol, "head_seconds", 0.2)

    async def slow(request: Request) -> JSONResponse:
        await request.body()
        await asyncio.sleep(1)
        return JSONResponse({})

    with served(Starlette(routes=[Route("/", slow, methods=["POST"])])) as address:
        assert httpx.post(address, content=b"x").status_code == 200


JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\/ab\n\x00é'),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(alphabet='[]{}"\\a'), inner, max_size=4)
    ),
    max_leaves=20,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


@given(JSON, st.booleans())
def test_depth_is_that_of_the_parsed_value(value: object, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    deep = depth(value)
    check_depth(raw, deep)
    if deep:
        with pytest.raises(ApiError):
            check_depth(raw, deep - 1)


@pytest.mark.parametrize("opened", ["[", '{"a":', '[{"a":', ' [ "\\"[" , '])
def test_deep_json_is_refused_whole_or_cut(opened: str) -> None:
    for raw in (opened * 65, opened * 1_000_000):
        with pytest.raises(ApiError, match="deeper than 64") as error:
            check_depth(raw.encode())
        assert error.value.status == 400
    check_depth(("[" * 64 + "]" * 64).encode())
    check_depth(b'"' + b"[" * 1000 + b'"')
    check_depth(b"]" * 1000)  # no JSON, which is for the parser to say


def _connect(url: str) -> socket.socket:
    parts = httpx.URL(url)
    return socket.create_connection((parts.host, parts.port), timeout=20)
