"""OpenTelemetry: one span for each request to a model, a child of the caller's where a `traceparent` says so.

Attributes have the names of OpenTelemetry's conventions for generative models and, where vLLM has others, vLLM's too.
Prompts and answers stay out of them. Times are in seconds.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gristmill import __version__
from gristmill.errors import RequestError, needing
from gristmill.serve.limits import asks_the_model
from gristmill.serve.logs import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


def exporting_to(endpoint: str) -> TracerProvider:
    """Sends spans by OTLP over HTTP to a collector, as `http://localhost:4318`; `shutdown()` sends the last ones.

    Raises RequestError for what is no address, and where OpenTelemetry is not installed.
    """
    with needing("telemetry", "opentelemetry"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RequestError(
            f"--otlp takes the address of a collector, as http://localhost:4318, not {endpoint!r}"
        )
    address = parts._replace(path="/v1/traces").geturl() if parts.path in ("", "/") else endpoint
    resource = Resource.create({"service.name": "gristmill", "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(address)))
    return provider


class Tracing:
    """Stands right behind the log, whose record says what the request came to."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app, self._tracer = app, provider.get_tracer("gristmill.serve", __version__)
        self._caller = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not asks_the_model(scope):
            return await self._app(scope, receive, send)
        from opentelemetry.trace import SpanKind, StatusCode

        begun = time.monotonic()
        caller = self._caller.extract(dict(Headers(scope=scope)))
        span = self._tracer.start_span(f"POST {scope['path'][:200]}", caller, SpanKind.SERVER)
        status = 500  # where nothing is answered

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            record: Record = scope["state"]["record"]
            operation = _OPERATIONS.get(scope["path"])
            if operation and record.model:
                span.update_name(f"{operation} {record.model}")
            if status >= 500 or (record.error and record.finish_reason != "abort"):
                span.set_status(StatusCode.ERROR, record.error)
            told = {
                "http.request.method": "POST",
                "url.path": scope["path"][:200],
                "http.response.status_code": status,
                "gen_ai.provider.name": "gristmill",
                "gen_ai.operation.name": operation,
                "gen_ai.request.id": scope["state"]["request_id"],
                "gen_ai.latency.e2e": time.monotonic() - begun,
            } | _of(record)
            span.set_attributes({name: value for name, value in told.items() if value is not None})
            span.end()


def _of(record: Record) -> dict[str, Any]:
    return {
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.response.finish_reasons": record.finish_reason and [record.finish_reason],
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.prompt_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.completion_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.latency.time_to_first_token": _seconds(record.ttft_ms),
        "gen_ai.latency.time_in_queue": _seconds(record.queue_ms),
    }


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
