"""Responses that a server keeps: continued, listed, deleted, made in the background, and still there after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from gristmill import serve
from gristmill.engine import Engine
from gristmill.serve.store import Store
from tests.serve.openai import strict
from tests.serve.openai.thinker import ANSWER, ASKED, GREETING, LAST, NEXT, WEATHER
from tests.tiny_model import random_model

HTTP = httpx.Client(timeout=60)
Fields = dict[str, Any]


def post(url: str, **body: Any) -> Fields:
    response = HTTP.post(f"{url}/v1/responses", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def get(url: str, id: str, what: str = "") -> Fields:
    response = HTTP.get(f"{url}/v1/responses/{id}{what}")
    assert response.status_code == 200, response.text
    return response.json()


def refusal(response: httpx.Response) -> tuple[int, str | None, str | None]:
    error = response.json()["error"]
    return response.status_code, error["param"], error["code"]


def test_turns_by_id_are_the_whole_conversation_sent_again(sdk: OpenAI) -> None:
    asked: Any = {"model": "thinker", "temperature": 0.8, "extra_body": {"seed": 3}}
    whole: list[Any] = []
    previous: Any = {}
    for text in (GREETING, NEXT, "Go on.", "And?"):
        whole.append({"role": "user", "content": text})
        by_id = sdk.responses.create(input=text, max_output_tokens=30, **previous, **asked)
        again = sdk.responses.create(input=whole, max_output_tokens=30, store=False, **asked)
        assert strict.without_ids([i.to_dict() for i in by_id.output]) == (
            strict.without_ids([i.to_dict() for i in again.output])
        )
        assert by_id.usage and again.usage
        assert by_id.usage.input_tokens == again.usage.input_tokens
        whole += [item.to_dict() for item in again.output]
        previous = {"previous_response_id": by_id.id}
        assert sdk.responses.retrieve(by_id.id) == by_id
        with pytest.raises(openai.NotFoundError):
            sdk.responses.retrieve(again.id)


def test_instructions_hold_for_one_response(sdk: OpenAI) -> None:
    asked: Any = {"model": "thinker", "temperature": 0}
    first = sdk.responses.create(input=GREETING, **asked)
    told = sdk.responses.create(input=GREETING, instructions="Be kind. " * 5, **asked)
    assert first.usage and told.usage and told.usage.input_tokens > first.usage.input_tokens
    again = sdk.responses.create(input=NEXT, previous_response_id=first.id, **asked)
    assert (first.output_text, again.output_text) == (ANSWER, LAST)
    said: Any = {"role": "assistant", "content": told.output_text}
    items: Any = [{"role": "user", "content": GREETING}, said, {"role": "user", "content": NEXT}]
    plain = sdk.responses.create(input=items, **asked)
    after = sdk.responses.create(input=NEXT, previous_response_id=told.id, **asked)
    assert plain.usage and after.usage and after.usage.input_tokens == plain.usage.input_tokens
    assert after.instructions is None


def test_a_streamed_response_can_be_continued_at_once(sdk: OpenAI) -> None:
    stream = sdk.responses.create(model="thinker", input=GREETING, temperature=0, stream=True)
    last = list(stream)[-1]
    assert last.type == "response.completed"
    assert sdk.responses.retrieve(last.response.id) == last.response
    after = sdk.responses.create(
        model="thinker", input=NEXT, temperature=0, previous_response_id=last.response.id
    )
    assert after.output_text == LAST


def test_input_items_are_the_conversation_before_it(sdk: OpenAI, thinker_url: str) -> None:
    first = post(thinker_url, input=ASKED, tools=[WEATHER], temperature=0)
    call = first["output"][-1]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
    items = [result, {"role": "assistant", "content": "So."}, {"role": "user", "content": NEXT}]
    second = post(
        thinker_url,
        input=items,
        tools=[WEATHER],
        previous_response_id=first["id"],
        max_output_tokens=5,
    )
    listed = get(thinker_url, second["id"], "/input_items?order=asc")
    checked = strict.items(listed)
    data = listed["data"]
    assert data[1 : 1 + len(first["output"])] == first["output"]
    kinds = [item.type for item in checked.data]
    outputs = [item["type"] for item in first["output"]]
    assert kinds == ["message", *outputs, "function_call_output", "message", "message"]
    assert data[0]["content"] == [{"type": "input_text", "text": ASKED}]
    assert (listed["first_id"], listed["last_id"]) == (data[0]["id"], data[-1]["id"])
    assert listed["has_more"] is False
    page = get(thinker_url, second["id"], "/input_items?limit=2")
    assert page["data"] == data[::-1][:2] and page["has_more"] is True
    paged = list(sdk.responses.input_items.list(second["id"], limit=2))  # follows all pages
    assert [item.to_dict()["id"] for item in paged] == [item["id"] for item in data[::-1]]


def test_a_deleted_response_is_gone(sdk: OpenAI, thinker_url: str) -> None:
    first = post(thinker_url, input=GREETING, temperature=0)["id"]
    second = post(thinker_url, input=NEXT, previous_response_id=first, temperature=0)["id"]
    sdk.responses.delete(first)
    path = f"{thinker_url}/v1/responses"
    for response in (
        HTTP.get(f"{path}/{first}"),
        HTTP.delete(f"{path}/{first}"),
        HTTP.get(f"{path}/{first}/input_items"),
        HTTP.post(f"{path}/{first}/cancel"),
    ):
        assert refusal(response) == (404, None, "response_not_found")
    lost = (404, "previous_response_id", "previous_response_not_found")
    for id in (first, second, "resp_nobody"):
        response = HTTP.post(path, json={"input": "x", "previous_response_id": id})
        assert refusal(response) == lost
    assert get(thinker_url, second)["status"] == "completed"


def test_a_server_without_a_store(thinker: Engine) -> None:
    with serve.served(serve.build_app([serve.Served("thinker", thinker)])) as url:
        response = post(url, input=GREETING, temperature=0)
        assert response["store"] is False
        path = f"{url}/v1/responses"
        assert refusal(HTTP.get(f"{path}/{response['id']}"))[0] == 404
        for name, value in (
            ("store", True),
            ("background", True),
            ("previous_response_id", response["id"]),
        ):
            got = HTTP.post(path, json={"input": "x", name: value})
            assert refusal(got)[:2] == (400, name)


@pytest.mark.parametrize("query", ["stream=true", "starting_after=3", "include[]=x"])
def test_what_a_fetch_cannot_do_is_refused(thinker_url: str, query: str) -> None:
    id = post(thinker_url, input=GREETING, max_output_tokens=1)["id"]
    got = HTTP.get(f"{thinker_url}/v1/responses/{id}?{query}")
    assert refusal(got) == (400, query.split("=")[0], "unsupported")
    for wrong in ("limit=0", "limit=101", "limit=x", "order=up", "after=msg_nobody"):
        got = HTTP.get(f"{thinker_url}/v1/responses/{id}/input_items?{wrong}")
        assert refusal(got)[:2] == (400, wrong.split("=")[0])


def ended(url: str, id: str) -> Fields:
    deadline = time.monotonic() + 30
    while (response := get(url, id))["status"] == "in_progress":
        assert time.monotonic() < deadline, "not ended"
        time.sleep(0.02)
    return response


def test_in_the_background_it_is_made_all_the_same(thinker_url: str) -> None:
    asked: Fields = {"input": ASKED, "tools": [WEATHER], "temperature": 0, "seed": 1}
    started = post(thinker_url, **asked, background=True)
    assert (started["status"], started["background"]) == ("in_progress", True)
    strict.response(started)
    got = ended(thinker_url, started["id"])
    strict.response(got)
    whole = post(thinker_url, **asked)
    assert strict.without_ids(got) == strict.without_ids(whole | {"background": True})
    cancelled = HTTP.post(f"{thinker_url}/v1/responses/{got['id']}/cancel")
    assert cancelled.json() == got, "too late"
    refused = HTTP.post(f"{thinker_url}/v1/responses/{whole['id']}/cancel")
    assert refused.status_code == 400 and "background" in refused.text


@pytest.fixture(scope="module")
def endless_url() -> Iterator[str]:
    with endless(None) as url:
        yield url


@contextmanager
def endless(path: Path | None) -> Iterator[str]:
    """A model that goes on for many minutes."""
    model = random_model(max_seq_len=300_000)
    model.tokenizer.stop_ids = frozenset()
    with (
        Store(path) as store,
        serve.served(serve.build_app([serve.Served("tiny", Engine(model))], store=store)) as url,
    ):
        yield url


def test_a_background_response_can_be_cancelled_or_deleted(endless_url: str) -> None:
    sdk = OpenAI(base_url=f"{endless_url}/v1", api_key="none", max_retries=0)
    started = sdk.responses.create(model="tiny", input="x", background=True)
    assert started.status == sdk.responses.retrieve(started.id).status == "in_progress"
    with pytest.raises(openai.BadRequestError, match="in_progress"):
        sdk.responses.create(model="tiny", input="y", previous_response_id=started.id)
    cancelled = sdk.responses.cancel(started.id)
    assert cancelled.status == "cancelled"
    strict.response(get(endless_url, started.id))
    assert sdk.responses.retrieve(started.id) == cancelled == sdk.responses.cancel(started.id)
    other = sdk.responses.create(model="tiny", input="x", background=True)
    sdk.responses.delete(other.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(other.id)
    assert HTTP.get(f"{endless_url}/health").json()["requests_under_way"] == 0


def test_a_server_that_stops_ends_what_is_in_the_background(tmp_path: Path) -> None:
    path = tmp_path / "serve.sqlite"
    with endless(path) as url:
        id = post(url, input="x", background=True)["id"]
    with Store(path) as store:
        document, _ = store.response(id) or ({}, None)
    assert document["response"]["status"] == "failed"


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from gristmill import serve
from gristmill.engine import Engine
from gristmill.serve import run
from gristmill.serve.store import Store
from tests.tiny_model import random_model

model = random_model(max_seq_len=300_000)
model.tokenizer.stop_ids = frozenset()
app = serve.build_app([serve.Served("tiny", Engine(model))], store=Store(Path(sys.argv[1])))
listener = serve.listen("127.0.0.1", 0)
drain = float(sys.argv[2])
run.LAST_WORDS_SECONDS = 30  # of a busy machine
serve.serve(app, listener, lambda: print(serve.address_of(listener), flush=True), drain)
"""


