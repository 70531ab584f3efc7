"""Between HTTP and the rest: bodies, checked by their models; event streams that end with their client."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import cache
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import SchemaValidator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from gristmill.serve.complaints import field_error
from gristmill.serve.depth import check_depth
from gristmill.serve.errors import (
    CLIENT_GONE,
    ApiError,
    FieldError,
    anthropic_body,
    anthropic_status,
    as_api_error,
    is_anthropic,
    openai_body,
)

T = TypeVar("T", bound="Body")
R = TypeVar("R")


class Body(BaseModel):
    """A request's body. REFUSED: documented fields that are not served here, each with the value that asks for nothing.

    Fields that no API documents are accepted, and the response names them in a header: clients add their own.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    REFUSED: ClassVar[dict[str, Any]] = {}

    @property
    def unknown(self) -> list[str]:
        return sorted(set(self.model_extra or ()) - self.REFUSED.keys())


async def read(request: Request, kind: type[T]) -> T:
    """The request's body. Raises ApiError and FieldError, which names the first field that is wrong."""
    body = await read_json(request)
    for name, harmless in kind.REFUSED.items():
        if body.get(name) is not None and body[name] != harmless:
            raise FieldError(name, "this server does not serve it; leave it out", "unsupported")
    try:
        return _validator(kind).validate_python(body)
    except ValidationError as error:
        raise field_error(error) from None


@cache
def _validator(kind: type[Body]) -> SchemaValidator:
    """pydantic's, that stops at a list's first fault: a megabyte of nulls where numbers belong would take seconds and
    hundreds of megabytes to list, and only one fault is told."""
    schema = deepcopy(kind.__pydantic_core_schema__)
    _fail_fast(schema)
    return SchemaValidator(schema, _use_prebuilt=False)  # else it takes those of the classes


def _fail_fast(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "dict"):
            schema["fail_fast"] = True
        for inner in schema.values():
            _fail_fast(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            _fail_fast(inner)


async def read_json(request: Request) -> dict[str, Any]:
    raw = await request.body()  # of a bounded size, see `bounds`
    check_depth(raw)
    try:
        body = json.loads(raw.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is not JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the request must be a JSON object", code="invalid_json")
    if _ESCAPED_SURROGATE.search(raw):
        _check_unicode(body, "")
    return body


_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _check_unicode(value: Any, path: str) -> None:
    """JSON can spell what is no text."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_unicode(key, path)
            _check_unicode(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_unicode(item, f"{path}[{i}]")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"is not valid Unicode: half a surrogate pair at {error.start}"
            raise FieldError(path or "body", half) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def warnings(body: Body) -> dict[str, str]:
    """The header that names fields which nobody knows."""
    if not body.unknown:
        return {}
    names = json.dumps(body.unknown[:20])  # ASCII, whatever the names hold
    return {"x-gristmill-warning": f"fields without effect: {names[:1000]}"}


class Cancellable(Protocol):
    """abort: the server goes down; what waits for news gets Unavailable."""

    def cancel(self) -> None: ...
    def abort(self) -> None: ...


def abortable(scope: Scope, running: Cancellable) -> AbstractContextManager[None]:
    """While it lasts, a server that goes down aborts what runs."""
    lifecycle = getattr(scope["app"].state, "lifecycle", None)
    return lifecycle.abortable(running.abort) if lifecycle is not None else nullcontext()


class EventStream(Response):
    """Server-sent events of one answer, which is cancelled when the client leaves. One that does not read on
    is made to leave, see `connection`."""

    media_type = "text/event-stream"

    def __init__(
        self, running: Cancellable, events: AsyncIterator[bytes], headers: dict[str, str]
    ) -> None:
        self._running, self._events = running, events
        self.status_code, self.background = 200, None
        self.init_headers({**headers, "cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What stands before the routes looks at the head and the last piece alone; the others pass it by.
        straight = scope.get("state", {}).get("send", send)
        writing = asyncio.ensure_future(self._write(send, straight))
        try:
            with abortable(scope, self._running):
                await until_gone(receive, writing)
        finally:
            self._running.cancel()  # of no effect when it has ended

    async def _write(self, send: Send, straight: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            await straight({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(request: Request, running: Cancellable, work: Coroutine[Any, Any, R]) -> R:
    """The result of `work`; when the client leaves first, the answer is cancelled. Raises ApiError then."""
    task = asyncio.ensure_future(work)
    try:
        with abortable(request.scope, running):
            ended = await until_gone(request.receive, task)
    finally:
        if not task.done():
            running.cancel()
    if not ended:
        raise ApiError(CLIENT_GONE, "the client left")
    return task.result()


async def until_gone(receive: Receive, work: asyncio.Future[Any]) -> bool:
    """Wait for `work`, or for its client to leave: then it is cancelled. Whether it ended; raises what it raised."""
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
            return True
        return False
    finally:
        work.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def error_response(path: str, error: ApiError) -> JSONResponse:
    """In the envelope of the API that the path belongs to."""
    if is_anthropic(path):
        status = anthropic_status(error.status)
        return JSONResponse(anthropic_body(error), status, headers=error.headers)
    return JSONResponse(openai_body(error), error.status, headers=error.headers)


async def on_error(request: Request, error: Exception) -> Response:
    return error_response(request.url.path, as_api_error(error))
