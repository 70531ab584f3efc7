"""Calls of tools by OpenAI's SDK: its types, its accumulators; the arguments are what the tools' schemas allow."""

from __future__ import annotations

import json
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion, ParsedChatCompletion
from pydantic import BaseModel

from tests.serve.clients.strict import accumulated, checked
from tests.serve.openai.thinker import ARGUMENTS, ASKED, RESULT, SAID, THOUGHT, TOLD


def tool(name: str, **properties: Any) -> Any:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


WEATHER = tool("weather", city={"enum": ["Oslo", "Bergen"]})
SWITCH = tool("switch", on={"type": "boolean"}, lamp={"enum": ["left", "right"]})
SCHEMAS = {t["function"]["name"]: t["function"]["parameters"] for t in (WEATHER, SWITCH)}
ASK: Any = {"model": "thinker", "messages": [{"role": "user", "content": ASKED}], "temperature": 0}
RANDOM: Any = {
    "model": "plain",
    "messages": [{"role": "user", "content": ASKED}],
    "max_completion_tokens": 300,
}


class Switch(BaseModel):
    """Turn a lamp on or off."""

    on: bool
    lamp: Literal["left", "right"]


def calls(got: ChatCompletion | ParsedChatCompletion) -> list[tuple[str, str]]:
    made = got.choices[0].message.tool_calls or []
    assert len({call.id for call in made}) == len(made)
    return [(call.function.name, call.function.arguments) for call in made]  # type: ignore[union-attr]


def test_a_model_may_call_and_go_on_with_the_result(sdk: OpenAI) -> None:
    whole = checked(sdk.chat.completions.create(**ASK, tools=[WEATHER]))
    message = whole.choices[0].message
    assert whole.choices[0].finish_reason == "tool_calls"
    assert (message.reasoning_content, message.content) == (THOUGHT, SAID)  # type: ignore[attr-defined]
    assert calls(whole) == [("weather", ARGUMENTS)]
    again = accumulated(sdk.chat.completions.stream(**ASK, tools=[WEATHER]))
    assert calls(again) == calls(whole)
    assert again.choices[0].finish_reason == "tool_calls"
    assert again.choices[0].message.content == SAID
    (call,) = message.tool_calls or []
    told = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    turns: Any = [*ASK["messages"], message, told]
    last = sdk.chat.completions.create(**{**ASK, "messages": turns}, tools=[WEATHER])
    assert (last.choices[0].message.content, last.choices[0].finish_reason) == (TOLD, "stop")


def test_none_calls_none(sdk: OpenAI) -> None:
    got = checked(sdk.chat.completions.create(**ASK, tools=[WEATHER], tool_choice="none"))
    assert calls(got) == [] and got.choices[0].finish_reason == "stop"
    bare = sdk.chat.completions.create(**ASK)
    assert got.choices[0].message.content == bare.choices[0].message.content


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "switch"}),
        ({"type": "function", "function": {"name": "switch"}}, {"switch"}),
    ],
)
def test_a_call_can_be_forced_of_any_model(
    sdk: OpenAI, seed: int, choice: Any, names: set[str]
) -> None:
    asked = {**RANDOM, "seed": seed, "tools": [WEATHER, SWITCH], "tool_choice": choice}
    whole = checked(sdk.chat.completions.create(**asked, parallel_tool_calls=False))
    ((name, arguments),) = calls(whole)
    assert whole.choices[0].finish_reason == "tool_calls"
    assert name in names and whole.choices[0].message.content is None
    jsonschema.validate(json.loads(arguments), SCHEMAS[name])
    assert calls(accumulated(sdk.chat.completions.stream(**asked, parallel_tool_calls=False))) == [
        (name, arguments)
    ]


def test_several_at_once(sdk: OpenAI) -> None:
    """A random model stops when it likes; over some seeds it makes more than one call."""
    counts = []
    for seed in range(12):
        asked = {**RANDOM, "seed": seed, "tools": [WEATHER, SWITCH], "tool_choice": "required"}
        whole = checked(sdk.chat.completions.create(**asked))
        made = calls(whole)
        assert made and calls(accumulated(sdk.chat.completions.stream(**asked))) == made
        if whole.choices[0].finish_reason == "tool_calls":
            for name, arguments in made:
                jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        counts.append(len(made))
    assert max(counts) > 1


@pytest.mark.parametrize("seed", range(3))
def test_parsed_arguments_are_the_pydantic_models(sdk: OpenAI, seed: int) -> None:
    asked = {
        **RANDOM,
        "seed": seed,
        "tools": [openai.pydantic_function_tool(Switch)],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    (call,) = sdk.chat.completions.parse(**asked).choices[0].message.tool_calls or []
    parsed = call.function.parsed_arguments
    assert isinstance(parsed, Switch)
    with sdk.chat.completions.stream(**asked) as stream:
        done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [parsed]


def test_a_call_cut_short_says_so(sdk: OpenAI) -> None:
    asked = {**RANDOM, "seed": 1, "tools": [SWITCH], "tool_choice": "required"}
    whole = sdk.chat.completions.create(**asked)
    ((_, arguments), *_) = calls(whole)
    for limit in range(1, 60, 7):
        cut = checked(sdk.chat.completions.create(**{**asked, "max_completion_tokens": limit}))
        if cut.usage and cut.usage.completion_tokens < limit:
            break
        assert cut.choices[0].finish_reason == "length"
        if made := calls(cut):
            assert arguments.startswith(made[0][1]) or made[0][1] == arguments
