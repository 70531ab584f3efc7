"""uvicorn, set up for us: bounds on a request's head, which no application sees."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
READER_SECONDS = 60.0
MAX_HEAD_BYTES = 64 << 10
KEEP_ALIVE_SECONDS = (
    75  # longer than clients keep theirs, so that none sends into a closing connection
)


class Protocol(H11Protocol):
    """uvicorn's, which waits for ever for the rest of a request's head and for a reader; this one waits for a head
    `head_seconds`, and as long for a reader that takes nothing `reader_seconds`.

    Bytes that come while no request is under way are a head, or the rest of a body whose request was refused.
    """

    head_seconds, reader_seconds = HEAD_SECONDS, READER_SECONDS
    _waiting: asyncio.TimerHandle | None = None  # for a head
    _unread: asyncio.TimerHandle | None = None
    _left: int = 0  # bytes that were unread when it was set

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Then writing is paused as soon as anything waits for the reader, and resumed when nothing does.
        transport.set_write_buffer_limits(high=0)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop_waiting()
            self._read_on()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        begun, _ = self.conn.trailing_data
        if begun and self.cycle.response_complete:  # of a head that came before the response ended
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_unread()
        super().resume_writing()

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _watch_reader(self) -> None:
        self._left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(self.reader_seconds, self._unread_for_long)

    def _unread_for_long(self) -> None:
        """Closing would wait for the reader once more."""
        if self.transport.get_write_buffer_size() < self._left:
            self._watch_reader()
        else:
            self.transport.abort()

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _read_on(self) -> None:
        """uvicorn stops reading at a pipelined request, and then would not see its client leave."""
        waiting, _ = self.conn.trailing_data
        if waiting and len(waiting) <= MAX_HEAD_BYTES and not self.cycle.more_body:
            self.flow.resume_reading()


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
