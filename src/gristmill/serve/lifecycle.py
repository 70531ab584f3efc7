"""Where a server is in its life, and what it refuses meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gristmill.serve.auth import is_open
from gristmill.serve.errors import ApiError
from gristmill.serve.http import error_response

Stage = Literal["loading", "ready", "draining"]
RETRY_SECONDS = "5"
ALWAYS = frozenset({"/ready", "/metrics"})  # and what is open to all

log = logging.getLogger("gristmill.serve")


class Lifecycle:
    """All but `stage` belong to the event loop. `detail` says to people what is being loaded."""

    def __init__(self) -> None:
        self.stage: Stage = "ready"
        self.detail = ""
        self.under_way = (
            0  # requests, to the last byte of their response, and what is made in the background
        )
        self._aborts: set[Callable[[], object]] = set()

    @contextmanager
    def abortable(self, abort: Callable[[], object]) -> Iterator[None]:
        """While it lasts, `abort` is what ends this request in good order: its stream says why, and stops."""
        self._aborts.add(abort)
        try:
            yield
        finally:
            self._aborts.discard(abort)

    @contextmanager
    def working(self) -> Iterator[None]:
        """While it lasts, going down waits for it."""
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def abort(self) -> None:
        """End all that is under way."""
        for abort in list(self._aborts):
            try:
                abort()
            except Exception:  # the others must end all the same
                log.exception("a request could not be aborted")

    async def ready(self, request: Request) -> Response:
        """The route /ready: 200, or 503 while loading or draining. /health says 200 as long as the process lives."""
        told = {"status": self.stage} | ({"detail": self.detail} if self.detail else {})
        if self.stage == "ready":
            return JSONResponse(told)
        return JSONResponse(told, 503, headers={"retry-after": RETRY_SECONDS})


class Gate:
    """503 with Retry-After for new requests while the server is loading or draining."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app, self._lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        life = self._lifecycle
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if life.stage != "ready" and not (scope["path"] in ALWAYS or is_open(scope["path"])):
            return await error_response(scope["path"], _refusal(life))(scope, receive, send)
        with life.working():
            await self._app(scope, receive, send)


def _refusal(life: Lifecycle) -> ApiError:
    headers = {"retry-after": RETRY_SECONDS}
    if life.stage == "draining":
        headers["connection"] = "close"  # the next request should go to another server
        told = "the server is going down"
    else:
        told = f"the server is loading {life.detail}".rstrip()
    return ApiError(503, told, "server_error", code="unavailable", headers=headers)
