"""Limits of a key, with a clock that only the test moves: exact numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from gristmill.serve.errors import ApiError
from gristmill.serve.http import on_error
from gristmill.serve.keys import Key
from gristmill.serve.limits import Allowance, Bucket, Limits, RateLimits, TooMany, duration


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(**limits: Any) -> Key:
    return Key(name="alice", hash="0" * 64, created=datetime.now(UTC), **limits)


class As:
    """Every request is this key's."""

    def __init__(self, app: ASGIApp, key: Key | None) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope, receive, send) -> None:
        if self.key is not None:
            scope.setdefault("state", {})["key"] = self.key
        await self.app(scope, receive, send)


def client(clock: Clock, who: Key | None) -> TestClient:
    """`/v1/x?charge=..&settle=..&status=..` does what it is told."""

    async def answer(request: Request) -> JSONResponse:
        told, allowance = request.query_params, request.state.allowance
        if "charge" in told:
            allowance.charge(int(told["charge"]))
        if "settle" in told:
            allowance.settle(int(told["settle"]))
        return JSONResponse({}, int(told.get("status", 200)))

    return TestClient(
        Starlette(
            routes=[Route("/{path:path}", answer, methods=["GET", "POST"])],
            middleware=[Middleware(As, who), Middleware(RateLimits, Limits(clock))],
            exception_handlers={ApiError: on_error},
        )
    )


def test_requests_a_minute() -> None:
    clock = Clock()
    http = client(clock, key(requests_per_minute=6))
    for left in (5, 4, 3, 2, 1, 0):
        got = http.post("/v1/x")
        assert got.status_code == 200
        assert got.headers["x-ratelimit-limit-requests"] == "6"
        assert got.headers["x-ratelimit-remaining-requests"] == str(left)
        assert got.headers["x-ratelimit-reset-requests"] == duration((6 - left) * 10)
    refused = http.post("/v1/x")
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "10"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    clock.now += 9.5
    assert http.post("/v1/x").headers["retry-after"] == "1"
    clock.now += 0.5
    assert http.post("/v1/x").status_code == 200  # what was refused cost nothing
    assert http.post("/v1/x").status_code == 429
    clock.now += 3600
    assert http.post("/v1/x").headers["x-ratelimit-remaining-requests"] == "5"  # never above


def test_a_messages_route_is_refused_in_anthropics_envelope() -> None:
    http = client(Clock(), key(requests_per_minute=1))
    http.post("/v1/messages")
    refused = http.post("/v1/messages").json()
    assert refused["type"] == "error" and refused["error"]["type"] == "rate_limit_error"


def test_tokens_are_charged_at_admission_and_settled_at_the_end() -> None:
    clock = Clock()
    http = client(clock, key(tokens_per_minute=600))
    got = http.post("/v1/x?charge=500&settle=100")
    assert got.headers["x-ratelimit-remaining-tokens"] == "500"
    got = http.post("/v1/x?charge=500&settle=500")
    assert got.headers["x-ratelimit-remaining-tokens"] == "0"
    refused = http.post("/v1/x?charge=25")
    assert refused.status_code == 429 and refused.headers["retry-after"] == "3"  # 25 of 10 a second
    assert "25 tokens" in refused.json()["error"]["message"]
    assert refused.json()["error"]["type"] == "tokens"
    clock.now += 2.5
    assert http.post("/v1/x?charge=25").status_code == 200  # to the token
    assert http.post("/v1/x?charge=1").status_code == 429


def test_what_is_refused_is_given_back_and_what_is_left_unsettled_is_not() -> None:
    http = client(Clock(), key(tokens_per_minute=600))
    got = http.post("/v1/x?charge=600&status=400")
    assert got.headers["x-ratelimit-remaining-tokens"] == "600"
    got = http.post("/v1/x?charge=600&status=503")
    assert got.headers["x-ratelimit-remaining-tokens"] == "600"
    http.post("/v1/x?charge=200&status=499")  # who left has had it
    got = http.post("/v1/x?charge=100")
    assert got.headers["x-ratelimit-remaining-tokens"] == "300"


