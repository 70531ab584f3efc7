"""Calls of tools, and what they gave, by Anthropic's own SDK against what the model learned and chat."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic import Anthropic

from tests.serve.anthropic import strict
from tests.serve.anthropic.asking import (
    FORCED,
    GREEDY,
    HTTP,
    TOOL,
    ask,
    assistant,
    post,
    user,
)
from tests.serve.openai.thinker import (
    ARGUMENTS,
    ASKED,
    GREETING,
    PUZZLE,
    RESULT,
    SAID,
    THOUGHT,
    TOLD,
    WEATHER,
)


def test_the_tool_loop(sdk: Anthropic, url: str) -> None:
    asked: Any = {
        "model": "thinker",
        "max_tokens": 400,
        "tools": [TOOL],
        "extra_body": GREEDY,
    }
    with sdk.messages.stream(messages=[user(ASKED)], **asked) as stream:  # type: ignore[list-item]
        first = stream.get_final_message()
    thought, text, call = first.content
    assert thought.type == "thinking" and thought.thinking == THOUGHT
    assert text.type == "text" and text.text == SAID
    assert call.type == "tool_use" and call.name == "weather"
    assert call.input == json.loads(ARGUMENTS)
    assert first.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
    messages: Any = [
        user(ASKED),
        {"role": "assistant", "content": first.content},
        user([{"type": "text", "text": ""}, result]),
    ]
    second = sdk.messages.create(messages=messages, **asked)
    assert [block.to_dict() for block in second.content] == [{"type": "text", "text": TOLD}]
    assert second.stop_reason == "end_turn"
    # As many tokens as chat has for the same conversation.
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    chat = HTTP.post(
        f"{url}/v1/chat/completions",
        json={
            "model": "thinker",
            "max_tokens": 1,
            "tools": [{"type": "function", "function": {**function, "strict": False}}],
            "messages": [
                user(ASKED),
                {
                    **assistant(SAID),
                    "reasoning_content": THOUGHT,
                    "tool_calls": [
                        {
                            "id": call.id,
                            "type": "function",
                            "function": {"name": "weather", "arguments": ARGUMENTS},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": call.id, "content": RESULT},
            ],
        },
    ).json()
    used = second.usage
    prompt = used.input_tokens + (used.cache_read_input_tokens or 0)
    assert prompt == chat["usage"]["prompt_tokens"]


def test_a_limit_inside_a_call_leaves_what_can_be_read_of_it(url: str) -> None:
    whole = ask(url, user(ASKED), tools=[TOOL])["usage"]["output_tokens"]
    seen = set()
    for limit in range(whole - 16, whole):
        got = ask(url, user(ASKED), tools=[TOOL], max_tokens=limit)
        strict.message(got)
        assert got["stop_reason"] == "max_tokens"
        seen |= {json.dumps(b["input"]) for b in got["content"] if b["type"] == "tool_use"}
    assert seen == {"{}", ARGUMENTS}


@pytest.mark.parametrize("choice", ["any", "tool"])
def test_calls_can_be_forced(url: str, choice: str) -> None:
    tool_choice = {"type": choice, "disable_parallel_tool_use": True}
    if choice == "tool":
        tool_choice["name"] = "weather"
    for question in (ASKED, GREETING, PUZZLE):
        got = ask(url, user(question), **{**FORCED, "tool_choice": tool_choice})
        calls = [block for block in got["content"] if block["type"] == "tool_use"]
        assert len(calls) == 1
        assert choice == "any" or calls[0]["name"] == "weather"
        if got["stop_reason"] == "tool_use" and calls[0]["name"] == "weather":
            assert set(calls[0]["input"]) == {"city"}


def test_no_calls_without_tools(url: str) -> None:
    got = ask(url, user(ASKED), tools=[TOOL], tool_choice={"type": "none"})
    assert all(block["type"] != "tool_use" for block in got["content"])
    assert got["stop_reason"] != "tool_use"


def test_at_most_one_call_may_come(url: str) -> None:
    once = {"type": "auto", "disable_parallel_tool_use": True}
    for seed in range(4):
        got = ask(url, user(ASKED), tools=[TOOL], tool_choice=once, temperature=1, seed=seed)
        calls = [block for block in got["content"] if block["type"] == "tool_use"]
        assert [call["name"] for call in calls] == ["weather"]
        assert got["stop_reason"] == "tool_use"


def test_roles_and_results_are_those_of_chat(url: str) -> None:
    """What the template is given, by the tokens that chat counts for the same."""
    use = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
    result = {
        "type": "tool_result",
        "tool_use_id": "toolu_1",
        "content": [{"type": "text", "text": "no "}, {"type": "text", "text": "net"}],
        "is_error": True,
    }
    ours = [
        user("a"),
        assistant([{"type": "thinking", "thinking": "hm", "signature": "x"}, use]),
        user([result, {"type": "text", "text": "b"}]),
    ]
    call = {
        "id": "toolu_1",
        "type": "function",
        "function": {"name": "weather", "arguments": ARGUMENTS},
    }
    chats = [
        {"role": "system", "content": "Be kind."},
        user("a"),
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "Error: no net"},
        user("b"),
    ]
    counted = post(url, "/count_tokens", messages=ours, system="Be kind.").json()["input_tokens"]
    theirs = HTTP.post(f"{url}/tokenize", json={"model": "thinker", "messages": chats}).json()
    assert counted == theirs["count"]
