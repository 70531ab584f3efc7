"""Streams of /v1/responses: every event as OpenAI's SDK declares it, and in the end the same as the whole answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from gristmill import serve
from gristmill.engine import Engine
from gristmill.formats import Model
from gristmill.model import Transformer
from gristmill.serve.store import Store
from tests.serve.openai import strict
from tests.serve.openai.thinker import (
    ARGUMENTS,
    ASKED,
    GREETING,
    PUZZLE,
    PUZZLING,
    SAID,
    THOUGHT,
    WEATHER,
)
from tests.tiny_model import random_model

HTTP = httpx.Client(timeout=60)
LOGPROBS = ["message.output_text.logprobs"]


def events_of(url: str, **body: Any) -> list[dict[str, Any]]:
    """The events as they came, each with the name of its data."""
    with HTTP.stream("POST", f"{url}/v1/responses", json=body | {"stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(_read(response.iter_lines()))


def _read(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    name = None
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            assert event["type"] == name
            yield event
        else:
            assert line in ("", ": ping"), line


ITEM = "response.output_item."
PART = "response.content_part."


def expected_order(output: list[dict[str, Any]]) -> list[str]:
    """The types of the events that tell these items, a run of deltas counted once."""
    order = ["response.created", "response.in_progress"]
    for item in output:
        if item["type"] == "function_call":
            told = "response.function_call_arguments"
            inside = [f"{told}.delta"] * bool(item["arguments"]) + [f"{told}.done"]
        else:
            (part,) = item["content"]
            told = f"response.{part['type']}"
            deltas = [f"{told}.delta"] * bool(part["text"])
            inside = [f"{PART}added", *deltas, f"{told}.done", f"{PART}done"]
        order += [f"{ITEM}added", *inside, f"{ITEM}done"]
    return order


def check(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The final response, after everything that must hold of any stream."""
    for event in events:
        strict.event(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    final = events[-1]["response"]
    assert events[-1]["type"] == f"response.{final['status']}"
    for event in events[:2]:
        assert event["response"]["status"] == "in_progress" and event["response"]["output"] == []
    types = [event["type"] for event in events]
    runs = [kind for i, kind in enumerate(types) if not i or kind != types[i - 1]]
    assert runs == [*expected_order(final["output"]), events[-1]["type"]]
    said: Counter[int] = Counter()
    text = [""] * len(final["output"])
    for event in events:
        kind = event["type"]
        if kind.endswith(".delta"):
            text[event["output_index"]] += event["delta"]
        elif kind == f"{ITEM}added":
            assert event["item"]["status"] == "in_progress"
        elif kind == f"{ITEM}done":
            assert event["item"] == final["output"][event["output_index"]]
            said[event["output_index"]] += 1
        if "item_id" in event:
            assert event["item_id"] == final["output"][event["output_index"]]["id"]
    assert said == Counter(range(len(final["output"])))
    assert text == [
        item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        for item in final["output"]
    ]
    return final


def test_thought_text_and_call(thinker_url: str) -> None:
    events = events_of(thinker_url, input=ASKED, tools=[WEATHER], temperature=0)
    thought, message, call = check(events)["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": THOUGHT}]
    assert message["content"][0]["text"] == SAID
    assert (call["name"], json.loads(call["arguments"])) == ("weather", json.loads(ARGUMENTS))
    counted = Counter(event["type"] for event in events)
    assert counted["response.reasoning_text.delta"] > 3, "it came in pieces"


@pytest.mark.parametrize(
    "asked",
    [
        {"input": ASKED, "tools": [WEATHER | {"strict": False}]},
        {"input": PUZZLE, "include": LOGPROBS, "top_logprobs": 2},
        {"input": GREETING, "include": LOGPROBS},
        {"model": "plain", "input": GREETING, "tools": [WEATHER], "tool_choice": "required"},
    ],
    ids=["calls", "thoughts", "text", "required"],
)
def test_the_end_of_a_stream_is_the_whole_answer(thinker_url: str, asked: dict[str, Any]) -> None:
    kinds: Counter[str] = Counter()
    for seed in range(12):
        body = asked | {"seed": seed, "temperature": 0.3 + seed / 8, "max_output_tokens": 50}
        whole = HTTP.post(f"{thinker_url}/v1/responses", json=body).json()
        events = events_of(thinker_url, **body)
        final = check(events)
        assert strict.without_ids(final) == strict.without_ids(whole)
        deltas = [e for e in events if e["type"] == "response.output_text.delta"]
        parts = [i["content"][0] for i in final["output"] if i["type"] == "message"]
        streamed = [entry for event in deltas for entry in event["logprobs"]]
        assert streamed == [entry for part in parts for entry in part["logprobs"]]
        kinds.update(item["type"] for item in final["output"])
        kinds[final["status"]] += 1
    assert len(kinds) > 1


