"""uvicorn, set up for us: bounds on a request's head, which no application sees."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
MAX_HEAD_BYTES = 64 << 10
KEEP_ALIVE_SECONDS = (
    75  # longer than clients keep theirs, so that none sends into a closing connection
)


class Protocol(H11Protocol):
    """uvicorn's, which waits for the rest of a request's head for ever; this one for `head_seconds`.

    Bytes that come while no request is under way are a head, or the rest of a body whose request was refused.
    """

    head_seconds = HEAD_SECONDS
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


def uvicorn_config(app: ASGIApp, **changes: Any) -> uvicorn.Config:
    """h11 even where httptools is there: it bounds the head, and httptools does not. No websockets are served, and
    requests are logged by us (`logs`)."""
    settings: dict[str, Any] = {
        "http": Protocol,
        "ws": "none",
        "lifespan": "on",
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "h11_max_incomplete_event_size": MAX_HEAD_BYTES,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": 1,  # what had to end has ended by then, see `run`
    }
    return uvicorn.Config(app, **settings | changes)
