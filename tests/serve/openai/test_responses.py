"""POST /v1/responses, whole, driven by OpenAI's own SDK, against what the model learned and the engine says."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import httpx
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, ConfigDict

from gristmill.engine import Engine
from gristmill.lm import Request, SamplingParams
from tests.serve.openai import strict
from tests.serve.openai.thinker import (
    ANSWER,
    ARGUMENTS,
    ASKED,
    GREETING,
    PUZZLE,
    PUZZLING,
    RESULT,
    SAID,
    SOLVED,
    THOUGHT,
    TOLD,
    WEATHER,
)

HTTP = httpx.Client(timeout=60)
TOOLS: Any = [WEATHER]


def post(url: str, **body: Any) -> httpx.Response:
    return HTTP.post(f"{url}/v1/responses", json=body)


def test_text(sdk: OpenAI, thinker: Engine) -> None:
    got = sdk.responses.create(model="thinker", input=GREETING, temperature=0)
    ids = thinker.tokenizer.chat_ids([{"role": "user", "content": GREETING}])
    (alone,) = thinker.generate([Request(token_ids=ids, params=SamplingParams(99, temperature=0))])
    assert got.output_text == alone.text == ANSWER
    assert (got.status, got.error, got.incomplete_details) == ("completed", None, None)
    assert got.usage is not None
    assert got.usage.input_tokens == len(ids)
    assert got.usage.output_tokens == len(alone.token_ids)
    assert got.usage.total_tokens == len(ids) + len(alone.token_ids)
    assert got.usage.output_tokens_details.reasoning_tokens == 0
    strict.response(got.to_dict(mode="python"))


def test_a_thought_is_an_item_of_its_own(sdk: OpenAI) -> None:
    got = sdk.responses.create(model="thinker", input=PUZZLE, temperature=0)
    thought, message = got.output
    assert thought.type == "reasoning" and thought.content and message.type == "message"
    assert [part.text for part in thought.content] == [PUZZLING]
    assert got.output_text == SOLVED
    assert got.usage is not None
    assert 0 < got.usage.output_tokens_details.reasoning_tokens < got.usage.output_tokens


@pytest.mark.parametrize("through", ["previous_response_id", "items"])
def test_the_tool_loop(sdk: OpenAI, through: str) -> None:
    asked: Any = {"model": "thinker", "tools": TOOLS, "temperature": 0}
    first = sdk.responses.create(input=ASKED, **asked)
    thought, message, call = first.output
    assert thought.type == "reasoning" and message.type == "message"
    assert thought.content and thought.content[0].text == THOUGHT
    assert first.output_text == SAID
    assert call.type == "function_call" and call.name == "weather" and call.id != call.call_id
    assert json.loads(call.arguments) == json.loads(ARGUMENTS)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    if through == "items":  # the SDK's objects, sent back as they came
        items: Any = [{"role": "user", "content": ASKED}, *first.output, result]
        second = sdk.responses.create(input=items, **asked)
    else:
        second = sdk.responses.create(input=[result], previous_response_id=first.id, **asked)  # type: ignore[list-item]
    assert second.output_text == TOLD
    # As many tokens as chat has for the same conversation.
    call_of_chat = {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    said = {
        "role": "assistant",
        "content": SAID,
        "reasoning_content": THOUGHT,
        "tool_calls": [call_of_chat],
    }
    messages: Any = [
        {"role": "user", "content": ASKED},
        said,
        {"role": "tool", "tool_call_id": call.call_id, "content": RESULT},
    ]
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    chat = sdk.chat.completions.create(
        model="thinker",
        messages=messages,
        temperature=0,
        tools=[{"type": "function", "function": function}],  # type: ignore[typeddict-item]
    )
    assert chat.choices[0].message.content == TOLD
    assert chat.usage and second.usage
    assert second.usage.input_tokens == chat.usage.prompt_tokens


def test_parts_and_roles_are_those_of_chat(sdk: OpenAI) -> None:
    items: Any = [
        {"type": "message", "role": "developer", "content": "Be kind."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": GREETING[:4]},
                {"type": "input_text", "text": GREETING[4:]},
            ],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]},
        {"role": "user", "content": "Go on."},
    ]
    messages: Any = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": GREETING},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "Go on."},
    ]
    more: Any = {"model": "thinker", "temperature": 0}
    got = sdk.responses.create(input=items, max_output_tokens=20, **more)
    chat = sdk.chat.completions.create(messages=messages, max_tokens=20, **more)
    thought = [item.content[0].text for item in got.output if item.type == "reasoning"]  # type: ignore[index]
    said = chat.choices[0].message
    assert got.output_text == (said.content or "")
    assert thought == ([said.reasoning_content] if hasattr(said, "reasoning_content") else [])  # type: ignore[attr-defined]
    assert got.usage and chat.usage and got.usage.input_tokens == chat.usage.prompt_tokens
    told = sdk.responses.create(input=items[1:], instructions="Be kind.", **more)
    assert told.usage and told.usage.input_tokens == chat.usage.prompt_tokens


def test_a_limit_makes_it_incomplete(thinker_url: str) -> None:
    asked: dict[str, Any] = {"input": ASKED, "tools": TOOLS, "temperature": 0}
    full = post(thinker_url, **asked).json()["usage"]["output_tokens"]
    cut: dict[str, str] = {}
    for limit in range(1, full, 5):
        got = post(thinker_url, **asked, max_output_tokens=limit).json()
        checked = strict.response(got)
        assert checked.status == "incomplete" and checked.completed_at is None
        assert checked.incomplete_details
        assert checked.incomplete_details.reason == "max_output_tokens"
        assert checked.usage and checked.usage.output_tokens == limit
        *before, last = got["output"]
        assert all(item["status"] == "completed" for item in before)
        cut[last["type"]] = said = last.get("arguments") or last["content"][0]["text"]
        # A call is complete with its arguments, before the mark that ends it.
        assert (last["status"] == "incomplete") is (said != ARGUMENTS)
    assert set(cut) == {"reasoning", "message", "function_call"}


class Weather(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sunny: bool
    city: Literal["Oslo", "Bergen"]


def test_a_schema_is_kept_whole_streamed_and_asynchronously(sdk: OpenAI, thinker_url: str) -> None:
    asked: Any = {"model": "thinker", "input": PUZZLE, "temperature": 0, "text_format": Weather}
    whole = sdk.responses.parse(**asked)
    assert isinstance(whole.output_parsed, Weather)
    with sdk.responses.stream(**asked) as stream:
        streamed = stream.get_final_response()
    assert streamed.output_parsed == whole.output_parsed

    async def ask() -> tuple[Any, Any]:
        async with openai.AsyncOpenAI(base_url=f"{thinker_url}/v1", api_key="none") as other:
            parsed = await other.responses.parse(**asked)
            async with other.responses.stream(**asked) as stream:
                return parsed.output_parsed, (await stream.get_final_response()).output_parsed

    assert asyncio.run(ask()) == (whole.output_parsed, whole.output_parsed)


def test_json_objects(sdk: OpenAI) -> None:
    for seed in range(3):
        got = sdk.responses.create(
            model="plain",
            input=GREETING,
            max_output_tokens=60,
            text={"format": {"type": "json_object"}},
            extra_body={"seed": seed},
        )
        assert got.output_text.startswith("{")
        if got.status == "completed":
            assert isinstance(json.loads(got.output_text), dict)


def test_tools_that_must_be_called(sdk: OpenAI) -> None:
    other: Any = WEATHER | {"name": "tides", "strict": False}
    sdk_create: Any = sdk.responses.create

    def called(**asked: Any) -> list[str]:
        got = sdk_create(
            model="plain",
            input=GREETING,
            tools=[WEATHER, other],
            temperature=0,
            max_output_tokens=120,
            **asked,
        )
        for item in got.output:
            if item.type == "function_call" and item.status == "completed":
                assert set(json.loads(item.arguments)) == {"city"}
        return [item.name for item in got.output if item.type == "function_call"]

    assert called() == []
    assert called(tool_choice="none") == []
    assert set(called(tool_choice="required")) & {"weather", "tides"}
    assert len(called(tool_choice="required", parallel_tool_calls=False)) == 1
    assert called(tool_choice={"type": "function", "name": "tides"}, parallel_tool_calls=False) == [
        "tides"
    ]
    allowed = {"type": "allowed_tools", "tools": [{"type": "function", "name": "tides"}]}
    assert called(tool_choice=allowed | {"mode": "auto"}) == []
    only = called(tool_choice=allowed | {"mode": "required"}, parallel_tool_calls=False)
    assert only == ["tides"]


def test_logprobs_are_the_engines(sdk: OpenAI, thinker: Engine) -> None:
    more: Any = {"model": "thinker", "temperature": 0, "top_logprobs": 3}
    got = sdk.responses.create(input=GREETING, include=["message.output_text.logprobs"], **more)
    ids = thinker.tokenizer.chat_ids([{"role": "user", "content": GREETING}])
    params = SamplingParams(99, temperature=0, logprobs=3)
    (alone,) = thinker.generate([Request(token_ids=ids, params=params)])
    (message,) = got.output
    assert message.type == "message" and message.content[0].type == "output_text"
    entries = message.content[0].logprobs
    assert entries and alone.logprobs
    assert "".join(entry.token for entry in entries) == ANSWER
    for entry, token in zip(entries, alone.logprobs[: len(entries)], strict=True):
        assert bytes(entry.bytes) == thinker.tokenizer.token_bytes(token.token_id)
        assert entry.logprob == pytest.approx(token.logprob, abs=1e-4)
        tops = [bytes(top.bytes) for top in entry.top_logprobs]
        assert tops == [thinker.tokenizer.token_bytes(i) for i, _ in token.top]


@pytest.mark.parametrize("question, tools", [(PUZZLE, []), (ASKED, TOOLS)])
def test_logprobs_are_those_of_the_text_alone(
    thinker_url: str, question: str, tools: list[Any]
) -> None:
    got = post(
        thinker_url,
        input=question,
        tools=tools,
        temperature=0,
        include=["message.output_text.logprobs"],
    ).json()
    (message,) = [item for item in got["output"] if item["type"] == "message"]
    (part,) = message["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in part["logprobs"]).strip() == (
        part["text"].strip().encode()
    )
    strict.response(got)


def test_what_was_asked_is_repeated(thinker_url: str) -> None:
    asked: dict[str, Any] = {
        "model": "thinker",
        "instructions": "Be kind.",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 64,
        "max_tool_calls": 3,
        "metadata": {"run": "7"},
        "tools": TOOLS,
        "tool_choice": {"type": "function", "name": "weather"},
        "parallel_tool_calls": False,
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "truncation": "disabled",
        "store": False,
        "seed": 5,
        "background": False,
    }
    response = post(thinker_url, input=GREETING, **asked)
    got = response.json()
    assert {name: got[name] for name in asked} == asked
    assert "x-gristmill-warning" not in response.headers
    strict.response(got)
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form = {"type": "json_schema", "name": "a", "schema": schema, "strict": True}
    got = post(
        thinker_url,
        input=GREETING,
        text={"format": form, "verbosity": "medium"},
        reasoning={"effort": "low", "summary": "auto"},
    ).json()
    assert got["text"]["format"] == form
    assert got["reasoning"] == {"effort": "low", "summary": None}, "none was written"
    assert got["store"] is True, "the default where there is a store"
    strict.response(got)


def test_seeds_reproduce_and_an_absent_one_is_told(thinker_url: str) -> None:
    def create(**more: Any) -> dict[str, Any]:
        return post(thinker_url, input=ASKED, temperature=2, max_output_tokens=30, **more).json()

    first = create()
    again = create(seed=first["seed"])
    assert strict.without_ids(again["output"]) == strict.without_ids(first["output"])
    assert strict.without_ids(create()["output"]) != strict.without_ids(first["output"])


USER = {"role": "user", "content": "x"}
SCHEMA = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
    ({"input": [USER, {"role": "king", "content": "x"}]}, "input[1].role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
    ({"input": [USER, {"type": "item_reference", "id": "msg_1"}]}, "input[1]"),
    ({"input": [USER, {"type": "computer_call"}]}, "input[1]"),
    ({"input": [USER, 7]}, "input[1]"),
    ({"input": [USER, {"type": ["message"]}]}, "input[1]"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    (
        {"input": [USER, {"type": "function_call_output", "call_id": "c", "output": "x"}]},
        "input[1].call_id",
    ),
    (
        {"input": [USER, {"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
        "input[1].encrypted_content",
    ),
    ({"temperature": 3}, "temperature"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 100_000}, "max_output_tokens"),
    ({"include": ["reasoning.encrypted_content"]}, "include[0]"),
    ({"include": ["web_search_call.action.sources"]}, "include[0]"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}, "top_logprobs"),
    ({"truncation": "auto"}, "truncation"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options"),
    ({"n": 2}, "n"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"response_format": {"type": "text"}}, "response_format"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"reasoning": {"effort": "immense"}}, "reasoning.effort"),
    ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": SCHEMA}, "tools": TOOLS}, "text.format"),
    ({"text": {"format": SCHEMA}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": "no spaces"}]}, "tools[0].name"),
    ({"tools": [WEATHER | {"defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tools": [WEATHER, WEATHER]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
    (
        {
            "tools": TOOLS,
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "f"}],
            },
        },
        "tool_choice.tools",
    ),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {"a": "x" * 513}}, "metadata.a"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"background": True, "stream": True}, "background"),
    ({"background": True, "store": False}, "background"),
    ({"input": "\ud800"}, "input"),
    ({"instructions": "\ud800"}, "instructions"),
    ({"tools": [WEATHER | {"parameters": {"const": "\udfff"}}]}, "tools[0].parameters.const"),
]  # fmt: skip


@pytest.mark.parametrize(
    "wrong, param", REFUSED, ids=[f"{i}-{p}" for i, (_, p) in enumerate(REFUSED)]
)
def test_what_is_refused_names_the_field(
    thinker_url: str, wrong: dict[str, Any], param: str
) -> None:
    body = wrong if not wrong or "input" in wrong else {"input": GREETING, **wrong}
    raw = json.dumps(body)
    got = HTTP.post(f"{thinker_url}/v1/responses", content=raw)
    error = got.json()["error"]
    assert (got.status_code, error["param"]) == (400, param), error
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(param)
    assert "MESSAGE" not in error["message"] and "CALL" not in error["message"]


def test_a_number_that_json_cannot_hold(thinker_url: str) -> None:
    raw = json.dumps({"input": "x", "tools": TOOLS}).replace(
        '"additionalProperties"', '"maximum": 1e999, "x"'
    )
    got = HTTP.post(f"{thinker_url}/v1/responses", content=raw)
    assert (got.status_code, got.json()["error"]["param"]) == (400, "tools")


def test_what_does_not_fit_is_refused_with_both_counts(thinker_url: str, thinker: Engine) -> None:
    text = "x y z " * 2000
    got = post(thinker_url, input=text)
    error = got.json()["error"]
    assert (got.status_code, error["param"]) == (400, "input")
    assert error["code"] == "context_length_exceeded"
    tokens = len(thinker.tokenizer.chat_ids([{"role": "user", "content": text}]))
    assert str(tokens) in error["message"] and str(thinker.context) in error["message"]


def test_fields_that_nobody_knows_are_named(thinker_url: str) -> None:
    got = post(thinker_url, input=GREETING, temperature=0, frobnicate=1)
    assert got.status_code == 200
    assert "frobnicate" in got.headers["x-gristmill-warning"]


def test_an_unknown_model(thinker_url: str) -> None:
    got = post(thinker_url, input=GREETING, model="nobody")
    assert (got.status_code, got.json()["error"]["code"]) == (404, "model_not_found")
