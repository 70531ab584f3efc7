"""Clients that leave, steps that fail, servers that stop: nothing goes on that nobody waits for."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import httpx
import pytest

from gristmill.engine import Engine
from gristmill.formats import Model
from gristmill.lm import SamplingParams
from gristmill.model import Transformer
from gristmill.serve.worker import Step, Unavailable, Worker
from tests.served import served
from tests.tiny_model import random_model

ENDLESS = {
    "messages": [{"role": "user", "content": "go"}],
    "temperature": 0,
    "max_tokens": 200_000,
}
LONG = {"messages": [{"role": "user", "content": "go on, " * 1000}], "max_tokens": 200_000}


@pytest.fixture(scope="module")
def endless_url():
    """Two rows only, and a context so long that an answer would take many minutes."""
    model = random_model(max_seq_len=300_000)
    model.tokenizer.stop_ids = frozenset()  # nothing it says ends it
    with served(Engine(model, max_rows=2)) as url:
        yield url


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within half a minute."""
    return any(condition() or time.sleep(0.05) for _ in range(600))


HTTP = httpx.Client(timeout=60)


def under_way(url: str) -> int:
    return HTTP.get(f"{url}/health").json()["requests_under_way"]


def send(url: str, body: dict) -> socket.socket:
    """A request written to a bare socket, which can be dropped at any time."""
    request = httpx.Request("POST", f"{url}/v1/chat/completions", json=body)
    connection = socket.create_connection((request.url.host, request.url.port))
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    connection.sendall(f"POST {request.url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body", [ENDLESS, LONG], ids=["decode", "prefill"])
def test_an_answer_ends_when_its_client_leaves(endless_url: str, body: dict, stream: bool) -> None:
    connection = send(endless_url, body | {"stream": stream})
    assert soon(lambda: under_way(endless_url) == 1), "not started"
    if stream and body is ENDLESS:
        assert b"200 OK" in connection.recv(1000)
    connection.close()
    assert soon(lambda: under_way(endless_url) == 0), "not ended"


@pytest.mark.parametrize("stream", [False, True])
def test_a_waiting_request_is_forgotten_when_its_client_leaves(
    endless_url: str, stream: bool
) -> None:
    running = [send(endless_url, ENDLESS) for _ in range(2)]
    assert soon(lambda: under_way(endless_url) == 2), "not two running"
    waiting = send(endless_url, ENDLESS | {"stream": stream})
    assert soon(lambda: under_way(endless_url) == 3), "not one waiting"
    waiting.close()
    assert soon(lambda: under_way(endless_url) == 2), "not the waiting one gone"
    for connection in running:
        connection.close()
    assert soon(lambda: under_way(endless_url) == 0), "not all gone"


def test_the_others_are_answered_while_one_runs_on(endless_url: str) -> None:
    """A short request joins the batch of an endless one and is answered before it."""
    endless = send(endless_url, ENDLESS)
    assert soon(lambda: under_way(endless_url) == 1), "not started"
    body = ENDLESS | {"max_tokens": 5}
    response = HTTP.post(f"{endless_url}/v1/chat/completions", json=body)
    assert response.json()["usage"]["completion_tokens"] == 5
    assert under_way(endless_url) == 1
    endless.close()
    assert soon(lambda: under_way(endless_url) == 0), "not ended"


def test_a_stopped_worker_ends_what_is_under_way() -> None:
    engine = Engine(random_model(max_seq_len=300_000))
    worker = Worker(engine)
    worker.start()
    pieces: list[Step | Exception] = []
    request = engine.chat_request(ENDLESS["messages"], SamplingParams(200_000, temperature=0))
    worker.submit(engine.prepare(request), lambda number: pieces.append)
    assert soon(lambda: len(pieces) > 3), "not writing"
    worker.stop()
    assert isinstance(pieces[-1], Unavailable)
    with pytest.raises(Unavailable, match="going down"):
        worker.submit(engine.prepare(request), lambda number: pieces.append)


class Fragile(Transformer):
    """Breaks on one token id, as a bug or a full memory would."""

    def hidden(self, tokens_BT, **kwargs):
        if bool((tokens_BT == 90).any()):
            raise MemoryError("no room for token 90")
        return super().hidden(tokens_BT, **kwargs)


def test_a_failing_step_is_a_500_and_the_server_lives_on() -> None:
    sound = random_model()
    network = Fragile(sound.config)
    network.load_state_dict(sound.network.state_dict())
    broken = sound.tokenizer.decode([90])

    def ask(url: str, text: str) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0}
        return HTTP.post(f"{url}/v1/chat/completions", json=body)

    with served(Engine(Model(network, sound.tokenizer))) as url:
        assert ask(url, "hello").status_code == 200
        failed = ask(url, f"hello {broken}")
        assert failed.status_code == 500
        assert failed.json()["error"]["type"] == "server_error"
        assert "token 90" not in failed.text
        assert ask(url, "hello").status_code == 200
