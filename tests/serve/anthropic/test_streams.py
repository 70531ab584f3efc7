"""Streams: events as the SDK declares them, in the order of the API, and the same answer as the whole one."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from gristmill import serve
from gristmill.engine import Engine
from tests.serve.anthropic import strict
from tests.serve.anthropic.asking import (
    FORCED,
    GREEDY,
    HTTP,
    TOOL,
    post,
    streamed,
    user,
)
from tests.serve.openai.thinker import (
    ASKED,
    GREETING,
)
from tests.tiny_model import random_model

# The order in which the API itself tells a text and then a call, without the deltas after a block's first.
TEXT_AND_CALL = [
    "message_start",
    "content_block_start text",
    "content_block_delta text_delta",
    "content_block_stop",
    "content_block_start tool_use",
    "content_block_delta input_json_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
]


def test_the_order_of_events_is_the_apis(url: str) -> None:
    found = streamed(url, user(ASKED), tools=[TOOL])
    order: list[str] = []
    for event in found:
        part = event.get("content_block") or event.get("delta") or {}
        name = f"{event['type']} {part.get('type', '')}".strip()
        if order[-1:] != [name]:
            order.append(name)
    thought = [
        "content_block_start thinking",
        "content_block_delta thinking_delta",
        "content_block_delta signature_delta",
        "content_block_stop",
    ]
    assert order == [TEXT_AND_CALL[0], *thought, *TEXT_AND_CALL[1:]]


ASKS: list[dict[str, Any]] = [
    {"messages": [user(ASKED)], "tools": [TOOL], "max_tokens": 100},
    {"messages": [user("Oslo?")], "tools": [TOOL], "max_tokens": 60},
    {"messages": [user("think")], "max_tokens": 40},
    {
        "messages": [user(GREETING)],
        "model": "plain",
        "max_tokens": 50,
        "stop_sequences": ["e", "("],
    },
    {"messages": [user(GREETING)], **FORCED},
]


@pytest.mark.parametrize("body", ASKS)
def test_the_sdks_stream_is_the_whole_answer(sdk: Anthropic, url: str, body: Any) -> None:
    for seed in range(6):
        asked = {"model": "thinker", **body}
        whole = strict.message(post(url, **asked, seed=seed).json())
        with sdk.messages.stream(**asked, extra_body={"seed": seed}) as stream:
            final = stream.get_final_message()
        assert strict.without_ids(final.model_dump()) == strict.without_ids(whole.model_dump())
        rest = {name: value for name, value in asked.items() if name != "messages"}
        streamed(url, *asked["messages"], **rest, temperature=1, seed=seed)


def test_asynchronously(url: str) -> None:
    async def run() -> tuple[Any, Any, int]:
        asked: Any = {
            "model": "thinker",
            "max_tokens": 400,
            "messages": [user(ASKED)],
            "tools": [TOOL],
        }
        async with anthropic.AsyncAnthropic(base_url=url, auth_token="none") as other:
            whole = await other.messages.create(**asked, extra_body=GREEDY)
            async with other.messages.stream(**asked, extra_body=GREEDY) as stream:
                final = await stream.get_final_message()
            counted = await other.messages.count_tokens(
                model="thinker", messages=asked["messages"], tools=[TOOL]
            )
            return whole, final, counted.input_tokens

    whole, final, counted = asyncio.run(run())
    assert strict.without_ids(whole.model_dump()) == strict.without_ids(final.model_dump())
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


def test_an_error_after_the_first_byte_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(random_model(max_seq_len=512))
    step, taken = engine.step, []

    def failing() -> Any:
        taken.append(1)
        if len(taken) > 4:
            raise RuntimeError("the step broke")
        return step()

    monkeypatch.setattr(engine, "step", failing)
    with serve.served(serve.build_app([serve.Served("plain", engine)])) as url:
        body: Any = {"model": "plain", "max_tokens": 50, "messages": [user("x")]}
        text = HTTP.post(f"{url}/v1/messages", json={**body, "stream": True}).text
        *before, last = text.split("\n\n")[:-1]
        assert before and strict.events("\n\n".join([*before, ""]))[0]["type"] == "message_start"
        assert last.startswith("event: error\ndata: ")
        taken.clear()
        with (
            Anthropic(base_url=url, api_key="none", max_retries=0) as client,
            pytest.raises(anthropic.APIStatusError, match="see its log") as raised,
            client.messages.stream(**body) as stream,
        ):
            stream.get_final_message()
        assert raised.value.body == {
            "type": "error",
            "error": {"type": "api_error", "message": "the server failed; see its log"},
        }
        taken.clear()
        whole = HTTP.post(f"{url}/v1/messages", json=body)
        assert whole.status_code == 500 and whole.json()["error"]["type"] == "api_error"


def test_a_reader_is_told_that_it_still_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(random_model())
    step, heard = engine.step, threading.Semaphore(0)

    def step_when_heard() -> Any:
        assert heard.acquire(timeout=60)  # a step for every ping that reached the reader
        return step()

    monkeypatch.setattr("gristmill.serve.running.PATIENCE", 0.02)
    monkeypatch.setattr(engine, "step", step_when_heard)
    text = ""
    with serve.served(serve.build_app([serve.Served("plain", engine)])) as url:
        body: Any = {"max_tokens": 3, "messages": [user("x")], "stream": True}
        with HTTP.stream("POST", f"{url}/v1/messages", json=body) as response:
            for part in response.iter_text():
                text += part
                for _ in range(part.count("event: ping\n")):
                    heard.release()
    strict.in_order(strict.events(text))
    first, second, *rest = text.split("\n\n")
    assert first.startswith("event: message_start\n")
    assert second == 'event: ping\ndata: {"type": "ping"}'
    assert rest.count(second) >= 2
