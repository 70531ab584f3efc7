"""From a model to a listening server."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from gristmill.errors import RequestError
from gristmill.serve.connection import uvicorn_config
from gristmill.serve.lifecycle import Lifecycle

SAME_SIGNAL_SECONDS = (
    0.5  # a terminal and a wrapper such as `timeout` may both pass the same one on
)
LAST_WORDS_SECONDS = 2.0  # for the last events of what was aborted to reach their readers
log = logging.getLogger("gristmill.serve")


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 picks a free one. Raises RequestError when it cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise RequestError(f"--host {host} is not an address of this machine: {error}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise RequestError(
            f"cannot listen on {host} port {port}: {error.strerror}. "
            "Choose another with --port, or --port 0 for any free one"
        ) from None
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(
    app: Starlette,
    listener: socket.socket,
    ready: Callable[[], None] = lambda: None,
    drain_seconds: float = 30,
) -> None:
    """Serve until Ctrl-C or SIGTERM. Then new requests get 503, and those under way may go on for `drain_seconds`
    before they are aborted, each stream with a last event that says so. A second signal ends the process at once.

    `ready` is called once the server accepts requests. The app's `state.lifecycle`, where it has one, is
    what counts its requests.
    """
    lifecycle = getattr(app.state, "lifecycle", None) or Lifecycle()
    _Server(uvicorn_config(app), ready, lifecycle, drain_seconds).run(sockets=[listener])


@contextmanager
def served(app: Starlette) -> Iterator[str]:
    """The URL of `app` on a free port of loopback, served by a thread of this process while the context lasts."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn_config(app))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()


class _Server(uvicorn.Server):
    """uvicorn closes its sockets at the first signal; whoever balances load would see connections refused. This one
    goes on listening, to say 503, until what is under way has ended."""

    def __init__(
        self,
        config: uvicorn.Config,
        ready: Callable[[], None],
        lifecycle: Lifecycle,
        drain_seconds: float,
    ) -> None:
        super().__init__(config)
        self._ready, self._lifecycle, self._drain_seconds = ready, lifecycle, drain_seconds
        self._abort_at = self._leave_at = inf
        self._first_signal = -inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._first_signal < SAME_SIGNAL_SECONDS:
            return
        if self._lifecycle.stage == "draining":
            sys.stderr.write("gristmill: a second signal; stopped at once\n")
            sys.stderr.flush()
            os._exit(128 + sig)  # nothing less ends threads that compute
        if not self.started:
            super().handle_exit(sig, frame)
        self._lifecycle.stage = "draining"
        self._first_signal = time.monotonic()
        self._abort_at = self._first_signal + self._drain_seconds

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._drained()

    def _drained(self) -> bool:
        """Whether to leave now; aborts what has had its time."""
        life, now = self._lifecycle, time.monotonic()
        if life.stage != "draining":
            return False
        if life.under_way and self._abort_at <= now and self._leave_at == inf:
            log.warning("aborting %d requests: their time is up", life.under_way)
            self._leave_at = now + LAST_WORDS_SECONDS
            life.abort()
        return not life.under_way or self._leave_at <= now
