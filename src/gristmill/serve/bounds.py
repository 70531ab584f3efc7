"""Bounds on what a request may weigh: its headers, its body, and the time the body takes."""

from __future__ import annotations

import asyncio
from time import monotonic

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gristmill.serve.errors import ApiError
from gristmill.serve.http import error_response

MAX_BODY_BYTES = 16 << 20
MAX_HEADERS = 100  # as many as Apache and Node take
BODY_SECONDS = 20.0
SLOWEST_SENDER = 16 << 10  # bytes a second, beyond the first BODY_SECONDS
LINGER_SECONDS = 2.0


class Bounds:
    """431 for too many headers, 413 for a body of more than max_bytes, 408 for one that does not come.

    A body has `seconds`, and a second more for every SLOWEST_SENDER bytes that arrived.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES, seconds: float = BODY_SECONDS
    ) -> None:
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if len(scope["headers"]) > MAX_HEADERS:
            error = ApiError(431, f"the request has more than {MAX_HEADERS} headers")
            return await error_response(scope["path"], error)(scope, receive, send)
        body = _BoundedBody(receive, self._max_bytes, self._seconds)
        if _declared_length(scope) > self._max_bytes:
            return await _refuse(scope, body, send, body.too_large())
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            if body.refused is not None:  # the rest of the body would be read as the next request
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)["connection"] = "close"
                elif not message.get("more_body"):
                    await send({**message, "more_body": True})
                    await body.linger()
                    message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        try:
            await self._app(scope, body.receive, watched)
        except ApiError as error:  # of an application that does not answer its own
            if begun or error is not body.refused:
                raise
            await _refuse(scope, body, send, error)


class _BoundedBody:
    def __init__(self, receive: Receive, max_bytes: int, seconds: float) -> None:
        self._receive, self._max_bytes, self._seconds = receive, max_bytes, seconds
        self._begun, self._size, self._complete = monotonic(), 0, False
        self.refused: ApiError | None = None

    async def receive(self) -> Message:
        """Raises ApiError. Once the body is there, waits for the client to leave as long as that takes."""
        if self._complete:
            return await self._receive()
        left = self._begun + self._seconds + self._size / SLOWEST_SENDER - monotonic()
        try:
            async with asyncio.timeout(left):
                message = await self._receive()
        except TimeoutError:
            self.refused = ApiError(408, "the request's body did not arrive in time; send it again")
            raise self.refused from None
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body")
        if self._size > self._max_bytes:
            self.refused = self.too_large()
            raise self.refused
        return message

    def too_large(self) -> ApiError:
        return ApiError(
            413, f"the request's body is larger than {self._max_bytes} bytes, the most taken here"
        )

    async def linger(self) -> None:
        """Drop what still comes, for a moment: a connection closed on data that nobody read is reset, and the client
        may lose the response that said why."""
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._complete:
                    self._complete = not (await self._receive()).get("more_body")
        except TimeoutError:
            pass


async def _refuse(scope: Scope, body: _BoundedBody, send: Send, error: ApiError) -> None:
    response = error_response(scope["path"], error)
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    await body.linger()
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
