"""Streams joined, against whole answers, over HTTP: of a random model, and of one that recites thoughts and calls."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gristmill import serve
from tests.serve.clients.scripted import Scripted
from tests.tiny_model import PROMPTS

HTTP = httpx.Client(timeout=120)
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("weather", "switch_2")
]
THOUGHTS = [
    "",
    "Hm.",
    "A < b, and <thin is no tag; 🙂 naïve\n\nSecond line",
    "<tool_call> is a tag",
]
SAYINGS = [
    "",
    "Oslo.",
    "x <tool_cal",
    'if a <b: {"name": 1} ünïcode 🙂🙂',
    "```json\n{}\n```\n- one",
]
ARGUMENTS = [
    "{}",
    '{"city": "Oslo"}',
    '{"a": [1, {"b": "}"}], "c": "quoted \\" and \\\\ 🙂 </tool_call"}',
    '{"n": -1.5e3, "t": true, "z": null}',
]


@pytest.fixture(scope="module")
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def scripted_url(scripted: Scripted) -> Iterator[str]:
    with serve.served(serve.build_app([serve.Served("scripted", scripted.engine)])) as url:
        yield url


def whole(url: str, body: dict[str, Any]) -> dict[str, Any]:
    got = HTTP.post(f"{url}/v1/chat/completions", json=body)
    assert got.status_code == 200, got.text
    return got.json()


def joined(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """A whole answer put together from a stream's deltas by what OpenAI's documents say of them."""
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    with HTTP.stream("POST", f"{url}/v1/chat/completions", json=asked) as response:
        assert response.status_code == 200
        lines = [line for line in response.iter_lines() if line and not line.startswith(":")]
    assert lines.pop() == "data: [DONE]"
    for chunk in (json.loads(line.removeprefix("data: ")) for line in lines):
        assert usage is None, "the usage is the last chunk's"
        usage = chunk["usage"]
        assert bool(chunk["choices"]) == (usage is None)
        for part in chunk["choices"]:
            take(choices, part)
    return {"choices": [choices[i] for i in sorted(choices)], "usage": usage}


def take(choices: dict[int, dict[str, Any]], part: dict[str, Any]) -> None:
    delta = part["delta"]
    if part["index"] not in choices:
        assert delta == {"role": "assistant", "content": ""}
        choices[part["index"]] = {
            "index": part["index"],
            "message": {"role": "assistant", "content": "", "refusal": None},
            "finish_reason": None,
            "logprobs": None,
        }
        return
    choice = choices[part["index"]]
    message = choice["message"]
    assert choice["finish_reason"] is None, "nothing comes after the end"
    choice["finish_reason"] = part["finish_reason"]
    if part["logprobs"] is not None:
        choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
        choice["logprobs"]["content"] += part["logprobs"]["content"]
    for name in ("content", "reasoning_content"):
        if name in delta:
            assert delta[name] or part["logprobs"]
            message[name] = message.get(name, "") + delta[name]
    for call in delta.get("tool_calls", ()):
        calls = message.setdefault("tool_calls", [])
        if call["index"] == len(calls):
            assert call["function"]["arguments"] == "" and call["id"] and call["type"] == "function"
            calls.append({k: v for k, v in call.items() if k != "index"})
        else:
            assert call["index"] == len(calls) - 1 and call.keys() == {"index", "function"}
            calls[-1]["function"]["arguments"] += call["function"]["arguments"]


def compared(answer: dict[str, Any]) -> dict[str, Any]:
    """Without ids, which are new each time, and what depends on the cache; null content is the same as none."""
    choices = json.loads(json.dumps(answer["choices"]))
    for choice in choices:
        choice["message"]["content"] = choice["message"]["content"] or ""
        for call in choice["message"].get("tool_calls", ()):
            assert call.pop("id")
    usage = {k: v for k, v in answer["usage"].items() if k != "prompt_tokens_details"}
    return {"choices": choices, "usage": usage}


@pytest.mark.parametrize("seed", range(25))
def test_random_answers(two_url: str, seed: int) -> None:
    draw = random.Random(seed)
    body: dict[str, Any] = {
        "model": draw.choice(["plain", "plain", "thinker"]),
        "messages": [{"role": "user", "content": draw.choice(PROMPTS)}],
        "seed": seed,
        "temperature": draw.choice([0, 1, 2]),
        "n": draw.choice([1, 1, 3]),
        "max_completion_tokens": draw.choice([1, 7, 40]),
        "logprobs": draw.random() < 0.5,
        "stop": draw.choice([None, ["e"], ["the", " h", "\n"]]),
    }
    if draw.random() < 0.5:
        body |= {"tools": TOOLS, "tool_choice": draw.choice(["auto", "none", "required"])}
    assert compared(joined(two_url, body)) == compared(whole(two_url, body))


@pytest.mark.parametrize("seed", range(40))
def test_recited_answers(scripted: Scripted, scripted_url: str, seed: int) -> None:
    """However the text was cut into tokens, the answer is what was written, whole and streamed."""
    draw = random.Random(seed)
    thought = draw.choice(THOUGHTS)
    calls = [
        (draw.choice(["weather", "switch_2"]), draw.choice(ARGUMENTS))
        for _ in range(draw.randint(0, 3))
    ]
    said = draw.choice(SAYINGS) or ("" if thought or calls else "Yes.")
    text = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    text += said
    for name, arguments in calls:
        text += f'\n<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    number = scripted.add(text, draw)
    body = {
        "messages": [{"role": "user", "content": f"script {number}"}],
        "tools": TOOLS,
        "logprobs": draw.random() < 0.3,
    }
    got = whole(scripted_url, body)
    (choice,) = got["choices"]
    assert choice["message"].get("reasoning_content", "") == thought
    assert choice["message"]["content"] == (said or (None if calls else ""))
    made = [call["function"] for call in choice["message"].get("tool_calls", ())]
    assert [(c["name"], c["arguments"]) for c in made] == calls
    assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    assert got["usage"]["completion_tokens"] == len(scripted.scripts[number]) + 1
    assert compared(joined(scripted_url, body)) == compared(got)
    if choice["logprobs"]:
        raw = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
        assert raw.decode() == text

    cut = {**body, "max_completion_tokens": draw.randint(1, len(scripted.scripts[number]))}
    short = whole(scripted_url, cut)
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == cut["max_completion_tokens"]
    assert compared(joined(scripted_url, cut)) == compared(short)
