"""Going down: a real process with a real signal, and streams that are under way when it comes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from gristmill.serve.middleware import Operations

PROGRAM = """
import asyncio, sys
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from gristmill.serve import address_of, listen, serve
from gristmill.serve.middleware import Operations

operations = Operations()
life = operations.lifecycle

async def health(request):
    return JSONResponse({"under_way": life.under_way})

async def stream(request):
    seconds = float(request.query_params["seconds"])
    deaf = "deaf" in request.query_params
    aborted = asyncio.Event()

    async def pieces():
        with life.abortable((lambda: None) if deaf else aborted.set):
            yield b"begun\\n"
            try:
                await asyncio.wait_for(aborted.wait(), seconds)
            except TimeoutError:
                yield b"whole\\n"
            else:
                yield b"aborted in good order\\n"

    return StreamingResponse(pieces())

app = Starlette(
    routes=[Route("/health", health), Route("/ready", life.ready), Route("/v1/stream", stream)],
    middleware=operations.middleware(),
)
app.state.lifecycle = life
listener = listen("127.0.0.1", 0)
serve(app, listener, lambda: print(address_of(listener), flush=True), float(sys.argv[1]))
print("ended", flush=True)
"""


@contextmanager
def server(drain_seconds: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(drain_seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> str:
    """Once it has ended by itself, with 0; what it wrote to standard error."""
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "ended\n"), err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_ends_and_nothing_new_begins(sent: signal.Signals) -> None:
    with server(30) as (process, url), httpx.Client(base_url=url) as http:
        assert http.get("/ready").json() == {"status": "ready"}
        with http.stream("GET", "/v1/stream?seconds=3") as response:
            pieces = response.iter_lines()
            assert next(pieces) == "begun"
            process.send_signal(sent)
            until(lambda: httpx.get(f"{url}/ready").status_code == 503)
            ready = httpx.get(f"{url}/ready")  # by a new connection: it listens still
            assert ready.json() == {"status": "draining"} and ready.headers["retry-after"]
            refused = httpx.get(f"{url}/v1/stream?seconds=0")
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert refused.headers["connection"] == "close"
            assert "going down" in refused.json()["error"]["message"]
            assert httpx.get(f"{url}/health").status_code == 200
            assert next(pieces) == "whole"
            assert not list(pieces)
        ended(process)


def test_what_takes_longer_is_aborted_with_a_last_word() -> None:
    with server(0.5) as (process, url), httpx.stream("GET", f"{url}/v1/stream?seconds=60") as got:
        pieces = got.iter_lines()
        assert next(pieces) == "begun"
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert next(pieces) == "aborted in good order"
        assert time.monotonic() - begun > 0.4
        assert not list(pieces)  # and its end is the end of a response, not of a connection
        assert "aborting 1 requests" in ended(process)


def test_who_does_not_hear_of_it_is_cut_off() -> None:
    with server(0) as (process, url):
        with httpx.stream("GET", f"{url}/v1/stream?seconds=60&deaf=1") as got:
            pieces = got.iter_lines()
            assert next(pieces) == "begun"
            process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                next(pieces)
        process.communicate(timeout=30)
        assert process.returncode == 0


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(sent: signal.Signals) -> None:
    with server(60) as (process, url), httpx.stream("GET", f"{url}/v1/stream?seconds=60") as got:
        pieces = got.iter_lines()  # kept: without it the response would be closed
        assert next(pieces) == "begun"
        process.send_signal(sent)
        process.send_signal(sent)  # passed on once more by a wrapper: the same signal
        until(lambda: httpx.get(f"{url}/ready").status_code == 503)
        time.sleep(0.6)
        assert process.poll() is None
        process.send_signal(sent)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + sent
    assert "second signal" in err and "Traceback" not in err


def test_with_nothing_under_way_it_ends_at_once() -> None:
    with server(60) as (process, url), httpx.Client(base_url=url) as idle:
        assert idle.get("/health").json() == {"under_way": 1}  # itself; the connection stays open
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        ended(process)
        assert time.monotonic() - begun < 10


def test_while_loading_requests_are_refused_and_health_is_not() -> None:
    operations = Operations()
    life = operations.lifecycle

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse({})

    http = TestClient(
        Starlette(
            routes=[Route("/ready", life.ready), Route("/{path:path}", answer)],
            middleware=operations.middleware(),
        ),
        base_url="http://localhost",
    )
    life.stage, life.detail = "loading", "tiny"
    assert http.get("/health").status_code == http.get("/").status_code == 200
    assert http.get("/ready").status_code == 503
    assert http.get("/ready").json() == {"status": "loading", "detail": "tiny"}
    refused = http.get("/v1/models")
    assert refused.status_code == 503 and "loading tiny" in json.dumps(refused.json())
    assert http.get("/v1/messages").json()["error"]["type"] == "overloaded_error"
    life.stage, life.detail = "ready", ""
    assert http.get("/v1/models").status_code == 200
    assert life.under_way == 0


def test_one_abort_that_fails_stops_no_other(caplog) -> None:
    life, done = Operations().lifecycle, []
    with life.abortable(lambda: 1 / 0), life.abortable(lambda: done.append(1)):
        life.abort()
    life.abort()
    assert done == [1]
    assert "could not be aborted" in caplog.text


def until(condition) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("never")
