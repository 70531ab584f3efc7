"""The OpenAPI document, made of the routes and of the models that check their bodies: it cannot say something else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from gristmill import __version__
from gristmill.serve.errors import anthropic_status, is_anthropic
from gristmill.serve.http import Body
from gristmill.serve.schemas import ANTHROPIC_ERROR, ERROR, EVENT
from gristmill.serve.server import Server

_REF = "#/components/schemas/{model}"
_WHY = {
    400: "The request is wrong; `param` names the field.",
    401: "No API key, or one that is not known.",
    403: "The API key, or the server, does not allow it.",
    404: "There is no such thing.",
    408: "The body did not arrive in time.",
    413: "The request is too large.",
    429: "Too much at once; `Retry-After` tells when to come again.",
    431: "The request has too many headers.",
    500: "The server failed; its log says how.",
    503: "The server has too much to do, or is going down.",
    529: "The server has too much to do, or is going down.",
}

Handler = Callable[[Server, Request], Awaitable[Response]]


@dataclass(frozen=True)
class Operation:
    """One route. path: parameters in braces, `{name:path}` for one that may have slashes. takes: its body, which
    `handler` reads; gives: the schema of a 200's body, None where that is plain text; streams: it may be server-sent
    events; query: the parameters' schemas; refuses: the statuses it has besides those that all have; differs: the
    schemas of statuses whose bodies are no errors."""

    method: str
    path: str
    handler: Handler
    summary: str
    gives: dict[str, Any] | None = None
    takes: type[Body] | None = None
    streams: bool = False
    query: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    refuses: tuple[int, ...] = ()
    differs: Mapping[int, dict[str, Any]] = field(default_factory=dict)


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """An OpenAPI 3.1 document."""
    bodies = list(dict.fromkeys(o.takes for o in operations if o.takes is not None))
    refs, definitions = models_json_schema([(b, "validation") for b in bodies], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for o in operations:
        paths.setdefault(_path(o), {})[o.method.lower()] = _operation(o, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gristmill",
            "version": __version__,
            "description": "The APIs of OpenAI and Anthropic, with vLLM's extensions.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                **definitions.get("$defs", {}),
                "Error": ERROR,
                "AnthropicError": ANTHROPIC_ERROR,
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _path(o: Operation) -> str:
    return o.path.replace(":path}", "}")


def _operation(o: Operation, refs: Any) -> dict[str, Any]:
    words = o.path.replace(":path}", "").translate(str.maketrans("/", "_", "{}"))
    made: dict[str, Any] = {
        "summary": o.summary,
        "operationId": f"{o.method.lower()}{words}",
        "responses": {"200": {"description": "What was asked for.", "content": _content(o)}},
    }
    names = [part[1:-1] for part in _path(o).split("/") if part.startswith("{")]
    path = [
        {"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names
    ]
    query = [{"name": n, "in": "query", "schema": schema} for n, schema in o.query.items()]
    if path or query:
        made["parameters"] = path + query
    statuses = {401, 403, 429, 431, 500, 503, *o.refuses}
    if o.takes is not None:
        body = refs[(o.takes, "validation")]
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
        statuses |= {400, 404, 408, 413}
    if is_anthropic(o.path):
        statuses = set(map(anthropic_status, statuses))
    error = "AnthropicError" if is_anthropic(o.path) else "Error"
    refusal = {"$ref": _REF.format(model=error)}
    for status in sorted(statuses):
        made["responses"][str(status)] = {
            "description": _WHY[status],
            "content": {"application/json": {"schema": o.differs.get(status, refusal)}},
        }
    return made


def _content(o: Operation) -> dict[str, Any]:
    if o.gives is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    content: dict[str, Any] = {"application/json": {"schema": o.gives}}
    if o.streams:
        content["text/event-stream"] = {"schema": EVENT}
    return content
