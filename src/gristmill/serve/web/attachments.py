"""Files that answers may be looked up in: sent here first, and named in a chat request's `retrieval`."""

from __future__ import annotations

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gristmill.serve.errors import ApiError, FieldError
from gristmill.serve.web.origin import OCTETS, State, answer, octets, route

MAX_BYTES = 16 << 20
MAX_NAME = 255


def routes(state: State) -> list[Route]:
    one_at_a_time = anyio.CapacityLimiter(1)  # indexing takes a core that answers need too

    async def attach(request: Request) -> Response:
        name = _name(request)
        raw = await octets(request, MAX_BYTES)
        made = await anyio.to_thread.run_sync(
            state.attachments.add, name, raw, limiter=one_at_a_time
        )
        told = {"id": made.id, "name": made.name, "bytes": made.bytes, "passages": made.passages}
        return answer(told)

    async def detach(request: Request) -> Response:
        id = request.path_params["id"]
        if not state.attachments.remove(id):
            raise ApiError(404, f"there is no attachment {id!r:.80}", code="attachment_not_found")
        return answer({"id": id, "deleted": True})

    return [
        route("/app/attachments", "POST", attach, accepts=OCTETS),
        route("/app/attachments/{id}", "DELETE", detach),
    ]


def _name(request: Request) -> str:
    """Without directories, on one line."""
    given = request.query_params.get("name", "").replace("\\", "/").rpartition("/")[2]
    name = " ".join("".join(c if c.isprintable() else " " for c in given).split())
    if not 1 <= len(name) <= MAX_NAME:
        raise FieldError(
            "name", f"must be the file's name, of 1 to {MAX_NAME} characters", "missing"
        )
    return name
