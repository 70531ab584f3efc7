"""How the tests ask: the SDK is for answers, plain HTTP for what the SDK would smooth over."""

from __future__ import annotations

from typing import Any

import httpx

from tests.serve.anthropic import strict
from tests.serve.openai.thinker import (
    WEATHER,
)

HTTP = httpx.Client(timeout=60)
TOOL: Any = {
    "name": "weather",
    "description": WEATHER["description"],
    "input_schema": WEATHER["parameters"],
}
GREEDY = {"temperature": 0}
FORCED: dict[str, Any] = {
    "model": "plain",
    "tools": [TOOL, {**TOOL, "name": "tides", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "any"},
    "max_tokens": 160,
}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def post(url: str, path: str = "", **body: Any) -> httpx.Response:
    return HTTP.post(f"{url}/v1/messages{path}", json={"model": "thinker", **body})


def ask(url: str, *messages: Any, **body: Any) -> dict[str, Any]:
    asked = {"max_tokens": 400, "temperature": 0, **body}
    response = post(url, messages=list(messages), **asked)
    assert response.status_code == 200, response.text
    return response.json()


def streamed(url: str, *messages: Any, **body: Any) -> list[dict[str, Any]]:
    """The events, without pings, each as the SDK declares it, and in the API's order."""
    asked = {"max_tokens": 400, "temperature": 0, "stream": True, **body}
    response = post(url, messages=list(messages), **asked)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = strict.events(response.text)
    strict.in_order(found)
    return found
