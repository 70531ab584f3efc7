"""The routes by which a server is looked after: is it alive, is it ready, what does it serve."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gristmill import __version__
from gristmill.serve.auth import key_of
from gristmill.serve.models import Served
from gristmill.serve.server import Server


async def health(server: Server, request: Request) -> Response:
    return JSONResponse({"status": "ok", "requests_under_way": server.under_way})


async def ready(server: Server, request: Request) -> Response:
    return await server.operations.lifecycle.ready(request)


async def metrics(server: Server, request: Request) -> Response:
    """What Prometheus scrapes."""
    content, content_type = server.operations.metrics.exposition()
    return Response(content, headers={"content-type": content_type})


async def version(server: Server, request: Request) -> Response:
    return JSONResponse({"version": __version__})


async def models(server: Server, request: Request) -> Response:
    usable = server.models.usable(key_of(request.scope))
    return JSONResponse({"object": "list", "data": [_card(each) for each in usable.values()]})


async def model(server: Server, request: Request) -> Response:
    return JSONResponse(_card(server.model(request, request.path_params["name"])))


def _card(served: Served) -> dict[str, Any]:
    card = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "gristmill",
        "max_model_len": served.context,
    }
    return card | ({"parent": served.root, "root": served.adapter} if served.adapter else {})
