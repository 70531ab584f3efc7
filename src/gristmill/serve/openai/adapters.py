"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, by vLLM's fields."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gristmill.serve.errors import ApiError
from gristmill.serve.http import Body, read
from gristmill.serve.server import Server


class LoadAdapter(Body):
    """lora_path: a PEFT directory on the server's own disk. model: whose; the first's where it is left out."""

    REFUSED: ClassVar = {"is_3d_lora_weight": False}
    lora_name: str = Field(min_length=1, max_length=256)
    lora_path: str = Field(min_length=1, max_length=4096)
    load_inplace: bool = False
    model: str | None = None


class UnloadAdapter(Body):
    lora_name: str = Field(min_length=1, max_length=256)
    lora_int_id: int | None = None


async def load(server: Server, request: Request) -> Response:
    body = await read(request, LoadAdapter)
    _allowed(server)
    server.model(request, body.model)  # which the key may use
    place = (body.lora_name, body.lora_path, body.model, body.load_inplace)
    await asyncio.to_thread(server.models.load_adapter, *place)
    return JSONResponse({"status": "ok", "id": body.lora_name})


async def unload(server: Server, request: Request) -> Response:
    body = await read(request, UnloadAdapter)
    _allowed(server)
    server.model(request, body.lora_name)
    await asyncio.to_thread(server.models.unload_adapter, body.lora_name)
    server.operations.metrics.forget(body.lora_name)
    return JSONResponse({"status": "ok", "id": body.lora_name})


def _allowed(server: Server) -> None:
    """Whoever may load a path may learn what lies on the disk."""
    if not server.adapters_by_request:
        raise ApiError(
            403,
            "adapters are loaded at the start here; start the server with --allow-adapters to load them by request",
            "permission_error",
        )
