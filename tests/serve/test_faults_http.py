"""Requests that are no HTTP, no JSON, or too much of it: refused with the right status, and nobody else notices."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from gristmill.serve.connection import Protocol
from tests.serve.faults import (
    CHAT,
    COMPLETIONS,
    SHORT,
    Target,
    bounded_memory,
    endless_engine,
    request,
    rest,
    status,
    target,
    unhurt,
)

CLOSE = "connection: close\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Target]:
    with target(endless_engine()) as running:
        yield running


@pytest.fixture(autouse=True)
def nobody_is_hurt(server: Target) -> Iterator[None]:
    with unhurt(server):
        yield


def told(response: bytes) -> dict[str, Any]:
    return json.loads(response.split(b"\r\n\r\n", 1)[1])["error"]


def chat(fields: str) -> bytes:
    """SHORT, and further fields as they are spelled."""
    return f"{json.dumps(SHORT)[:-1]}, {fields}}}".encode()


DEEP = 10_000
NOT_JSON = {
    "invalid UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "UTF-16": json.dumps(SHORT).encode("utf-16"),
    "cut off": json.dumps(SHORT).encode()[:-5],
    "empty": b"",
    "a list": b"[]",
    "deep lists": chat(f'"metadata": {"[" * DEEP}{"]" * DEEP}'),
    "deep objects": chat('"metadata": ' + '{"a":' * DEEP + "1" + "}" * DEEP),
    "NaN": chat('"temperature": NaN'),
    "Infinity": chat('"temperature": Infinity'),
    "-Infinity": chat('"logit_bias": {"1": -Infinity}'),
    "5,000 digits": chat(f'"max_tokens": {"9" * 5000}'),
}


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json(server: Target, body: bytes) -> None:
    response = rest(server.send_raw(request(CHAT, body, CLOSE)))
    assert status(response) == 400
    assert told(response)["code"] == "invalid_json"


NUMBERS = [
    ("temperature", "1e999"),
    ("temperature", "9" * 4300),
    ("top_p", "-1e999"),
    ("max_tokens", "9" * 4300),
    ("max_tokens", "9" * 30),
    ("min_tokens", "9" * 4300),
    ("seed", "9" * 30),
    ("n", "9" * 4300),
    ("repetition_penalty", "1e999"),
    ("logit_bias", '{"1": 1e999}'),
    ("logit_bias", '{"' + "9" * 4300 + '": 1}'),
    ("stop_token_ids", f"[{'9' * 30}]"),
]


@pytest.mark.parametrize(("name", "value"), NUMBERS, ids=[f"{n}={v:.12}" for n, v in NUMBERS])
def test_numbers_beyond_all_bounds(server: Target, name: str, value: str) -> None:
    response = rest(server.send_raw(request(CHAT, chat(f'"{name}": {value}'), CLOSE)))
    assert status(response) == 400
    assert told(response)["param"].startswith(name)


@pytest.mark.parametrize("value", ["9" * 4300, "9" * 19, "9" * 30])
def test_more_choices_than_there_are_tokens_are_all_of_them(server: Target, value: str) -> None:
    response = rest(server.send_raw(request(CHAT, chat(f'"top_k": {value}'), CLOSE)))
    assert status(response) == 200


def test_of_a_key_that_comes_twice_the_last_counts(server: Target) -> None:
    """As with Python's, JavaScript's and OpenAI's own."""
    response = rest(server.send_raw(request(CHAT, chat('"max_tokens": 3, "max_tokens": 2'), CLOSE)))
    body = json.loads(response.split(b"\r\n\r\n", 1)[1])
    assert body["usage"]["completion_tokens"] == 2


MANY = 100_000
TOO_MANY = {
    "stop strings": ("stop", json.dumps(["x"] * MANY)),
    "bad words": ("bad_words", json.dumps(["x"] * MANY)),
    "biases": ("logit_bias", json.dumps({str(i): 1e9 for i in range(MANY)})),
    "messages": ("messages", json.dumps(SHORT["messages"] * 5000)),
    "tools": ("tools", json.dumps([{"type": "function"}] * 1000)),
    "answers": ("n", "1000"),
    "parts of nothing": ("messages", '[{"role": "user", "content": [' + "null," * 10**6 + "1]}]"),
    "ids of nothing": ("stop_token_ids", "[" + "null," * 10**6 + "1]"),
}


@pytest.mark.parametrize(("name", "value"), TOO_MANY.values(), ids=TOO_MANY)
def test_too_many_of_one_kind(server: Target, name: str, value: str) -> None:
    """A fault in each of a million values is told once, and takes no memory for each."""
    with bounded_memory(100):
        response = rest(server.send_raw(request(CHAT, chat(f'"{name}": {value}'), CLOSE)))
    assert status(response) == 400
    assert told(response)["param"].startswith(name)
    assert len(response) < 2000