def test_a_request_beyond_the_whole_limit_is_not_to_be_tried_again() -> None:
    refused = client(Clock(), key(tokens_per_minute=600)).post("/v1/x?charge=601")
    assert refused.status_code == 429
    assert "retry-after" not in refused.headers and refused.headers["x-should-retry"] == "false"


def test_looking_is_not_limited_and_without_a_key_nothing_is() -> None:
    http = client(Clock(), key(requests_per_minute=1))
    for _ in range(3):
        assert http.get("/v1/models").status_code == 200
        assert http.post("/app/votes").status_code == 200
    http = client(Clock(), None)
    for _ in range(3):
        got = http.post("/v1/x?charge=1000000&settle=1")
        assert got.status_code == 200 and "x-ratelimit-limit-requests" not in got.headers


def test_requests_at_once() -> None:
    """Two may run; a third is refused until one has ended, also when that one ends by an error."""
    limits, who = Limits(Clock()), key(concurrent=2)

    async def run() -> list[int]:
        entered, leave = anyio.Semaphore(0), anyio.Event()
        statuses: list[int] = []

        async def app(scope, receive, send) -> None:
            if scope["path"] == "/v1/breaks":
                raise ZeroDivisionError
            entered.release()
            await leave.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def post(path: str = "/v1/x") -> None:
            async def send(message) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            scope = {"type": "http", "method": "POST", "path": path, "headers": []}
            await RateLimits(app, limits)(scope | {"state": {"key": who}}, receive, send)

        with pytest.raises(ZeroDivisionError):
            await post("/v1/breaks")
        async with anyio.create_task_group() as group:
            group.start_soon(post)
            group.start_soon(post)
            await entered.acquire()
            await entered.acquire()
            await post()
            leave.set()
        await post()
        return statuses

    assert anyio.run(run) == [429, 200, 200, 200]


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 40), st.floats(0, 1)), max_size=60),
)
def test_nobody_gets_more_than_the_limit_allows(limit: int, steps: list) -> None:
    """Over any span of t minutes: at most (1 + t) times the limit, of what was settled."""
    clock = Clock()
    limits, who = Limits(clock), key(tokens_per_minute=limit)
    taken: list[tuple[float, int]] = []
    for pause, tokens, part in steps:
        clock.now += pause
        allowance = Allowance(limits, who)
        try:
            allowance.charge(tokens)
        except TooMany as error:
            assert tokens > limit or 1 <= int(error.headers["retry-after"]) <= 60
            continue
        actual = int(tokens * part)
        allowance.settle(actual)
        allowance.settle(0)  # of no effect
        taken.append((clock.now, actual))
    for first, (begin, _) in enumerate(taken):
        total = 0
        for at, amount in taken[first:]:
            total += amount
            assert total <= limit * (1 + (at - begin) / 60) + 1e-6


@given(st.floats(0.1, 1000), st.floats(0, 1000), st.floats(1, 1000))
def test_after_the_wait_that_a_bucket_asks_for_there_is_enough(
    amount: float, used: float, limit: float
) -> None:
    bucket = Bucket(0.0, min(used, limit))
    amount = min(amount, limit)
    wait = bucket.wait(amount, limit, 0.0)
    assert bucket.wait(amount, limit, wait) == 0
    if wait > 0.01:
        assert Bucket(0.0, min(used, limit)).wait(amount, limit, wait * 0.99) > 0


def test_a_limit_that_was_edited_holds_at_once() -> None:
    clock = Clock()
    limits = Limits(clock)
    Allowance(limits, key(tokens_per_minute=100)).charge(100)
    Allowance(limits, key(tokens_per_minute=200)).charge(100)
    with pytest.raises(TooMany):
        Allowance(limits, key(tokens_per_minute=200)).charge(1)
    with pytest.raises(TooMany):
        Allowance(limits, key(tokens_per_minute=50)).charge(1)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0ms"), (0.0171, "18ms"), (1, "1s"), (59.2, "1m0s"), (60, "1m0s"), (360, "6m0s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told
