"""Spans: what OpenTelemetry's own SDK collects of real requests, and what its exporter sends to a collector."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as names
from opentelemetry.trace import SpanKind, StatusCode

from gristmill import serve
from gristmill.engine import Engine
from gristmill.errors import RequestError
from gristmill.serve.tracing import exporting_to
from tests.serve.faults import CHAT, SHORT, endless_engine, soon, target

HTTP = httpx.Client(timeout=60)
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def url(engine: Engine, spans: InMemorySpanExporter) -> Iterator[str]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    operations = serve.Operations(tracing=provider)
    with serve.served(serve.build_app([serve.Served("tiny", engine)], operations)) as address:
        yield address


def one(spans: InMemorySpanExporter) -> ReadableSpan:
    assert soon(lambda: bool(spans.get_finished_spans())), "no span"
    (span,) = spans.get_finished_spans()
    spans.clear()
    return span


@pytest.mark.parametrize("stream", [False, True])
def test_a_span_tells_what_the_answer_came_to(
    url: str, spans: InMemorySpanExporter, stream: bool
) -> None:
    told = {"traceparent": f"00-{TRACE}-{CALLER}-01", "x-request-id": "mine"}
    body = {
        **SHORT,
        "stream": stream,
        "stream_options": {"include_usage": True} if stream else None,
    }
    got = HTTP.post(f"{url}{CHAT}", json=body, headers=told)
    span = one(spans)
    answer = got.json() if not stream else json.loads(got.text.split("data: ")[-2])
    usage, found = answer["usage"], dict(span.attributes or {})
    assert span.name == "chat tiny" and span.kind is SpanKind.SERVER
    assert span.context.trace_id == int(TRACE, 16)
    assert span.parent is not None and span.parent.span_id == int(CALLER, 16)
    assert found[names.GEN_AI_OPERATION_NAME] == "chat"
    assert found[names.GEN_AI_REQUEST_MODEL] == found[names.GEN_AI_RESPONSE_MODEL] == "tiny"
    assert found[names.GEN_AI_USAGE_INPUT_TOKENS] == usage["prompt_tokens"]
    assert found[names.GEN_AI_USAGE_OUTPUT_TOKENS] == usage["completion_tokens"]
    assert found[names.GEN_AI_USAGE_PROMPT_TOKENS] == usage["prompt_tokens"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert found[names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS] == cached
    assert found[names.GEN_AI_RESPONSE_FINISH_REASONS] in [("stop",), ("length",)]
    first, whole = (found[f"gen_ai.latency.{n}"] for n in ("time_to_first_token", "e2e"))
    assert isinstance(first, float) and isinstance(whole, float) and 0 < first < whole
    assert span.end_time and span.start_time
    assert whole == pytest.approx((span.end_time - span.start_time) / 1e9, abs=0.05)
    assert (found["http.response.status_code"], found["gen_ai.request.id"]) == (200, "mine")
    assert span.status.status_code is StatusCode.UNSET
    assert "heap" not in json.dumps(found), "prompts stay out of it"


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": 2}, "text_completion tiny"),
        ("/v1/embeddings", {"input": "x"}, "embeddings tiny"),
        ("/v1/messages", {"max_tokens": 2, "messages": SHORT["messages"]}, "chat tiny"),
        ("/tokenize", {"prompt": "x"}, "POST /tokenize"),
    ],
)
def test_every_api_has_its_operation(
    url: str, spans: InMemorySpanExporter, path: str, body: dict[str, Any], name: str
) -> None:
    assert HTTP.post(url + path, json=body).status_code == 200
    span = one(spans)
    assert span.name == name and span.parent is None


def test_what_is_refused_has_a_span_and_what_asks_no_model_has_none(
    url: str, spans: InMemorySpanExporter
) -> None:
    for path in ("/health", "/v1/models", "/metrics", "/app/info"):
        assert HTTP.get(url + path).status_code == 200
    HTTP.post(f"{url}{CHAT}", json={"messages": []})
    span = one(spans)
    assert (span.attributes or {})["http.response.status_code"] == 400
    assert span.status.status_code is StatusCode.UNSET, "the caller's fault, not the server's"


def test_what_breaks_is_an_error_and_who_leaves_is_none(monkeypatch) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    engine = endless_engine()
    with target(engine, serve.Operations(tracing=provider)) as at:
        leaver = at.send(CHAT, {**SHORT, "max_tokens": 10_000, "stream": True})
        assert b"data" in leaver.recv(4096)
        leaver.close()
        span = one(spans)
        assert (span.attributes or {})[names.GEN_AI_RESPONSE_FINISH_REASONS] == ("abort",)
        assert span.status.status_code is StatusCode.UNSET

        def broken(*_: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(engine._turns.core, "step", broken)
        assert at.ask(CHAT, SHORT).status_code == 500
        assert one(spans).status.status_code is StatusCode.ERROR


def test_spans_reach_a_collector() -> None:
    got: list[tuple[str, ExportTraceServiceRequest]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            got.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    provider = exporting_to(f"http://127.0.0.1:{server.server_port}")
    provider.get_tracer("test").start_span("chat tiny").end()
    provider.shutdown()
    server.shutdown()
    server.server_close()
    ((path, sent),) = got
    (resource,) = sent.resource_spans
    assert path == "/v1/traces"
    assert [s.name for scope in resource.scope_spans for s in scope.spans] == ["chat tiny"]
    told = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert told["service.name"] == "gristmill"


@pytest.mark.parametrize("endpoint", ["localhost:4318", "", "ftp://x", "http://"])
def test_what_is_no_address_is_told(endpoint: str) -> None:
    with pytest.raises(RequestError, match="--otlp takes"):
        exporting_to(endpoint)


def test_without_opentelemetry_the_extra_is_named(monkeypatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    with pytest.raises(RequestError, match=r"\[telemetry\] extra"):
        exporting_to("http://localhost:4318")
