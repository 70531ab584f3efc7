"""What /v1/messages refuses, by the name of the field, in Anthropic's envelope."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic

HTTP = httpx.Client(timeout=60)
TOOL = {"name": "f", "input_schema": {"type": "object"}}
USER = {"role": "user", "content": "x"}
TEXT = {"type": "text", "text": "x"}
USE = {"type": "tool_use", "id": "1", "name": "f", "input": {}}


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [USER, {"role": role, "content": list(blocks)}]}


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("max_tokens", {"max_tokens": None}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": "many"}),
    ("messages", {"messages": []}),
    ("messages", {"messages": "hi"}),
    ("messages[0].role", {"messages": [{"role": "king", "content": "x"}]}),
    ("messages[0].content", {"messages": [{"role": "user"}]}),
    ("messages[1].content[0]", said({"type": "image", "source": {"type": "base64"}})),
    ("messages[1].content[0]", said({"type": "search_result", "content": []})),
    ("messages[1].content[0]", said({"type": "server_tool_use", "id": "1"}, role="assistant")),
    ("messages[1].content[0]", said({"type": "container_upload", "file_id": "f"})),
    ("messages[1].content[0].text", said({"type": "text"})),
    ("messages[1].content[0].source.type", said({"type": "document", "source": {"type": "url"}})),
    (
        "messages[1].content[0].citations.enabled",
        said(
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "x"},
                "citations": {"enabled": True},
            }
        ),
    ),
    ("messages[1].content[0]", said(USE)),
    ("messages[1].content[0]", said({"type": "thinking", "thinking": "x", "signature": ""})),
    (
        "messages[1].content[0]",
        said({"type": "tool_result", "tool_use_id": "1"}, role="assistant"),
    ),
    ("messages[1]", said({"type": "tool_result", "tool_use_id": "1", "content": "x"})),
    (
        "messages[1].content[0].content[0]",
        said({"type": "tool_result", "tool_use_id": "1", "content": [{"type": "image"}]}),
    ),
    ("messages[1].content[0].input", said({**USE, "input": "x"}, role="assistant")),
    ("messages[1].content[0].cache_control.type", said({**TEXT, "cache_control": {"type": "eternal"}})),
    ("messages[1]", said(USE, role="assistant")),
    ("messages[1]", said({"type": "thinking", "thinking": "x", "signature": ""}, role="assistant")),
    ("system", {"system": 3}),
    ("system[0]", {"system": [{"type": "image"}]}),
    ("stop_sequences[0]", {"stop_sequences": [""]}),
    ("stop_sequences", {"stop_sequences": "x"}),
    ("stream", {"stream": "yes"}),
    ("temperature", {"temperature": 1.1}),
    ("temperature", {"temperature": -0.1}),
    ("top_k", {"top_k": -1}),
    ("top_p", {"top_p": 1.5}),
    ("tools[0].type", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
    ("tools[0].type", {"tools": [{"type": "bash_20250124", "name": "bash"}]}),
    ("tools[0].name", {"tools": [{**TOOL, "name": "a b"}]}),
    ("tools[0].input_schema", {"tools": [{"name": "f"}]}),
    ("tools[0].input_schema.type", {"tools": [{"name": "f", "input_schema": {"type": "array"}}]}),
    ("tools[0].defer_loading", {"tools": [{**TOOL, "defer_loading": True}]}),
    ("tools[0].eager_input_streaming", {"tools": [{**TOOL, "eager_input_streaming": False}]}),
    ("tools[0].allowed_callers[0]", {"tools": [{**TOOL, "allowed_callers": ["code_execution_20250825"]}]}),
    ("tools", {"tools": [TOOL, TOOL]}),
    ("tool_choice", {"tool_choice": {"type": "any"}}),
    ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}),
    ("tool_choice.name", {"tools": [TOOL], "tool_choice": {"type": "tool"}}),
    ("tool_choice.type", {"tools": [TOOL], "tool_choice": {"type": "some"}}),
    ("thinking.type", {"thinking": {"type": "enabled", "budget_tokens": 3}}),
    ("thinking.type", {"thinking": {"type": "between_tools"}}),
    ("thinking.type", {"model": "thinker", "thinking": {"type": "disabled"}}),
    ("thinking.budget_tokens", {"model": "thinker", "thinking": {"type": "enabled"}}),
    ("thinking.budget_tokens", {"model": "thinker", "thinking": {"type": "enabled", "budget_tokens": 9}}),
    ("thinking.display", {"model": "thinker", "thinking": {"type": "adaptive", "display": "omitted"}}),
    ("thinking.type", {"model": "thinker", "thinking": {"type": "adaptive"}, **said(TEXT, role="assistant")}),
    ("output_config.effort", {"output_config": {"effort": "huge"}}),
    ("output_config.format.type", {"output_config": {"format": {"type": "xml", "schema": {}}}}),
    ("output_config.format", {"tools": [TOOL], "output_config": {"format": {"type": "json_schema", "schema": {}}}}),
    ("output_config.task_budget", {"output_config": {"task_budget": 3}}),
    ("service_tier", {"service_tier": "priority"}),
    ("metadata.user_id", {"metadata": {"user_id": 3}}),
    ("container", {"container": "c"}),
    ("mcp_servers", {"mcp_servers": [{"type": "url", "url": "x", "name": "x"}]}),
    ("context_management", {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}),
    ("diagnostics", {"diagnostics": {"previous_message_id": None}}),
    ("inference_geo", {"inference_geo": "us"}),
    ("speed", {"speed": "fast"}),
    ("cache_control.type", {"cache_control": {}}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "change"), REFUSED)
def test_a_refusal_names_the_field(url: str, field: str, change: dict[str, Any]) -> None:
    body = {"model": "plain", "max_tokens": 8, "messages": [USER], **change}
    body = {
        name: value for name, value in body.items() if value is not None or name != "max_tokens"
    }
    for stream in ({}, {"stream": True}):
        got = HTTP.post(f"{url}/v1/messages", json={**stream, **body})
        assert got.status_code == 400
        assert set(got.json()) == {"type", "error"} and got.json()["type"] == "error"
        error = got.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["message"].startswith(f"{field}: "), error["message"]


def test_errors_are_the_sdks(sdk: Anthropic, url: str) -> None:
    asked: Any = {"model": "plain", "max_tokens": 8, "messages": [USER]}
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        sdk.messages.create(**asked, extra_body={"temperature": 3})
    with pytest.raises(anthropic.NotFoundError, match="claude"):
        sdk.messages.create(**{**asked, "model": "claude-3"})
    with pytest.raises(anthropic.NotFoundError, match="claude"):
        sdk.messages.count_tokens(model="claude-3", messages=asked["messages"])
    with pytest.raises(anthropic.BadRequestError, match="tokens"):
        sdk.messages.create(**{**asked, "messages": [{"role": "user", "content": "word " * 3000}]})
    for method, path, status in [
        ("GET", "/v1/messages", 405),
        ("GET", "/v1/messages/count_tokens", 405),
        ("POST", "/v1/messages/batches", 404),
    ]:
        got = HTTP.request(method, f"{url}{path}")
        assert got.status_code == status and got.json()["type"] == "error"
    got = HTTP.post(f"{url}/v1/messages", content=b"{")
    assert got.status_code == 400 and got.json()["error"]["type"] == "invalid_request_error"
