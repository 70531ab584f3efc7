"""A server to be hurt, with its engine within reach; bare sockets; and a bystander who must notice nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from starlette.applications import Starlette

from gristmill import serve
from gristmill.engine import Engine
from gristmill.lm import SamplingParams
from gristmill.machine import resident_memory
from tests.tiny_model import random_model

CONTEXT = 20_000
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SHORT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "a heap"}],
    "temperature": 0,
    "max_tokens": 40,
}


def endless_engine(**settings: Any) -> Engine:
    """Nothing that it says ends an answer."""
    model = random_model(max_seq_len=CONTEXT)
    model.tokenizer.stop_ids = frozenset()
    return Engine(model, **{"max_rows": 8, **settings})


@dataclass(frozen=True)
class Target:
    url: str
    engine: Engine
    app: Starlette
    alone: str  # what the engine answers to SHORT with nobody else there

    @property
    def requests(self) -> int:
        """Between their heads and the last bytes of their responses."""
        return self.app.state.lifecycle.under_way

    def at_rest(self) -> bool:
        load = self.engine.load
        nobody = load.running == load.waiting == 0 and load.cache == 0
        return nobody and self.requests == 0 and self.answers_under_way() == 0

    def answers_under_way(self) -> int:
        return httpx.get(f"{self.url}/health").json()["requests_under_way"]

    def ask(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def send(self, path: str, body: dict[str, Any]) -> socket.socket:
        """A request on a connection of its own, which can be dropped at any time."""
        return self.send_raw(request(path, json.dumps(body).encode()))

    def send_raw(self, raw: bytes, receive_buffer: int | None = None) -> socket.socket:
        address = httpx.URL(self.url)
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(30)
        connection.connect((address.host, address.port))
        connection.sendall(raw)
        return connection


@contextmanager
def target(engine: Engine, operations: serve.Operations | None = None) -> Iterator[Target]:
    params = SamplingParams(SHORT["max_tokens"], temperature=SHORT["temperature"])
    alone = endless_engine().chat(SHORT["messages"], params).text
    app = serve.build_app([serve.Served("tiny", engine)], operations)
    with serve.served(app) as url:
        yield Target(url, engine, app, alone)


@contextmanager
def unhurt(target: Target, bystander: bool = True) -> Iterator[None]:
    """Whatever happens meanwhile: others get the engine's own answers, and afterwards all is as it was."""
    ended, begun = threading.Event(), threading.Event()
    answers: list[str] = []

    def ask_on() -> None:
        with httpx.Client(base_url=target.url, timeout=60) as http:
            while not (ended.is_set() and answers):
                begun.set()
                answers.append(streamed(http, CHAT, SHORT))

    thread = threading.Thread(target=ask_on)
    if bystander:
        thread.start()
        assert begun.wait(10)
    try:
        yield
    finally:
        ended.set()
        if bystander:
            thread.join(60)
    assert not thread.is_alive(), "the bystander waits for ever"
    assert not bystander or answers, "the bystander's stream broke off"
    assert set(answers) <= {target.alone}, "the bystander got another answer"
    assert soon(target.at_rest), (target.engine.load, target.requests)
    whole = target.ask(CHAT, SHORT).json()
    assert whole["choices"][0]["message"]["content"] == target.alone


def streamed(http: httpx.Client, path: str, body: dict[str, Any]) -> str:
    """The text of a stream that ends well."""
    text, done = "", False
    with http.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                (choice,) = json.loads(line[6:])["choices"]
                text += choice["delta"].get("content") or ""
    assert done, "the stream broke off"
    return text


def request(path: str, body: bytes, head: str = "", method: str = "POST") -> bytes:
    """head: further header lines."""
    length = f"content-length: {len(body)}\r\n" if "content-length" not in head.lower() else ""
    return f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{length}{head}\r\n".encode() + body


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection. Raises TimeoutError when it does not."""
    got = b""
    with connection:
        try:
            while piece := connection.recv(1 << 16):
                got += piece
        except ConnectionError:  # it was closed on what nobody read
            pass
    return got


def status(response: bytes) -> int:
    """0 where no response came."""
    return int(response.split(b" ", 2)[1]) if response else 0


def soon(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether it comes true before then."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def bounded_memory(megabytes: float) -> Iterator[None]:
    """What this process, the server and its client, takes more meanwhile."""
    before, most, ended = resident_memory(), 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not ended.wait(0.02):
            most = max(most, resident_memory() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert most < megabytes * 2**20, f"{most / 2**20:.0f} MiB more"


class Gate:
    """Stands before an engine's steps. Closed, it lets so many through as `let` says."""

    def __init__(self, engine: Engine) -> None:
        self.came = 0  # steps that are through, and one that waits
        self.broken: Exception | None = None  # what the next step raises
        self._open, self._permits = True, threading.Semaphore(0)
        self._hidden = engine.runner.hidden
        engine.runner.hidden = self._pass  # type: ignore[method-assign]

    def _pass(self, batch: Any) -> Any:
        self.came += 1
        if not self._open:
            self._permits.acquire()
        if self.broken is not None:
            broken, self.broken = self.broken, None
            raise broken
        return self._hidden(batch)

    @contextmanager
    def closed(self) -> Iterator[None]:
        self._open, self.came, self._permits = False, 0, threading.Semaphore(0)
        try:
            yield
        finally:
            self._open = True
            self._permits.release()

    def let(self, steps: int) -> None:
        """Let so many through, and wait until the one after them stands here."""
        assert soon(lambda: self.came > 0), "no step came"
        wanted = self.came + steps
        self._permits.release(steps)
        assert soon(lambda: self.came == wanted), f"{self.came} of {wanted} steps"

    def let_last(self) -> None:
        """Let the one that stands here through."""
        self._permits.release()