@pytest.mark.parametrize("each", ["1", "[]", "{}", "null"])
def test_a_body_of_millions_of_values(server: Target, each: str) -> None:
    """They would take seconds to read, with everybody waiting."""
    body = f'{{"prompt": [{",".join([each] * 3_000_000)}]}}'.encode()
    response = rest(server.send_raw(request(COMPLETIONS, body, CLOSE)))
    assert status(response) == 413
    assert "holds more than" in told(response)["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_hundred_megabytes(server: Target, chunked: bool) -> None:
    piece = b" " * (1 << 20)
    head = "transfer-encoding: chunked" if chunked else "content-length: 104857600"
    opened = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n"
    connection = server.send_raw(opened.encode())
    connection.settimeout(30)
    with bounded_memory(60):
        try:
            for _ in range(100):
                connection.sendall(b"100000\r\n" + piece + b"\r\n" if chunked else piece)
        except OSError:  # refused before all was sent
            pass
        response = rest(connection)
    assert status(response) in (413, 0)  # 0: the answer was lost with what nobody read


def test_a_hundred_megabytes_are_told_so_before_they_come(server: Target) -> None:
    opened = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 104857600\r\n\r\n"
    assert status(rest(server.send_raw(opened.encode()))) == 413


def test_a_thousand_headers(server: Target) -> None:
    many = "".join(f"x-{number}: 1\r\n" for number in range(1000))
    assert status(rest(server.send_raw(request(CHAT, b"{}", many + CLOSE)))) == 431


def test_a_header_of_a_megabyte(server: Target) -> None:
    connection = server.send_raw(b"")
    with suppress(OSError):  # refused before all was sent
        connection.sendall(request(CHAT, b"{}", f"x-a: {'y' * 2**20}\r\n{CLOSE}"))
    assert status(rest(connection)) in (400, 0)


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0(server: Target, stream: bool) -> None:
    """Whose clients know no chunks: the end of the response is the end of the connection."""
    raw = request(CHAT, json.dumps(SHORT | {"stream": stream}).encode())
    response = rest(server.send_raw(raw.replace(b"HTTP/1.1", b"HTTP/1.0")))
    head, body = response.split(b"\r\n\r\n", 1)
    assert status(response) == 200
    assert b"chunked" not in head.lower()
    assert body.endswith(b"data: [DONE]\n\n") if stream else json.loads(body)["choices"]


def test_other_methods(server: Target) -> None:
    for path, method, wanted in [
        ("/health", "HEAD", 200),
        ("/v1/models", "HEAD", 200),
        (CHAT, "HEAD", 405),
        (CHAT, "OPTIONS", 405),
        (CHAT, "GET", 405),
        (CHAT, "PROPFIND", 405),
        ("/nowhere", "OPTIONS", 404),
    ]:
        response = rest(server.send_raw(request(path, b"", CLOSE, method)))
        head, body = response.split(b"\r\n\r\n", 1)
        assert status(response) == wanted, (path, method)
        assert (body == b"") == (method == "HEAD")
        assert wanted != 405 or b"\nallow: POST" in head


def test_a_length_that_is_too_short(server: Target, monkeypatch) -> None:
    """What is left of the body is no request's head."""
    monkeypatch.setattr(Protocol, "head_seconds", 0.2)
    body = json.dumps(SHORT).encode()
    for more, answers in ((b"", 1), (b"\r\n\r\n", 2)):
        raw = request(CHAT, body, f"content-length: {len(body) - 5}\r\n")
        response = rest(server.send_raw(raw + more))
        assert response.count(b"HTTP/1.1 400") == response.count(b"HTTP/1.1") == answers


@pytest.mark.parametrize("head", ["content-length: -1", "content-length: 1\r\ncontent-length: 2"])
def test_a_length_that_is_none(server: Target, head: str) -> None:
    raw = request(CHAT, json.dumps(SHORT).encode(), f"{head}\r\n")
    assert status(rest(server.send_raw(raw))) == 400


def test_a_length_that_is_too_long(server: Target) -> None:
    raw = request(CHAT, json.dumps(SHORT).encode(), "content-length: 5000\r\n")
    connection = server.send_raw(raw)
    connection.shutdown(socket.SHUT_WR)
    assert rest(connection) == b""


def test_requests_one_behind_the_other(server: Target) -> None:
    bodies = [json.dumps(SHORT | {"max_tokens": n}).encode() for n in (5, 1, 3)]
    heads = ["", "", CLOSE]
    connection = server.send_raw(
        b"".join(request(CHAT, body, head) for body, head in zip(bodies, heads, strict=True))
    )
    response = rest(connection)
    answers = [json.loads(b"{" + part.split(b"\r\n\r\n{", 1)[1]) for part in _parts(response)]
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [5, 1, 3]


def _parts(response: bytes) -> list[bytes]:
    return [b"HTTP/1.1 " + part for part in response.split(b"HTTP/1.1 ")[1:]]
