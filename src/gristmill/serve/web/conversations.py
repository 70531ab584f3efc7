"""Conversations of the app: trees of messages that the page keeps here, whole, with a revision for each write."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gristmill.serve.errors import ApiError, FieldError, openai_body
from gristmill.serve.store import Conflict, Store
from gristmill.serve.web.exports import export
from gristmill.serve.web.origin import State, Strict, answer, octets, parsed, route, store_of

MAX_BYTES = 8 << 20
MAX_NODES = 20_000
ID = r"^[A-Za-z0-9_-]{1,64}$"
Id = Annotated[str, Field(pattern=ID)]
Name = Annotated[str, Field(max_length=500)]


class Alternative(Strict):
    token: str
    logprob: float
    bytes: list[int] | None = None


class Token(Alternative):
    top_logprobs: Annotated[list[Alternative], Field(default_factory=list)]


class Citation(Strict):
    source: str
    line: int
    title: str
    text: str


class Attached(Strict):
    id: Id
    name: Name


class Function(Strict):
    name: Name
    arguments: str


class Call(Strict):
    id: Name
    type: Literal["function"]
    function: Function


class Node(Strict):
    """A message; `parent` is the id of the one before it, which stands before it in the list too."""

    id: Id
    parent: Id | None
    role: Literal["system", "user", "assistant", "tool"]
    content: str
    reasoning: str | None = None
    citations: list[Citation] | None = None
    model: Name | None = None
    finish: Name | None = None
    tokens: list[Token] | None = None
    attachments: list[Attached] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: Name | None = None


class Conversation(Strict):
    """current: the last message of the branch that is shown; None for none. revision: what this one replaces, 0 for
    a new one. id, updated: as they were told; the path and the clock decide."""

    id: Id | None = None
    title: Name
    model: Name
    system: str
    settings: dict[str, JsonValue]
    nodes: Annotated[list[Node], Field(max_length=MAX_NODES)]
    current: Id | None
    revision: Annotated[int, Field(ge=0, lt=2**53)]
    updated: float | None = None

    @field_validator("settings")
    @classmethod
    def _json(cls, settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
        json.dumps(settings, allow_nan=False)
        return settings

    def check_tree(self) -> None:
        """Raises FieldError."""
        known: set[str] = set()
        for place, node in enumerate(self.nodes):
            if node.id in known:
                raise FieldError(f"nodes[{place}].id", f"{node.id!r} is there twice")
            if node.parent is not None and node.parent not in known:
                raise FieldError(
                    f"nodes[{place}].parent", f"{node.parent!r} is not a node that stands before it"
                )
            known.add(node.id)
        if self.current is not None and self.current not in known:
            raise FieldError("current", f"{self.current!r} is not the id of a node")


def routes(state: State) -> list[Route]:
    async def listing(request: Request) -> Response:
        query = request.query_params.get("q") or None
        found = await run_in_threadpool(store_of(state).conversations, query)
        return answer({"conversations": found})

    async def get(request: Request) -> Response:
        store, id = store_of(state), _id(request)
        return await run_in_threadpool(lambda: answer(_stored(store, id)))

    async def put(request: Request) -> Response:
        store, id = store_of(state), _id(request)
        raw = await octets(request, MAX_BYTES)
        return await run_in_threadpool(_put, store, id, raw)

    async def delete(request: Request) -> Response:
        store, id = store_of(state), _id(request)
        if not await run_in_threadpool(store.delete_conversation, id):
            raise _no_such(id)
        return answer({"id": id, "deleted": True})

    async def exported(request: Request) -> Response:
        store, id = store_of(state), _id(request)
        form = request.query_params.get("format", "markdown")
        return await run_in_threadpool(lambda: export(_stored(store, id), form))

    one = "/app/conversations/{id}"
    return [
        route("/app/conversations", "GET", listing),
        route(one, "GET", get),
        route(one, "PUT", put),
        route(one, "DELETE", delete),
        route(f"{one}/export", "GET", exported),
    ]


def _id(request: Request) -> str:
    id = request.path_params["id"]
    if not re.fullmatch(ID, id):
        raise FieldError("id", "must be 1 to 64 letters, digits, hyphens and underscores")
    return id


def _stored(store: Store, id: str) -> dict[str, Any]:
    document = store.conversation(id)
    if document is None:
        raise _no_such(id)
    return document


def _put(store: Store, id: str, raw: bytes) -> Response:
    sent = parsed(raw, Conversation)
    sent.check_tree()
    document = sent.model_dump(exclude_unset=True, exclude={"id", "revision", "updated"})
    text = "\n".join(filter(None, [sent.system, *(node.content for node in sent.nodes)]))
    try:
        return answer({"revision": store.put_conversation(id, document, sent.revision, text)})
    except Conflict as conflict:
        return answer(_conflict(sent.revision, conflict), 409)


def _no_such(id: str) -> ApiError:
    return ApiError(404, f"there is no conversation {id!r}", code="conversation_not_found")


def _conflict(sent: int, conflict: Conflict) -> dict[str, Any]:
    """The envelope, and the stored document beside it; None when it was deleted."""
    stored = conflict.stored
    is_now = f"at revision {stored['revision']}" if stored else "deleted, or was never kept"
    message = (
        f"the conversation is {is_now}, and this replaces revision {sent}: another tab wrote it"
    )
    error = ApiError(409, message, param="revision", code="revision_conflict")
    return openai_body(error) | {"document": stored}
