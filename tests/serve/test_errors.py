"""Errors in the form of the API that was asked, taken at their SDKs' word: as responses and as last events."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import httpx2
import pytest
from anthropic import Anthropic
from openai import APIError, OpenAI
from openai.types.responses import ResponseErrorEvent

from gristmill.serve.errors import ApiError, anthropic_event, openai_event, responses_event
from gristmill.serve.front import _last_words
from gristmill.serve.lifecycle import Lifecycle
from tests.serve.faults import SHORT, endless_engine, target
from tests.serve.openai import strict

GONE = ApiError(503, "the replica has died: ünder way", "server_error", code="unavailable")
USER: Any = SHORT["messages"]


def streaming(content: bytes, of: Any) -> Any:
    """A client to whom every request is answered with this stream. of: httpx, or its successor."""
    headers = {"content-type": "text/event-stream"}
    answer = of.Response(200, content=content, headers=headers)
    return of.Client(transport=of.MockTransport(lambda request: answer))


def test_anthropics_overload_is_529() -> None:
    with target(endless_engine()) as at:
        client = Anthropic(base_url=at.url, api_key="none", max_retries=0)
        life: Lifecycle = at.app.state.lifecycle
        life.stage = "draining"
        with pytest.raises(anthropic.APIStatusError) as refused:
            client.messages.create(model="tiny", max_tokens=1, messages=USER)
        other = at.ask("/v1/chat/completions", SHORT)
        life.stage = "ready"
    assert refused.value.status_code == 529
    assert type(refused.value).__name__ == "OverloadedError"
    assert refused.value.body == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "the server is going down"},
    }
    assert refused.value.response.headers["retry-after"] == "5"
    assert (other.status_code, other.json()["error"]["type"]) == (503, "server_error")


def test_the_last_event_of_responses_is_the_sdks() -> None:
    raw = responses_event(GONE, 7).decode()
    assert raw.startswith("event: error\ndata: ") and raw.endswith("\n\n") and raw.count("\n") == 3
    event = strict.event(json.loads(raw.partition("data: ")[2]))
    assert isinstance(event, ResponseErrorEvent)
    assert (event.sequence_number, event.code, event.message) == (7, "unavailable", str(GONE))


def test_the_sdks_raise_the_others() -> None:
    asked: Any = {"model": "m", "messages": USER, "stream": True}
    client = OpenAI(api_key="x", http_client=streaming(openai_event(GONE), httpx))
    with pytest.raises(APIError, match="ünder way"):
        list(client.chat.completions.create(**asked))
    other = Anthropic(api_key="x", http_client=streaming(anthropic_event(GONE), httpx2))
    with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
        list(other.messages.create(max_tokens=1, **asked))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/messages", anthropic_event(GONE)),
        ("/v1/responses", responses_event(GONE, 3)),
        ("/v1/chat/completions", openai_event(GONE)),
        ("/v1/completions", openai_event(GONE)),
    ],
)
def test_a_front_says_for_its_replica_what_that_would_have_said(path: str, words: bytes) -> None:
    assert _last_words(path, GONE, 3) == words
