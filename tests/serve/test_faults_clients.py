"""Clients that die, leave, stop reading or never begin: what they held is freed, and nobody else notices."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gristmill.serve.connection import Protocol
from tests.serve.faults import (
    CHAT,
    COMPLETIONS,
    Gate,
    Target,
    bounded_memory,
    endless_engine,
    request,
    rest,
    soon,
    status,
    target,
    unhurt,
)

MOST = 10_000  # tokens: so many that no answer ends by itself here
STEP = 256  # tokens computed in one step


@pytest.fixture(scope="module")
def server() -> Iterator[Target]:
    with target(endless_engine(step_tokens=STEP)) as running:
        yield running


@pytest.fixture(scope="module")
def gate(server: Target) -> Gate:
    return Gate(server.engine)


def asked(path: str, prompt: str = "go on", **fields: Any) -> dict[str, Any]:
    said = {"messages": [{"role": "user", "content": prompt}]}
    of_its_own = said if path == CHAT else {"prompt": prompt}
    return of_its_own | {"temperature": 0, "max_tokens": MOST} | fields


@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_who_leaves_takes_no_further_step(
    server: Target, gate: Gate, path: str, n: int, stream: bool, phase: str
) -> None:
    """The step under way when the server hears of it is the last, and then the cache is free."""
    body = asked(path, "go on, " * 1000 if phase == "prefill" else "go on", n=n, stream=stream)
    body["cache_salt"] = f"{path} {n} {stream}"  # each computes its prompt itself
    with unhurt(server, bystander=False), gate.closed():
        others = server.send(CHAT, asked(CHAT, n=8)) if phase == "queued" else None
        if others is not None:
            gate.let(2)
        client = server.send(path, body)
        if others is None:
            gate.let(2 if phase == "prefill" else 10)
        else:
            assert soon(lambda: server.answers_under_way() == 8 + n)
            gate.let(1)
        load = server.engine.load
        running = {"queued": 8, "prefill": 1, "decode": n}[phase]
        assert (load.running, load.waiting) == (running, 1 if others else 0)
        assert load.cache > 0
        client.close()
        assert soon(lambda: server.requests == (1 if others else 0)), "nobody heard of it"
        if others is not None:
            gate.let(1)
            assert server.engine.load.waiting == 0
            others.close()
            assert soon(lambda: server.requests == 0)
        steps = gate.came
        gate.let_last()
        assert soon(server.at_rest)
        assert gate.came == steps


KILLED = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(sys.stdin.buffer.read())
print(connection.recv(1000)[:12].decode(), flush=True)
while connection.recv(1000):
    pass
"""


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_client_that_is_killed(server: Target, gate: Gate, path: str) -> None:
    with unhurt(server):
        port = server.url.rpartition(":")[2]
        with subprocess.Popen(
            [sys.executable, "-ISc", KILLED, port], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as client:
            assert client.stdin and client.stdout
            body = json.dumps(asked(path, stream=True, n=2)).encode()
            client.stdin.write(request(path, body))
            client.stdin.close()
            assert client.stdout.readline() == b"HTTP/1.1 200\n"
            client.send_signal(signal.SIGKILL)
        assert soon(lambda: server.answers_under_way() <= 1)  # the bystander's


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_closes_its_half(server: Target, stream: bool) -> None:
    """It reads as one that leaves, as in Go's and Node's servers: the connection ends, and the answer with it."""
    with unhurt(server):
        client = server.send(CHAT, asked(CHAT, stream=stream))
        assert soon(lambda: server.answers_under_way() >= 1)
        if stream:
            assert status(client.recv(1000)) == 200
        client.shutdown(socket.SHUT_WR)
        assert b"[DONE]" not in rest(client)


def never_read(server: Target) -> socket.socket:
    """A stream of many bytes a token."""
    body = asked(CHAT, stream=True, n=4, logprobs=True, top_logprobs=20)
    raw = request(CHAT, json.dumps(body).encode())
    return server.send_raw(raw, receive_buffer=4096)


def never_read_whole(server: Target) -> socket.socket:
    """Whole responses, one behind the other."""
    raw = request("/openapi.json", b"", method="GET") * 200
    return server.send_raw(raw, receive_buffer=4096)


@pytest.mark.parametrize("begin", [never_read, never_read_whole])
def test_a_client_that_reads_nothing(
    server: Target, monkeypatch, begin: Callable[[Target], socket.socket]
) -> None:
    """It is waited for so long, and then its connection ends at once: closing it would wait for the reader again."""
    lost: list[Any] = []
    ends = Protocol.connection_lost

    def ended(self: Protocol, exc: Exception | None) -> None:
        lost.append(self.client)
        ends(self, exc)

    monkeypatch.setattr(Protocol, "reader_seconds", 0.5)
    monkeypatch.setattr(Protocol, "connection_lost", ended)
    with unhurt(server), bounded_memory(150):
        client = begin(server)
        assert soon(lambda: client.getsockname() in lost), "its connection stays"
        client.close()


def test_connections_on_which_nothing_comes(server: Target, monkeypatch) -> None:
    monkeypatch.setattr(Protocol, "head_seconds", 0.3)
    with unhurt(server):
        silent = [server.send_raw(b"") for _ in range(50)]
        cut = [server.send_raw(request(CHAT, b"x" * 100)[:60]) for _ in range(50)]
        assert [rest(client) for client in silent + cut] == [b""] * 100


def test_who_asks_again_before_the_answer_and_leaves(server: Target, gate: Gate) -> None:
    """A second request behind the first stops no one from seeing that its client left."""
    body = json.dumps(asked(CHAT)).encode()
    with unhurt(server, bystander=False), gate.closed():
        client = server.send_raw(request(CHAT, body) * 2)
        gate.let(3)
        client.close()
        assert soon(lambda: server.requests == 0), "nobody heard of it"
        gate.let_last()
