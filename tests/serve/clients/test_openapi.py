"""What schemathesis makes of the OpenAPI document gets no status, content type or body that is not documented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as openapi

from gristmill import serve
from gristmill.engine import Engine
from gristmill.serve.api import OPERATIONS
from gristmill.serve.openapi import document
from tests.tiny_model import random_model

CHECKS = [
    not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
    openapi.negative_data_rejection,
    openapi.unsupported_method,
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The first model's context ends soon, so that nothing is long; the other's holds tools as well."""
    models = [
        serve.Served("tiny", Engine(random_model(max_seq_len=48))),
        serve.Served("wide", Engine(random_model(max_seq_len=1024))),
    ]
    path = tmp_path_factory.mktemp("store") / "serve.sqlite"
    with serve.Store(path) as store, serve.served(serve.build_app(models, store=store)) as address:
        yield address


def amend(body: dict[str, Any]) -> None:
    """What a schema cannot say, so that some requests are answered: a model's name, a message that says something."""
    if isinstance(body.get("model"), str):
        body["model"] = "tiny"
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.get("tool_calls") is None:
            if message.get("content", "") is None:
                message["content"] = "Heaps"
            if message.get("role") in ("assistant", "tool"):
                message["role"] = "user"


SCHEMA = schemathesis.openapi.from_dict(document(OPERATIONS))


@SCHEMA.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_what_is_answered_is_what_is_documented(case: schemathesis.Case, url: str) -> None:
    if isinstance(case.body, dict) and not case.path.startswith("/v1/messages"):
        amend(case.body)
    case.call_and_validate(base_url=url, checks=CHECKS, timeout=60)


HEAPS = [{"role": "user", "content": "Heaps"}]
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {}}}
FEW = {"messages": HEAPS, "max_tokens": 4}
ORDINARY: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**FEW, "n": 2, "logprobs": True, "top_logprobs": 2}),
    (
        "/v1/chat/completions",
        {
            "model": "wide",
            "messages": HEAPS,
            "tools": [{"type": "function", "function": TOOL}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        },
    ),
    ("/v1/chat/completions", {**FEW, "stream": True}),
    ("/v1/completions", {"prompt": ["Heaps", [5, 6]], "echo": True, "logprobs": 2}),
    ("/v1/completions", {"prompt": "Heaps", "stream": True}),
    ("/v1/embeddings", {"input": ["Heaps", "x"]}),
    ("/v1/embeddings", {"input": "Heaps", "encoding_format": "base64"}),
    ("/v1/responses", {"input": "Heaps", "max_output_tokens": 4}),
    ("/v1/messages", FEW),
    ("/v1/messages", {**FEW, "stream": True}),
    ("/v1/messages/count_tokens", {"messages": HEAPS}),
    ("/tokenize", {"prompt": "Heaps", "return_token_strs": True}),
    ("/detokenize", {"tokens": [5, 6]}),
]


def case_of(method: str, path: str, **parts: Any) -> schemathesis.Case:
    return SCHEMA[path][method].Case(**parts)


@pytest.mark.parametrize(("path", "body"), ORDINARY)
def test_ordinary_answers_are_as_documented(url: str, path: str, body: dict[str, Any]) -> None:
    case = case_of("POST", path, body=body, media_type="application/json")
    assert case.call_and_validate(base_url=url, checks=CHECKS).status_code == 200


def test_a_kept_response_is_as_documented(url: str) -> None:
    made = httpx.post(f"{url}/v1/responses", json={"input": "Heaps", "max_output_tokens": 4})
    place = {"id": made.json()["id"]}
    for method, path in [
        ("GET", "/v1/responses/{id}"),
        ("GET", "/v1/responses/{id}/input_items"),
        ("DELETE", "/v1/responses/{id}"),
    ]:
        case = case_of(method, path, path_parameters=place)
        assert case.call_and_validate(base_url=url, checks=CHECKS).status_code == 200
    assert case_of("GET", "/v1/models/{name}", path_parameters={"name": "tiny"}).call_and_validate(
        base_url=url, checks=CHECKS
    )


def test_every_operation_is_there(url: str) -> None:
    served = httpx.get(f"{url}/openapi.json").json()
    assert served == SCHEMA.raw_schema
    paths = served["paths"]
    there = {(method.upper(), path) for path, item in paths.items() for method in item}
    assert there == {(o.method, o.path.replace(":path", "")) for o in OPERATIONS}


def test_a_method_that_is_not_served_is_told_which_are(url: str) -> None:
    refused = httpx.put(f"{url}/v1/responses/resp_1")
    assert refused.status_code == 405
    assert {"GET", "DELETE"} <= set(refused.headers["allow"].replace(",", " ").split())
