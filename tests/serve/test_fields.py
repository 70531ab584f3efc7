"""Every field that the SDKs declare is served or refused by name, and a refusal says what is wrong with which."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta
from openai import OpenAI
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from gristmill.engine import Engine
from gristmill.serve import anthropic as theirs
from gristmill.serve import openai as ours
from gristmill.serve.http import Body

HTTP = httpx.Client(timeout=60)
USER = {"role": "user", "content": "x"}
DECLARED: list[tuple[Any, type[Body]]] = [
    (chat_create_params.CompletionCreateParamsStreaming, ours.ChatRequest),
    (completion_create_params.CompletionCreateParamsStreaming, ours.CompletionRequest),
    (embedding_create_params.EmbeddingCreateParams, ours.EmbeddingRequest),
    (response_create_params.ResponseCreateParamsStreaming, ours.ResponseRequest),
    (message_create_params.MessageCreateParamsStreaming, theirs.MessagesRequest),
    (message_count_tokens_params.MessageCountTokensParams, theirs.CountTokensRequest),
    (beta.MessageCreateParamsStreaming, theirs.MessagesRequest),
]


@pytest.mark.parametrize(("declared", "body"), DECLARED)
def test_no_field_of_the_sdks_is_ignored(declared: Any, body: type[Body]) -> None:
    names = declared.__required_keys__ | declared.__optional_keys__
    assert len(names) >= 5
    known = {f.alias or name for name, f in body.model_fields.items()} | set(body.REFUSED)
    assert names - known <= {"betas"}, "a header"


def refusal(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    got = HTTP.post(f"{url}{path}", json=body)
    assert got.status_code == 400, got.text
    return got.json()["error"]


EMPTY = "must not be empty"
CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES = (
    f"/v1/{name}" for name in ("chat/completions", "completions", "embeddings", "messages")
)
TOLD = [
    (CHAT, {"messages": []}, f"messages: {EMPTY}"),
    (COMPLETIONS, {"prompt": []}, f"prompt: {EMPTY}"),
    (COMPLETIONS, {"prompt": [[]]}, f"prompt[0]: {EMPTY}"),
    (COMPLETIONS, {"prompt": 3}, "prompt: must be a string or a list, not 3"),
    (COMPLETIONS, {"prompt": ["a", 2.5]}, "prompt[1]: must be a string or a list, not 2.5"),
    (EMBEDDINGS, {"input": []}, f"input: {EMPTY}"),
    (EMBEDDINGS, {"input": ["a", []]}, f"input[1]: {EMPTY}"),
    (EMBEDDINGS, {"input": ["a", ""]}, "input[1]: is empty"),
    (EMBEDDINGS, {}, "input: must be given"),
    (MESSAGES, {"max_tokens": 1, "messages": []}, f"messages: {EMPTY}"),
    (CHAT, {"messages": [USER], "stop": [""]}, f"stop[0]: {EMPTY}"),
    (CHAT, {"messages": [USER], "stop": 3}, "stop: must be a string or a list, not 3"),
    (CHAT, {"messages": [USER], "temperature": 3}, "temperature: must be at most 2.0, not 3"),
    (CHAT, {"messages": [USER], "n": 1.5}, "n: must be an integer, not 1.5"),
    (CHAT, {"messages": [USER], "n": 65}, "n: must be at most 64, not 65"),
    (
        CHAT,
        {"messages": [USER], "stream": True, "stream_options": {"continuous_usage_stats": True}},
        "stream_options.continuous_usage_stats: is no field that this server knows; leave it out",
    ),
    (
        CHAT,
        {"messages": [{**USER, "role": "king"}]},
        "messages[0].role: must be 'system', 'developer', 'user', 'assistant' or 'tool', not 'king'",
    ),
    (
        CHAT,
        {"messages": [USER, {"role": "assistant", "content": "", "function_call": {"name": "f"}}, USER]},
        "messages[1].function_call: is not served here; say it by tool_calls",
    ),
    (CHAT, {"messages": [USER], "moderation": {}}, "moderation: this server does not serve it; leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "told"), TOLD)
def test_a_refusal_says_what_is_wrong(url: str, path: str, body: dict[str, Any], told: str) -> None:
    assert refusal(url, path, body)["message"] == told


def test_the_code_says_of_what_kind_it_is(url: str) -> None:
    for body, code in (
        ({}, "missing"),
        ({"messages": 3}, "invalid_type"),
        ({"messages": []}, "invalid_value"),
        ({"messages": [USER], "stop": [""]}, "invalid_value"),
        ({"messages": [USER], "stop": 3}, "invalid_type"),
    ):
        assert refusal(url, CHAT, body)["code"] == code, body


def test_what_the_sdk_gives_back_of_an_answer_is_taken(client: OpenAI) -> None:
    """With its nulls: of function_call, audio and refusal."""
    said = client.chat.completions.create(model="tiny", messages=[USER], max_tokens=2)  # type: ignore[list-item]
    again = said.choices[0].message.model_dump()
    assert {"function_call", "audio", "refusal"} <= again.keys()
    messages: Any = [USER, {**again, "content": "x"}, USER]
    assert client.chat.completions.create(model="tiny", messages=messages, max_tokens=2).choices


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "a b " * 900}]}, "messages"),
        (COMPLETIONS, {"prompt": "a b " * 900}, "prompt"),
        (EMBEDDINGS, {"input": ["a", "a b " * 900]}, "input[1]"),
        (EMBEDDINGS, {"input": "a b " * 900}, "input"),
        (EMBEDDINGS, {"input": [5] * 1000}, "input"),
        ("/v1/responses", {"input": "a b " * 900}, "input"),
    ],
)
def test_a_prompt_that_is_too_long_is_told_by_its_own_name(
    url: str, engine: Engine, path: str, body: dict[str, Any], param: str
) -> None:
    error = refusal(url, path, body)
    assert (error["param"], error["code"]) == (param, "context_length_exceeded")
    assert error["message"].startswith(f"{param}: ") and str(engine.context) in error["message"]


def test_what_the_cache_does_not_hold_is_told_by_name() -> None:
    from tests.served import served
    from tests.tiny_model import random_model

    with served(Engine(random_model(), cache_tokens=64)) as url:
        long = {"prompt": "x", "max_tokens": 100}
        error = refusal(url, COMPLETIONS, long)
        assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
        error = refusal(url, COMPLETIONS, {"prompt": [5] * 100})
        assert error["param"] == "prompt"


def test_the_sdks_know_an_error_by_its_kind(url: str) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="tiny", input=[])
    assert refused.value.param == "input"
    other = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    with pytest.raises(anthropic.BadRequestError, match="messages: must not be empty"):
        other.messages.create(model="tiny", max_tokens=1, messages=[])
