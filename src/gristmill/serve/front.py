"""The front of several replicas: one process that speaks HTTP, asks for keys, keeps their accounts, writes the log and
goes down in good order, and passes requests on to the replica that knows most of their conversation."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from gristmill.errors import GristmillError, needing
from gristmill.serve.auth import key_of
from gristmill.serve.errors import (
    ApiError,
    FieldError,
    anthropic_event,
    as_api_error,
    is_anthropic,
    openai_event,
    responses_event,
)
from gristmill.serve.http import error_response, on_error, until_gone
from gristmill.serve.keys import Key
from gristmill.serve.limits import Allowance
from gristmill.serve.middleware import Operations
from gristmill.serve.models import Served
from gristmill.serve.routing import prefix_of

if TYPE_CHECKING:
    from gristmill.serve.replicas import Replicas

# What a replica needs of a request's scope; the rest of it cannot be pickled.
_SCOPE = ("type", "asgi", "http_version", "method", "path", "raw_path", "query_string", "root_path")
_SCOPE += ("headers", "client", "server", "scheme")
# Messages beside ASGI's, from a replica to the front.
CHARGED, SETTLED, RECORD = "gristmill.charged", "gristmill.settled", "gristmill.record"
_LARGE = 64 << 10  # bytes; a larger body is not parsed on the event loop
log = logging.getLogger("gristmill.serve")


@dataclass(frozen=True)
class Plan:
    """What every replica does. load: makes its models; pickled. keys: only whether there are any; asking for
    them is the front's part."""

    load: Callable[[], Sequence[Served]]
    store: Path | None = None
    keys: Path | None = None
    log_prompts: bool = False


@dataclass(frozen=True)
class Call:
    """A request on its way to a replica. scope: of ASGI, what can be pickled. tokens_used: of the key's minute."""

    scope: dict[str, Any]
    body: bytes = b""
    prefix: tuple[bytes, ...] = ()
    key: Key | None = None
    tokens_used: float = 0.0


@dataclass(frozen=True)
class Told:
    """A replica about itself. engines: each model's, described. failure: why it serves nothing."""

    rank: int
    names: list[str]
    engines: dict[str, str]
    retrieval: bool
    failure: GristmillError | None = None


@contextmanager
def replicas(plan: Plan, count: int) -> Iterator[Replicas]:
    """`count` replicas while it lasts; see `replicas.running`. Raises RequestError where Ray is not installed.

    Ray's processes listen on loopback only and want a token of each other; neither is Ray's way by default. It reports
    nothing to anyone.
    """
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # by its meaning: this is no cluster of machines
        RAY_USAGE_STATS_ENABLED="0",
    )
    with needing("ray", "ray"):
        from gristmill.serve.replicas import running
    with running(plan, count) as them:
        yield them


def build_front(them: Replicas, operations: Operations) -> Starlette:
    """The application that stands before `them`."""
    lifecycle = operations.lifecycle

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "requests_under_way": lifecycle.under_way})

    async def metrics(request: Request) -> Response:
        got = await them.fetch(_call(request.scope))
        content = labelled({str(rank): text.decode() for rank, text in got})
        return Response(content, media_type="text/plain; version=0.0.4")

    async def stats(request: Request) -> Response:
        got = await them.fetch(_call(request.scope))
        told = summed([json.loads(text) for _, text in got])
        return JSONResponse(told, headers={"cache-control": "no-store"})

    async def attachments(request: Request) -> Response:
        raise ApiError(
            400,
            "files are attached in one process, and this server has several: serve without --replicas for them",
            code="unsupported",
        )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        aborting: set[asyncio.Task[None]] = set()
        with lifecycle.abortable(lambda: aborting.add(asyncio.create_task(them.abort()))):
            yield

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/ready", lifecycle.ready),
            Route("/metrics", metrics),
            Route("/app/stats", stats),
            Route("/app/attachments", attachments, methods=["POST"]),
            Route("/app/attachments/{id}", attachments, methods=["DELETE"]),
            Mount("/", _Forward(them)),
        ],
        exception_handlers={ApiError: on_error, GristmillError: on_error},
        middleware=operations.middleware(),
        lifespan=lifespan,
    )
    app.state.lifecycle = lifecycle
    return app


