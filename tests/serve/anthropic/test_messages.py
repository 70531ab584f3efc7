"""POST /v1/messages, driven by Anthropic's own SDK, against what the model learned, the engine and chat."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
import pytest
from anthropic import Anthropic
from pydantic import BaseModel, ConfigDict

from gristmill.engine import Engine
from gristmill.lm import Request, SamplingParams
from tests.serve.anthropic import strict
from tests.serve.anthropic.asking import (
    GREEDY,
    TOOL,
    ask,
    assistant,
    post,
    streamed,
    user,
)
from tests.serve.openai.thinker import (
    ANSWER,
    ASKED,
    GREETING,
    NEXT,
    PUZZLE,
    PUZZLING,
    SOLVED,
)


def test_text(sdk: Anthropic, url: str, thinker: Engine) -> None:
    asked: Any = {"model": "thinker", "max_tokens": 99, "messages": [user(GREETING)]}
    got = sdk.messages.create(**asked, extra_body=GREEDY)
    ids = thinker.tokenizer.chat_ids([user(GREETING)])
    (alone,) = thinker.generate([Request(token_ids=ids, params=SamplingParams(99, temperature=0))])
    assert [block.to_dict() for block in got.content] == [{"type": "text", "text": ANSWER}]
    assert alone.text == ANSWER
    assert (got.model, got.role, got.type) == ("thinker", "assistant", "message")
    assert (got.stop_reason, got.stop_sequence) == ("end_turn", None)
    used = got.usage
    assert used.input_tokens + (used.cache_read_input_tokens or 0) == len(ids)
    assert used.output_tokens == len(alone.token_ids)
    strict.message(ask(url, user(GREETING)))


def test_cached_tokens_are_not_input_tokens(url: str) -> None:
    system = "Many words, so that there is something to keep in the cache, block by block. " * 3
    total = post(url, "/count_tokens", messages=[user(PUZZLE)], system=system).json()
    for salt in range(2):
        used = ask(url, user(PUZZLE), system=system)["usage"]
        cached = used["cache_read_input_tokens"]
        assert used["input_tokens"] + cached == total["input_tokens"]
        assert used["cache_creation_input_tokens"] == 0
        assert (cached > 0) == (salt > 0)
    started = streamed(url, user(PUZZLE), system=system)[0]["message"]["usage"]
    assert started["cache_read_input_tokens"] == cached
    assert started["input_tokens"] == used["input_tokens"]


def test_a_thought_is_a_block_of_its_own(sdk: Anthropic, url: str) -> None:
    got = strict.message(ask(url, user(PUZZLE)))
    thought, text = got.content
    assert thought.type == "thinking" and thought.thinking == PUZZLING and thought.signature
    assert text.type == "text" and text.text == SOLVED
    details = got.usage.output_tokens_details
    assert details and 0 < details.thinking_tokens < got.usage.output_tokens
    back = [user(PUZZLE), {"role": got.role, "content": got.content}, user(NEXT)]
    again: Any = {"model": "thinker", "max_tokens": 40, "messages": back}
    assert sdk.messages.create(**again).stop_reason


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [user(GREETING)]},
        {"messages": [user(GREETING)], "system": [{"type": "text", "text": "Be kind."}]},
        {"messages": [user(GREETING), assistant("Good")]},
        {"messages": [user(ASKED)], "tools": [TOOL]},
        {"messages": [user(ASKED)], "tools": [TOOL], "tool_choice": {"type": "none"}},
        {
            "messages": [user(ASKED)],
            "tools": [TOOL],
            "model": "plain",
            "tool_choice": {"type": "tool", "name": "weather"},
        },
        {"messages": [user(PUZZLE)], "thinking": {"type": "adaptive"}},
    ],
)
def test_what_is_counted_is_what_is_charged(url: str, body: Any) -> None:
    counted = post(url, "/count_tokens", **body)
    assert set(counted.json()) == {"input_tokens"}
    used = post(url, max_tokens=8, **body).json()["usage"]
    charged = used["input_tokens"] + used["cache_read_input_tokens"]
    assert counted.json()["input_tokens"] == charged > 0


def test_stop_reasons(url: str) -> None:
    got = ask(url, user(GREETING), stop_sequences=["zzz", "to you"])
    assert (got["stop_reason"], got["stop_sequence"]) == ("stop_sequence", "to you")
    assert got["content"][0]["text"] == ANSWER[: ANSWER.index("to you")]
    end = streamed(url, user(GREETING), stop_sequences=["zzz", "to you"])[-2]
    assert end["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "to you"}
    got = ask(url, user(GREETING), max_tokens=2)
    assert (got["stop_reason"], got["stop_sequence"]) == ("max_tokens", None)
    assert got["usage"]["output_tokens"] == 2
    # More than the context holds may be asked for; what ends the answer then is named.
    got = ask(url, user(GREETING), max_tokens=32000)
    assert got["stop_reason"] == "end_turn"
    few, many = (
        post(url, "/count_tokens", model="plain", messages=[user("x " * n)]).json()["input_tokens"]
        for n in (100, 200)
    )
    long = "x " * (100 + (2030 - few) * 100 // (many - few))
    got = ask(url, user(long), model="plain", max_tokens=32000)
    used = got["usage"]
    assert got["stop_reason"] == "model_context_window_exceeded"
    assert sum(used[name] for name in used if name.endswith("put_tokens")) == 2048


def test_an_answer_that_was_begun_goes_on(url: str) -> None:
    begun = ANSWER[:8]
    got = ask(url, user(GREETING), assistant(begun))
    assert begun + got["content"][0]["text"] == ANSWER
    blocks = [{"type": "text", "text": begun}]
    again = ask(url, user(GREETING), assistant(blocks))
    assert again["content"] == got["content"]


class Weather(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sunny: bool
    city: Literal["Oslo", "Bergen"]


def test_a_schema_is_kept(sdk: Anthropic) -> None:
    asked: Any = {
        "model": "thinker",
        "max_tokens": 400,
        "messages": [user(PUZZLE)],
        "output_format": Weather,
        "extra_body": GREEDY,
    }
    whole = sdk.messages.parse(**asked)
    assert isinstance(whole.parsed_output, Weather)
    with sdk.messages.stream(**asked) as stream:
        assert stream.get_final_message().parsed_output == whole.parsed_output


REDACTED = {"type": "redacted_thinking", "data": "zz"}
DOCUMENT = {
    "type": "document",
    "title": "Of Oslo",
    "source": {"type": "text", "media_type": "text/plain", "data": "It rains."},
}


@pytest.mark.parametrize(
    "one, other",
    [
        ([user("a b")], [user([{"type": "text", "text": "a"}, {"type": "text", "text": " b"}])]),
        ([user("a\n\nb")], [user("a"), user("b")]),
        ([user("a\n\nb\n\nc")], [{"role": "ctx", "content": "a"}, {"role": "msg", "content": "b"}, user("c")]),
        ([user("a"), assistant("b\n\nc"), user("d")], [user("a"), assistant("b"), assistant("c"), user("d")]),
        (
            [user("a"), assistant("b"), user("c")],
            [user("a"), assistant([REDACTED, {"type": "text", "text": "b"}]), user("c")],
        ),
        ([user("<document>\nOf Oslo\nIt rains.\n</document>\na")], [user([DOCUMENT, {"type": "text", "text": "a"}])]),
    ],
)  # fmt: skip
def test_the_same_conversation_in_other_words(url: str, one: Any, other: Any) -> None:
    """Greedy, with the log of nothing else: the same prompt gives the same count and answer."""
    marked = json.loads(
        json.dumps(other).replace(
            '"text": "a"', '"text": "a", "cache_control": {"type": "ephemeral"}'
        )
    )
    counts = {
        post(url, "/count_tokens", messages=m).json()["input_tokens"] for m in (one, other, marked)
    }
    assert len(counts) == 1
    answers = [ask(url, *m, model="plain", max_tokens=12)["content"] for m in (one, other, marked)]
    assert answers[0] == answers[1] == answers[2]


def test_seeds_reproduce_and_an_absent_one_is_told(url: str) -> None:
    def create(**more: Any) -> httpx.Response:
        return post(url, messages=[user("x")], model="plain", max_tokens=30, **more)

    free = create()
    assert (
        create(seed=int(free.headers["x-gristmill-seed"])).json()["content"]
        == (free.json()["content"])
    )
    assert create().json()["content"] != free.json()["content"]


def test_sampling_is_the_engines(url: str, thinker: Engine) -> None:
    ids = thinker.tokenizer.chat_ids([user("think")])
    params = SamplingParams(20, temperature=0.9, top_k=30, top_p=0.97, seed=5)
    (alone,) = thinker.generate([Request(token_ids=ids, params=params)])
    got = ask(url, user("think"), max_tokens=20, temperature=0.9, top_k=30, top_p=0.97, seed=5)
    (block,) = got["content"]
    assert block.get("text", block.get("thinking")).strip() in alone.text
    assert got["usage"]["output_tokens"] == len(alone.token_ids)


def test_fields_without_effect_are_named(url: str) -> None:
    body: Any = {"max_tokens": 3, "messages": [user("x")]}
    clean = post(
        url,
        **body,
        metadata={"user_id": "u"},
        service_tier="auto",
        cache_control={"type": "ephemeral", "ttl": "1h"},
        output_config={"effort": "low"},
        speed="standard",
        mcp_servers=[],
    )
    assert clean.status_code == 200 and "x-gristmill-warning" not in clean.headers
    warned = post(url, **body, my_field=1).headers["x-gristmill-warning"]
    assert "my_field" in warned
    thinking = {"type": "enabled", "budget_tokens": 2}
    warned = post(url, **body, thinking=thinking).headers["x-gristmill-warning"]
    assert "thinking.budget_tokens" in warned


def test_thinking_is_the_templates_switch(url: str) -> None:
    asked: dict[str, Any] = {"model": "switched", "max_tokens": 9}
    on: list[dict[str, Any]] = [
        {},
        {"thinking": {"type": "adaptive"}},
        {"thinking": {"type": "enabled", "budget_tokens": 8}},
    ]
    off: dict[str, Any] = {"thinking": {"type": "disabled"}}

    def count(*messages: Any, **body: Any) -> int:
        got = post(url, "/count_tokens", model="switched", messages=list(messages), **body)
        return got.json()["input_tokens"]

    kinds = []
    for more in (*on, off):
        got = strict.message(post(url, **asked, messages=[user("x")], seed=1, **more).json())
        kinds.append({block.type for block in got.content})
    assert kinds == [{"thinking"}] * 3 + [{"text"}]
    counts = {count(user("x"), **more) for more in on}
    assert len(counts) == 1 and count(user("x"), **off) > max(counts)
    # An answer that was begun is no thought.
    got = strict.message(
        post(url, **asked, messages=[user("x"), assistant("return")], seed=1).json()
    )
    assert {block.type for block in got.content} == {"text"}
    assert count(user("x"), assistant("return")) > count(user("x"), **off)
