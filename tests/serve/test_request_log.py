"""One line a request: what it says, what it keeps to itself, and the id that goes with it."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from gristmill.errors import RequestError
from gristmill.serve import served
from gristmill.serve.keys import Key
from gristmill.serve.logs import Record, RequestLog, line_writer

SECRET = "what the prompt said"


class Clock:
    now = 5.0

    def __call__(self) -> float:
        self.now += 0.125
        return self.now


def app(lines: list[str], **options: Any) -> Starlette:
    async def answer(request: Request) -> Response:
        record: Record = request.state.record
        record.model, record.prompt_tokens, record.completion_tokens = "tiny", 7, 3
        record.cached_tokens, record.ttft_ms, record.finish_reason = 4, 12.5, "stop"
        record.prompt, record.answer = SECRET, SECRET
        request.state.key = Key(name="alice", hash="0" * 64, created=datetime.now(UTC))
        return JSONResponse({"id": request.state.request_id})

    async def breaks(request: Request) -> Response:
        raise ZeroDivisionError(SECRET)

    async def endless(request: Request) -> Response:
        async def pieces():
            while True:
                yield b"x"
                await asyncio.sleep(0.001)

        return StreamingResponse(pieces())

    async def plain(request: Request) -> Response:
        return Response(status_code=int(request.query_params.get("status", "200")))

    routes = [
        Route("/v1/x", answer, methods=["POST"]),
        Route("/breaks", breaks),
        Route("/endless", endless),
        Route("/{path:path}", plain),
    ]
    return Starlette(routes=routes, middleware=[Middleware(RequestLog, lines.append, **options)])


def client(lines: list[str], **options: Any) -> TestClient:
    return TestClient(app(lines, **options), raise_server_exceptions=False)


def test_a_line_says_who_asked_what_and_how_it_went() -> None:
    lines: list[str] = []
    got = client(lines, clock=Clock()).post(f"/v1/x?q={SECRET}", headers={"x-request-id": "abc-1"})
    assert got.headers["x-request-id"] == got.json()["id"] == "abc-1"
    (line,) = map(json.loads, lines)
    at = datetime.fromisoformat(line.pop("time"))
    assert abs(time.time() - at.timestamp()) < 60
    assert line == {
        "id": "abc-1",
        "method": "POST",
        "path": "/v1/x",
        "status": 200,
        "key": "alice",
        "total_ms": 125.0,
        "model": "tiny",
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "cached_tokens": 4,
        "ttft_ms": 12.5,
        "finish_reason": "stop",
    }


def test_prompts_are_in_it_only_when_asked_for() -> None:
    lines: list[str] = []
    client(lines).post("/v1/x")
    assert SECRET not in lines[0]
    client(lines, log_prompts=True).post("/v1/x")
    assert json.loads(lines[1])["prompt"] == json.loads(lines[1])["answer"] == SECRET


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "<script>", "a\tb"])
def test_an_id_that_is_none_is_replaced(given: str) -> None:
    lines: list[str] = []
    http = client(lines)
    got = [http.post("/v1/x", headers={"x-request-id": given}) for _ in range(2)]
    ids = [each.headers["x-request-id"] for each in got]
    assert given not in ids and ids[0] != ids[1]
    assert [json.loads(line)["id"] for line in lines] == ids


def test_a_failure_is_a_500_without_its_words() -> None:
    lines: list[str] = []
    assert client(lines).get("/breaks").status_code == 500
    (line,) = map(json.loads, lines)
    assert (line["status"], line["error"]) == (500, "ZeroDivisionError")
    assert SECRET not in lines[0]


def test_probes_are_told_only_when_they_fail() -> None:
    lines: list[str] = []
    http = client(lines)
    for path in ("/health", "/ready", "/metrics", "/static/app.js"):
        http.get(path)
    assert not lines
    http.get("/ready?status=503")
    http.get("/elsewhere")
    assert [json.loads(line)["status"] for line in lines] == [503, 200]


def test_a_client_that_left_is_a_499() -> None:
    lines: list[str] = []
    with served(app(lines)) as url:
        with httpx.stream("GET", f"{url}/endless") as response:
            next(response.iter_raw())
        for _ in range(200):
            if lines:
                break
            time.sleep(0.05)
    assert json.loads(lines[0])["status"] == 499


def test_lines_go_to_a_file_that_may_be_rotated(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    write = line_writer(path)
    write('{"n": 1}')
    path.rename(tmp_path / "old.jsonl")
    write('{"n": "é"}')
    assert (tmp_path / "old.jsonl").read_text() == '{"n": 1}\n'
    assert path.read_text() == '{"n": "é"}\n'
    with pytest.raises(RequestError, match="cannot be opened"):
        line_writer(tmp_path / "none" / "x.jsonl")


def test_a_full_disk_stops_no_request(capsys) -> None:
    write = line_writer(Path("/dev/full"))
    write("{}")
    assert "No space left" in capsys.readouterr().err


def test_without_a_file_lines_go_to_standard_error(capsys) -> None:
    line_writer(None)('{"n": 1}')
    assert capsys.readouterr().err == '{"n": 1}\n'