def test_the_sdk_follows(sdk: OpenAI, thinker_url: str) -> None:
    asked: Any = {"model": "thinker", "input": ASKED, "tools": [WEATHER], "temperature": 0}
    with sdk.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == SAID and kinds[-1] == "response.completed"
    call = final.output[-1]
    assert call.type == "function_call" and call.parsed_arguments == json.loads(ARGUMENTS)

    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{thinker_url}/v1", api_key="none") as other:
            stream = await other.responses.create(
                model="thinker", input=PUZZLE, temperature=0, stream=True
            )
            deltas = [e.delta async for e in stream if e.type == "response.reasoning_text.delta"]
            return "".join(deltas)

    assert asyncio.run(ask()) == PUZZLING


def test_two_clients_at_once_get_their_own(thinker_url: str) -> None:
    asked: list[Any] = [
        {"input": PUZZLE, "temperature": 0},
        {"input": GREETING, "temperature": 0},
        {"input": ASKED, "tools": [WEATHER], "temperature": 0},
    ]
    alone = [HTTP.post(f"{thinker_url}/v1/responses", json=body).json() for body in asked]

    async def ask(client: openai.AsyncOpenAI, body: Any) -> Any:
        stream = await client.responses.create(model="thinker", stream=True, **body)
        return [event async for event in stream][-1]

    async def all_at_once() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{thinker_url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, body) for body in asked * 4))

    for got, expected in zip(asyncio.run(all_at_once()), alone * 4, strict=True):
        final = got.response.to_dict(mode="python")
        assert strict.without_ids(final["output"]) == strict.without_ids(expected["output"])


class Fragile(Transformer):
    """Breaks on one token id, as a bug or a full memory would."""

    def hidden(self, tokens_BT, **kwargs):
        if bool((tokens_BT == 90).any()):
            raise MemoryError("no room for token 90")
        return super().hidden(tokens_BT, **kwargs)


def test_a_failure_on_the_way_ends_the_stream_and_is_kept() -> None:
    sound = random_model()
    network = Fragile(sound.config)
    network.load_state_dict(sound.network.state_dict())
    asked = {"input": "x", "logit_bias": {"90": 100}, "max_output_tokens": 20, "temperature": 0}
    engine = Engine(Model(network, sound.tokenizer))
    with (
        Store() as store,
        serve.served(serve.build_app([serve.Served("tiny", engine)], store=store)) as url,
    ):
        events = events_of(url, **asked)
        final = check(events)
        assert final["status"] == "failed" and final["error"]["code"] == "server_error"
        assert "token 90" not in json.dumps(events)
        kept = HTTP.get(f"{url}/v1/responses/{final['id']}").json()
        assert kept == final
        later = HTTP.post(
            f"{url}/v1/responses", json={"input": "y", "previous_response_id": final["id"]}
        )
        assert later.status_code == 400 and "failed" in later.json()["error"]["message"]
        whole = HTTP.post(f"{url}/v1/responses", json=asked)
        assert whole.status_code == 500 and whole.json()["error"]["type"] == "server_error"


def test_an_answer_ends_when_its_client_leaves() -> None:
    model = random_model(max_seq_len=100_000)
    model.tokenizer.stop_ids = frozenset()  # nothing it says ends it
    with (
        Store() as store,
        serve.served(serve.build_app([serve.Served("tiny", Engine(model))], store=store)) as url,
    ):
        body = {"input": "x", "stream": True}
        with HTTP.stream("POST", f"{url}/v1/responses", json=body) as response:
            first = next(_read(response.iter_lines()))
        deadline = time.monotonic() + 30
        while HTTP.get(f"{url}/health").json()["requests_under_way"]:
            assert time.monotonic() < deadline, "not ended"
            time.sleep(0.05)
        gone = HTTP.get(f"{url}/v1/responses/{first['response']['id']}")
        assert gone.status_code == 404, "what nobody waited for is not kept"