class _Forward:
    """Passes requests on, and their responses back as they come."""

    def __init__(self, them: Replicas) -> None:
        self._them = them
        self._admitting: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (body := await _whole(receive)) is None:
            return
        prefix = await _prefix(scope, body)
        answering = asyncio.ensure_future(self._answer(scope, body, prefix, send))
        await until_gone(receive, answering)

    async def _answer(
        self, scope: Scope, body: bytes, prefix: tuple[bytes, ...], send: Send
    ) -> None:
        state = scope["state"]
        allowance, record = state["allowance"], state["record"]
        head: Message | None = None
        # It waits for the record, which comes after it: a client that has it may leave, and end all this.
        last: Message | None = None
        events = 0
        try:
            async with AsyncExitStack() as admitting:
                if allowance.key is not None and allowance.key.tokens_per_minute is not None:
                    # Until the replica has told what it charges: else many at once would all find the same left.
                    await admitting.enter_async_context(self._admitting[allowance.key.name])
                call = _call(scope, body, prefix, allowance)
                async for batch in self._them.answer(call):
                    for message in batch:
                        if message["type"] == CHARGED:
                            allowance.admitted(message["tokens"])
                        elif message["type"] == SETTLED:
                            allowance.settle(message["tokens"])
                        elif message["type"] == RECORD:
                            vars(record).update(message["record"])
                        elif message["type"] == "http.response.start":
                            head = message
                            await send(message)
                        elif message.get("more_body"):  # see http.EventStream
                            events += message["body"].count(b"\ndata: ")
                            await state["send"](message)
                        else:
                            last = message
                    await admitting.aclose()
            if last is not None:
                await send(last)
        except Exception as error:
            record.error = f"{type(error).__name__}: {error}"[:500]
            if not isinstance(error, GristmillError):
                log.exception("%s %s failed", scope["method"], scope["path"])
            told = as_api_error(error)
            if last is not None:
                return await send(last)
            if head is None:
                return await error_response(scope["path"], told)(scope, _never, send)
            if _is_stream(head):
                words = _last_words(scope["path"], told, events)
                return await send({"type": "http.response.body", "body": words})
            raise  # cut off: what has gone out cannot be taken back


def _call(
    scope: Scope,
    body: bytes = b"",
    prefix: tuple[bytes, ...] = (),
    allowance: Allowance | None = None,
) -> Call:
    used = 0.0 if allowance is None else allowance.tokens_used()
    picked = {name: scope[name] for name in _SCOPE if name in scope}
    picked["state"] = {"request_id": scope["state"]["request_id"]}
    return Call(picked, body, prefix, key_of(scope), used)


async def _prefix(scope: Scope, body: bytes) -> tuple[bytes, ...]:
    """By which the request is routed. Raises FieldError for what several processes cannot do."""
    if scope["method"] != "POST" or not body or scope["path"].startswith("/app/"):
        return ()
    parsed = await asyncio.to_thread(_parsed, body) if len(body) > _LARGE else _parsed(body)
    if scope["path"] == "/v1/responses" and parsed.get("background") is True:
        raise FieldError(
            "background",
            "this server has several replicas, and none knows what another makes in the background; leave it out",
            "unsupported",
        )
    return prefix_of(parsed)


def _parsed(body: bytes) -> dict[str, Any]:
    """{} for what a replica will refuse."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


async def _whole(receive: Receive) -> bytes | None:
    """The body, of a bounded size; None when the client left before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


async def _never() -> Message:
    raise AssertionError("the body has been read")


def _is_stream(head: Message) -> bool:
    headers = dict(head.get("headers", ()))
    return headers.get(b"content-type", b"").startswith(b"text/event-stream")


def _last_words(path: str, error: ApiError, events: int) -> bytes:
    """An error's event in a stream of the API that the path belongs to, of which `events` have gone out."""
    if is_anthropic(path):
        return anthropic_event(error)
    return responses_event(error, events) if path == "/v1/responses" else openai_event(error)


def labelled(texts: dict[str, str]) -> bytes:
    """Prometheus expositions as one, each sample with the label `replica`."""
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text):
            into = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            into.samples += [
                sample._replace(labels={**sample.labels, "replica": replica})
                for sample in family.samples
            ]
    registry = CollectorRegistry()
    registry.register(_Collected(list(families.values())))
    return generate_latest(registry)


class _Collected:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        return self._families


def summed(stats: list[dict[str, Any]]) -> dict[str, Any]:
    """`/app/stats` of all replicas as one: counts are added, of times the slowest replica's are shown, and of the
    caches' use the mean."""
    models: dict[str, dict[str, Any]] = {}
    for name in stats[0]["models"]:
        each = [told["models"][name] for told in stats]
        merged: dict[str, Any] = {}
        for field, first in each[0].items():
            values = [told[field] for told in each]
            if isinstance(first, list):
                columns = zip(*values, strict=True)
                merged[field] = [
                    max((v for v in column if v is not None), default=None) for column in columns
                ]
            else:
                merged[field] = sum(values)
        merged["cache_usage"] /= len(each)
        models[name] = merged
    memory = sum(told["memory_bytes"] for told in stats)
    return {"time": stats[0]["time"], "models": models, "memory_bytes": memory}
