"""The ASGI application: `/v1/chat/completions`, `/v1/models`, `/health`, and the chat page."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from gristmill.engine import Engine
from gristmill.errors import RequestError, WorkError
from gristmill.lm import ContextOverflow
from gristmill.retrieval import Index
from gristmill.serve.answers import DONE, PING, Envelope, error_body, event, logprob_entries
from gristmill.serve.fields import Ask, FieldError, parse
from gristmill.serve.running import End, Running
from gristmill.serve.worker import MAX_UNDER_WAY, Worker

STATIC = Path(__file__).parent / "static"
MAX_BODY_BYTES = 4 << 20
PING_SECONDS = 10.0
log = logging.getLogger("gristmill.serve")


class ApiError(Exception):
    """A response other than 200, in OpenAI's envelope."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.body = status, error_body(message, kind, param, code)


class EventStream(StreamingResponse):
    """Server-sent events of one answer, which is cancelled when the client leaves."""

    def __init__(
        self, running: Running, events: AsyncIterator[bytes], headers: dict[str, str]
    ) -> None:
        headers = headers | {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.cancel()


class Server:
    """What the routes share: the engine's thread, the index, and the name the model goes by."""

    def __init__(
        self, engine: Engine, name: str, index: Index | None = None, examples: tuple[str, ...] = ()
    ) -> None:
        self.engine, self.name, self.index, self.examples = engine, name, index, examples
        self.worker = Worker(engine)
        self.threads = ThreadPoolExecutor(MAX_UNDER_WAY + 8, thread_name_prefix="answer")
        self.created = int(time.time())

    async def health(self, request: HTTPRequest) -> Response:
        return JSONResponse({"status": "ok", "requests_under_way": self.worker.under_way})

    async def models(self, request: HTTPRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_card()]})

    async def model(self, request: HTTPRequest) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model_card())

    async def page_info(self, request: HTTPRequest) -> Response:
        """What the chat page shows around the conversation."""
        return JSONResponse(
            {
                "model": self.name,
                "context": self.engine.context,
                "parameters": self.engine.model.config.num_parameters,
                "retrieval": self.index is not None,
                "examples": list(self.examples),
            }
        )

    async def chat(self, request: HTTPRequest) -> Response:
        ask = parse(await _read_json(request), self.engine.context)
        self._check_model(ask.model)
        if ask.retrieval and self.index is None:
            raise FieldError("retrieval", "this server was started without an index", "unsupported")
        headers = {}
        if ask.unknown:
            names = json.dumps(ask.unknown[:20])  # ASCII, whatever the names hold
            headers["x-gristmill-warning"] = f"fields without effect: {names}"
        assert ask.params.seed is not None  # `parse` chooses one
        envelope = Envelope(self.name, ask.params.seed, ask.include_usage)
        index = self.index if ask.retrieval else None
        running = Running(self.worker, ask, index)
        if ask.stream:
            await _unless_gone(request, running, running.start(self.threads))
            return EventStream(running, self._events(running, ask, envelope), headers)
        return await _unless_gone(request, running, self._whole(running, ask, envelope, headers))

    async def _whole(
        self, running: Running, ask: Ask, envelope: Envelope, headers: dict[str, str]
    ) -> Response:
        await running.start(self.threads)
        while not isinstance(piece := await running.next(), End):
            pass
        body = envelope.whole(piece, self._logprobs(running, ask))
        return JSONResponse(body, headers=headers)

    async def _events(self, running: Running, ask: Ask, envelope: Envelope) -> AsyncIterator[bytes]:
        yield envelope.event({"role": "assistant", "content": ""})
        try:
            while True:
                try:
                    piece = await asyncio.wait_for(running.next(), PING_SECONDS)
                except TimeoutError:
                    yield PING
                    continue
                logprobs = self._logprobs(running, ask)
                if isinstance(piece, End):
                    yield envelope.last_event(piece, logprobs)
                    if ask.include_usage:
                        yield envelope.usage_event(piece.completion)
                    yield DONE
                    return
                if piece or logprobs:
                    yield envelope.event({"content": piece}, logprobs=logprobs)
        except Exception as error:  # the status is out already: say it in the stream
            log.warning("an answer broke off: %s", error)
            yield event(error_body(f"the answer broke off: {error}", "server_error"))

    def _logprobs(self, running: Running, ask: Ask) -> list[dict[str, Any]] | None:
        if ask.params.logprobs is None:
            return None
        return logprob_entries(self.engine.tokenizer, running.new_logprobs())

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise ApiError(
                404,
                f"there is no model {name!r:.80} here; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def _model_card(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "gristmill",
            "max_model_len": self.engine.context,
        }


def build_app(
    engine: Engine, name: str, index: Index | None = None, examples: tuple[str, ...] = ()
) -> Starlette:
    """The application. `name` is the model's id; `examples` are questions the page suggests."""
    server = Server(engine, name, index, examples)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        server.worker.start()
        try:
            yield
        finally:
            await run_in_threadpool(server.worker.stop)
            server.threads.shutdown(wait=False)

    async def page(request: HTTPRequest) -> Response:
        return FileResponse(STATIC / "index.html", headers=_PAGE_HEADERS)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/page-info", server.page_info),
            Route("/health", server.health),
            Route("/v1/models", server.models),
            Route("/v1/models/{name:path}", server.model),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={
            ApiError: _on_api_error,
            RequestError: _on_request_error,
            WorkError: _on_work_error,
            HTTPException: _on_http_error,
            Exception: _on_failure,
        },
        lifespan=lifespan,
    )


# Nothing on the page may come from, or go to, anywhere but this server.
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


async def _read_json(request: HTTPRequest) -> dict[str, Any]:
    raw = bytearray()
    async for piece in request.stream():
        raw += piece
        if len(raw) > MAX_BODY_BYTES:
            raise ApiError(413, f"the request is larger than {MAX_BODY_BYTES} bytes")
    try:
        body = json.loads(bytes(raw), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is not JSON: {error}", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the request must be a JSON object", code="invalid_json")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


async def _unless_gone(
    request: HTTPRequest, running: Running, work: Coroutine[Any, Any, Response | None]
) -> Response:
    """The result of `work`; when the client leaves first, the answer is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task or Response()
        return Response(status_code=499)  # nobody reads it; nginx's "client closed request"
    finally:
        if not task.done():
            running.cancel()
            task.cancel()
        gone.cancel()


async def _disconnected(request: HTTPRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _on_api_error(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status)


async def _on_request_error(request: HTTPRequest, error: Exception) -> Response:
    param = getattr(error, "param", None)
    code = getattr(error, "code", None)
    if isinstance(error, ContextOverflow):
        param, code = "messages", "context_length_exceeded"
    return JSONResponse(error_body(str(error), param=param, code=code), status_code=400)


async def _on_work_error(request: HTTPRequest, error: Exception) -> Response:
    return JSONResponse(
        error_body(str(error), "server_error", code="unavailable"),
        status_code=503,
        headers={"retry-after": "5"},
    )


async def _on_http_error(request: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    message = {404: f"there is nothing at {what}", 405: f"{what} is not a method of this path"}
    text = message.get(error.status_code, str(error.detail))
    return JSONResponse(
        error_body(text), status_code=error.status_code, headers=getattr(error, "headers", None)
    )


async def _on_failure(request: HTTPRequest, error: Exception) -> Response:
    return JSONResponse(
        error_body("the server failed; see its log", "server_error"), status_code=500
    )
