"""The ASGI application: which route goes where."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from gristmill.errors import GristmillError
from gristmill.serve import web
from gristmill.serve.api import OPERATIONS
from gristmill.serve.errors import ApiError
from gristmill.serve.http import error_response, on_error
from gristmill.serve.middleware import Operations
from gristmill.serve.models import Models, Served
from gristmill.serve.openapi import Handler, document
from gristmill.serve.server import Server
from gristmill.serve.store import Store
from gristmill.serve.worker import Post

STATIC = Path(__file__).parent / "static"
log = logging.getLogger("gristmill.serve")


def build_app(
    served: Sequence[Served],
    operations: Operations | None = None,
    store: Store | None = None,
    adapters_by_request: bool = False,
) -> Starlette:
    """The application. Each engine gets a thread of its own while the application runs.

    operations: keys, limits, log and so on. store, adapters_by_request: see `Server`.
    """
    server = Server(Models(served), operations or Operations(), store, adapters_by_request)

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    async def openapi(request: Request) -> Response:
        return JSONResponse(_document())

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/openapi.json", openapi),
            *_routes(server),
            *web.routes(server),
            Mount("/static", _Fresh(directory=STATIC)),
        ],
        exception_handlers={
            ApiError: on_error,
            GristmillError: on_error,
            HTTPException: _on_http_error,
            Exception: _on_failure,
        },
        middleware=server.operations.middleware(),
        lifespan=lambda app: _running(server),
    )
    app.state.lifecycle = server.operations.lifecycle
    return app


class _Fresh(StaticFiles):
    """Asked about at each use, and rarely sent: browsers would mix modules of two versions after an upgrade."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        return response


@cache
def _document() -> dict[str, Any]:
    return document(OPERATIONS)


def _routes(server: Server) -> list[Route]:
    """One for each path: a 405 then names all of its methods."""
    handlers: dict[str, dict[str, Handler]] = {}
    for each in OPERATIONS:
        handlers.setdefault(each.path, {})[each.method] = each.handler
    return [_route(server, path, by_method) for path, by_method in handlers.items()]


def _route(server: Server, path: str, by_method: dict[str, Handler]) -> Route:
    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        try:
            return await by_method[method](server, request)
        except (ApiError, GristmillError, HTTPException):
            raise
        except Exception as error:
            # Answered here: from further out uvicorn closes the connection, on which the client may be asking again.
            log.exception("%s %s failed", method, request.url.path)
            return await on_error(request, error)

    return Route(path, endpoint, methods=list(by_method))


@asynccontextmanager
async def _running(server: Server) -> AsyncIterator[None]:
    """The engines' threads, for as long as the application runs."""
    server.start(_post(asyncio.get_running_loop()))
    try:
        yield
    finally:
        for worker in server.workers:
            await asyncio.to_thread(worker.stop)


def _post(loop: asyncio.AbstractEventLoop) -> Post:
    def post(call: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop has closed: nobody reads along any more
            log.debug("news of answers came after the server's end")

    return post


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    message = {404: f"there is nothing at {what}", 405: f"{what} is not a method of this path"}
    text = message.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    return error_response(request.url.path, ApiError(error.status_code, text, headers=headers))


async def _on_failure(request: Request, error: Exception) -> Response:
    """Starlette raises the error again after this answer, and the server's log has it."""
    response = await on_error(request, error)
    if (id := request.scope.get("state", {}).get("request_id")) is not None:
        response.headers["x-request-id"] = id
    return response
