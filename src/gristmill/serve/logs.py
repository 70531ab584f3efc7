"""One JSON line for each request, and the id by which its client, its line and its errors speak of the same one.

What was asked and answered stays out of it unless `log_prompts`.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gristmill.errors import RequestError
from gristmill.serve.auth import key_of
from gristmill.serve.errors import CLIENT_GONE

_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
_QUIET = ("/health", "/ready", "/metrics", "/static/", "/app/stats")  # asked for every few seconds

Clock = Callable[[], float]  # seconds
Write = Callable[[str], None]


@dataclass
class Record:
    """What the handler knows of its request: scope["state"]["record"]. What stays None is left out of the line.

    Tokens are counted over all answers; times are milliseconds since the request arrived; prompt and answer are
    written only where the server logs them.
    """

    model: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    queue_ms: float | None = None
    ttft_ms: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    prompt: Any = None
    answer: Any = None


class RequestLog:
    """Puts `request_id`, `record` and the bare `send` into scope["state"], and writes the line at the request's end.

    x-request-id: the client's where it is one (at most 128 letters, digits and . _ : + / = -), else a new one.
    """

    def __init__(
        self,
        app: ASGIApp,
        write: Write,
        log_prompts: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        self._app, self._write, self._log_prompts, self._clock = app, write, log_prompts, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = self._clock()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        record = Record()
        scope.setdefault("state", {}).update(request_id=request_id, record=record, send=send)
        status: int | None = None
        ended = gone = False

        async def watched_receive() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or (message["type"] == "http.disconnect" and not ended)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            ended = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        except BaseException as error:
            record.error = record.error or type(error).__name__
            raise
        finally:
            status = CLIENT_GONE if gone and not ended else status or 500
            if status >= 400 or not scope["path"].startswith(_QUIET):
                seconds = self._clock() - begun
                self._write(self._line(scope, request_id, record, status, seconds))

    def _line(
        self, scope: Scope, request_id: str, record: Record, status: int, seconds: float
    ) -> str:
        key = key_of(scope)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": request_id,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": status,
            "key": key and key.name,
            "total_ms": round(seconds * 1000, 3),
            **vars(record),
        }
        if not self._log_prompts:
            del line["prompt"], line["answer"]
        return json.dumps({k: v for k, v in line.items() if v is not None})


def line_writer(path: Path | None) -> Write:
    """Appends lines to the file, or to standard error. A file that was moved away is opened anew, so that logs can be
    rotated; one that cannot be written to (a full disk) is told on standard error and stops no request.

    Raises RequestError for a path that cannot be opened.
    """
    handler: logging.Handler
    try:
        handler = WatchedFileHandler(path, encoding="utf-8") if path else logging.StreamHandler()
    except OSError as error:
        raise RequestError(f"the request log {path} cannot be opened: {error.strerror}") from None

    def write(line: str) -> None:
        record = logging.LogRecord("gristmill.requests", logging.INFO, "", 0, line, None, None)
        handler.handle(record)

    return write