@contextmanager
def apart(path: Path, drain: float = 30) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, which can be killed."""
    command = [sys.executable, "-c", SCRIPT, str(path), str(drain)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


@pytest.mark.parametrize(("drain", "tokens"), [(60, 1500), (0.3, 200_000)])
def test_going_down_waits_for_what_is_in_the_background(
    tmp_path: Path, drain: float, tokens: int
) -> None:
    """As for a stream, and as long; what takes longer is kept as far as it got, and why."""
    path = tmp_path / "serve.sqlite"
    with apart(path, drain) as (url, process):
        id = post(url, input="x", background=True, max_output_tokens=tokens)["id"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with Store(path) as store:
        document, _ = store.response(id) or ({}, None)
    response = document["response"]
    if drain > 1:
        assert response["status"] == "incomplete" and response["usage"]["output_tokens"] == tokens
    else:
        assert response["status"] == "failed" and "going down" in response["error"]["message"]
        assert response["output"][0]["content"][0]["text"]


def test_a_killed_server_has_lost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "serve.sqlite"
    with apart(path) as (url, process):
        first = post(url, input="one", max_output_tokens=8)
        second = post(url, input="two", max_output_tokens=8, previous_response_id=first["id"])
        running = post(url, input="x", background=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with apart(path) as (url, _):
        assert [get(url, each["id"]) for each in (first, second)] == [first, second]
        third = post(
            url, input="three", max_output_tokens=8, previous_response_id=second["id"], store=False
        )
        items = [
            {"role": "user", "content": "one"},
            *first["output"],
            {"role": "user", "content": "two"},
            *second["output"],
            {"role": "user", "content": "three"},
        ]
        whole = post(url, input=items, max_output_tokens=8, seed=third["seed"])
        assert strict.without_ids(third["output"]) == strict.without_ids(whole["output"])
        assert third["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
        lost = get(url, running["id"])
        assert lost["status"] == "failed" and "stopped" in lost["error"]["message"]
        strict.response(lost)


def test_a_store_that_fails_is_told_in_the_stream(thinker: Engine) -> None:
    store = Store()
    with serve.served(serve.build_app([serve.Served("thinker", thinker)], store=store)) as url:
        asked: Fields = {"input": GREETING, "temperature": 0}
        sdk = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert sdk.responses.create(**asked).output_text == ANSWER
        store.close()
        events = list(sdk.responses.create(**asked, stream=True))
        kinds = [event.type for event in events]
        assert kinds[-2:] == ["response.output_item.done", "response.failed"]
        assert "response.completed" not in kinds
        with pytest.raises(openai.InternalServerError, match="store"):
            sdk.responses.create(**asked)
        assert sdk.responses.create(**asked, store=False).output_text == ANSWER
