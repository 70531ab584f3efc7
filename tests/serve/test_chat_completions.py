"""The chat endpoint, driven by OpenAI's own SDK, against the engine alone."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import CompletionUsage

from gristmill.engine import Engine
from gristmill.lm import SamplingParams
from gristmill.retrieval import Index, answer
from tests.served import served
from tests.tiny_model import QUESTIONS

HTTP = httpx.Client(timeout=60)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "g"}}
MESSAGES = [{"role": "user", "content": QUESTIONS[0]}]


def counted(usage: CompletionUsage | None) -> tuple[int, int, int]:
    """Without what was found in the cache, which depends on who asked before."""
    assert usage is not None
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def test_a_whole_answer_is_the_engines(client: OpenAI, engine: Engine) -> None:
    got = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0)
    expected = engine.chat(MESSAGES, SamplingParams(max_tokens=384, temperature=0))
    assert "n largest elements" in expected.text
    choice = got.choices[0]
    assert choice.message.content == expected.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == expected.finish_reason == "stop"
    assert got.usage is not None
    assert got.usage.prompt_tokens == expected.prompt_tokens
    assert got.usage.completion_tokens == len(expected.token_ids)
    assert got.usage.total_tokens == expected.prompt_tokens + len(expected.token_ids)
    assert (got.model, got.object) == ("tiny", "chat.completion")


@pytest.mark.parametrize("retrieval", [False, True])
def test_streamed_pieces_join_to_the_whole(client: OpenAI, retrieval: bool) -> None:
    def create(**more):
        return client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            temperature=0.7,
            seed=4,
            extra_body={"retrieval": retrieval},
            **more,
        )

    whole = create()
    chunks = list(create(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    ends = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert ends[-1] == whole.choices[0].finish_reason
    assert set(ends[:-1]) == {None}
    assert chunks[-1].choices == [] and counted(chunks[-1].usage) == counted(whole.usage)
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert len({c.id for c in chunks}) == 1
    assert len(chunks) > 10, "it came in pieces"


def test_a_stream_without_usage_has_none_and_ends_with_done(url: str) -> None:
    body = {"messages": MESSAGES, "stream": True, "temperature": 0}
    with HTTP.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all("usage" not in event and len(event["choices"]) == 1 for event in events)


def test_the_async_client_streams_too(url: str, client: OpenAI) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as other:
            stream = await other.chat.completions.create(
                model="tiny", messages=MESSAGES, temperature=0, stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0)
    assert asyncio.run(ask()) == whole.choices[0].message.content


def test_logprobs_are_the_engines_whole_and_streamed(client: OpenAI, engine: Engine) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=9, logprobs=3)
    expected = engine.chat(MESSAGES, params)
    arguments = {
        "model": "tiny",
        "messages": MESSAGES,
        "max_completion_tokens": 12,
        "seed": 9,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = client.chat.completions.create(**arguments)
    stream = client.chat.completions.create(**arguments, stream=True)
    streamed = [
        entry
        for chunk in stream
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert whole.choices[0].logprobs is not None
    entries = whole.choices[0].logprobs.content
    assert entries == streamed
    assert expected.logprobs is not None and entries is not None
    assert len(entries) == len(expected.logprobs) == 12
    for entry, token in zip(entries, expected.logprobs, strict=True):
        assert bytes(entry.bytes or []) == engine.tokenizer.token_bytes(token.token_id)
        assert entry.logprob == pytest.approx(token.logprob, abs=1e-4)
        tops = [bytes(top.bytes or []) for top in entry.top_logprobs]
        assert tops == [engine.tokenizer.token_bytes(i) for i, _ in token.top]


def test_a_stop_token_is_counted_and_not_shown(client: OpenAI, engine: Engine) -> None:
    got = client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, logprobs=True
    )
    assert got.usage is not None and got.choices[0].logprobs is not None
    entries = got.choices[0].logprobs.content or []
    assert got.usage.completion_tokens == len(entries) + 1
    assert b"".join(bytes(e.bytes or []) for e in entries).decode() == (
        got.choices[0].message.content
    )


def test_stop_strings_and_limits(client: OpenAI) -> None:
    def create(**more):
        return client.chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=0, **more
        ).choices[0]

    whole = create().message.content
    cut = create(stop=["largest el", "zzz"])
    assert cut.message.content == whole[: whole.index("largest el")]
    assert cut.finish_reason == "stop"
    assert create(stop="elements").message.content == whole[: whole.index("elements")]
    short = create(max_tokens=3)
    assert short.finish_reason == "length" and whole.startswith(short.message.content)
    assert create(max_tokens=9, max_completion_tokens=3).message.content == short.message.content


def test_seeds_reproduce_and_an_absent_one_is_told(client: OpenAI) -> None:
    def create(seed: int | None):
        return client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            temperature=2,
            max_tokens=30,
            **({} if seed is None else {"seed": seed}),
        )

    def text(got) -> str:
        return got.choices[0].message.content

    assert text(create(1)) == text(create(1))
    free, other = create(None), create(None)
    assert text(free) != text(other)
    assert text(create(free.seed)) == text(free)


def test_answers_with_sources(client: OpenAI, engine: Engine, index: Index) -> None:
    params = SamplingParams(max_tokens=384, temperature=0)
    expected = answer(engine, index, MESSAGES, params)
    arguments = {
        "model": "tiny",
        "messages": MESSAGES,
        "temperature": 0,
        "extra_body": {"retrieval": True},
    }
    message = client.chat.completions.create(**arguments).choices[0].message
    assert message.content == expected.text
    (citation,) = message.citations
    assert (citation["source"], citation["line"]) == ("python3.11/heapq.py", 523)
    assert citation["title"] == "heapq.nlargest"
    last = list(client.chat.completions.create(**arguments, stream=True))[-1].choices[0]
    assert last.finish_reason == "stop"
    assert last.delta.citations == message.citations
    assert message.found is True
    plain = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0)
    assert not hasattr(plain.choices[0].message, "citations")


def test_a_question_that_finds_nothing_says_so(client: OpenAI) -> None:
    got = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "How do volcanoes erupt?"}],
        extra_body={"retrieval": True},
    )
    assert got.choices[0].message.content == "I did not find that in the documents."
    assert got.choices[0].message.citations == [] and got.choices[0].message.found is False
    assert got.usage is not None and got.usage.total_tokens == 0


def test_eight_at_once_are_not_crossed(url: str, engine: Engine) -> None:
    """Different questions, seeds and lengths, half of them streamed; each equals the engine alone."""
    asks = [
        ([{"role": "user", "content": QUESTIONS[i % 3]}], SamplingParams(8 + 9 * i, 2.0, seed=i))
        for i in range(8)
    ]

    async def ask(client: openai.AsyncOpenAI, i: int) -> str:
        messages, params = asks[i]
        got = await client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            seed=params.seed,
            stream=i % 2 == 0,
        )
        if i % 2:
            return got.choices[0].message.content
        return "".join([c.choices[0].delta.content or "" async for c in got])

    async def every() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, i) for i in range(8)))

    got = asyncio.run(every())
    assert got == [engine.chat(messages, params).text for messages, params in asks]
    assert len(set(got)) == 8


def test_models_and_health(client: OpenAI, url: str) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny" and model.max_model_len == 384
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    assert HTTP.get(f"{url}/health").json()["status"] == "ok"


def test_undocumented_fields_are_accepted_with_a_warning(url: str) -> None:
    body = {"messages": MESSAGES, "max_tokens": 2, "my_fïeld": 1, "user": "me"}
    response = HTTP.post(f"{url}/v1/chat/completions", json=body)
    assert response.status_code == 200
    assert "my_f\\u00efeld" in response.headers["x-gristmill-warning"]
    assert "user" not in response.headers["x-gristmill-warning"]


@pytest.mark.parametrize(
    ("param", "change"),
    [
        ("n", {"n": 0}),
        ("retrieval", {"n": 2, "retrieval": True}),
        ("n", {"n": 65}),
        ("best_of", {"best_of": 2}),
        ("tools[0].function.name", {"tools": [{"type": "function", "function": {}}]}),
        ("tools", {"tools": [TOOL, TOOL]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": NAMED}),
        ("functions", {"functions": [{"name": "f"}]}),
        ("response_format", {"tools": [TOOL], "response_format": {"type": "json_object"}}),
        ("response_format.type", {"response_format": {"type": "xml"}}),
        ("response_format.json_schema", {"response_format": {"type": "json_schema"}}),
        ("structured_outputs", {"structured_outputs": {"regex": "a", "choice": ["b"]}}),
        ("guided_json", {"guided_json": {}}),
        ("logit_bias", {"logit_bias": {"five": 3}}),
        ("logit_bias.5", {"logit_bias": {"5": 300}}),
        ("min_tokens", {"min_tokens": 5, "max_tokens": 4}),
        ("chat_template", {"chat_template": "{{ 1 }}"}),
        ("chat_template_kwargs.tools", {"chat_template_kwargs": {"tools": []}}),
        ("continue_final_message", {"continue_final_message": True}),
        ("temperature", {"temperature": 3}),
        ("temperature", {"temperature": "hot"}),
        ("temperature", {"temperature": True}),
        ("top_p", {"top_p": 0}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 1.5}),
        ("max_tokens", {"max_tokens": 384}),  # the whole context: no room for a prompt
        ("max_tokens", {"max_tokens": 10**9}),
        ("max_completion_tokens", {"max_completion_tokens": 384, "max_tokens": 3}),
        ("max_tokens", {"max_tokens": 384, "retrieval": True}),
        ("max_completion_tokens", {"max_completion_tokens": -4}),
        ("top_logprobs", {"top_logprobs": 3}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("logprobs", {"logprobs": 3}),
        ("seed", {"seed": 2**70}),
        ("stop[0]", {"stop": [""]}),
        ("stop", {"stop": ["x"] * 17}),
        ("stop", {"stop": 7}),
        ("frequency_penalty", {"frequency_penalty": 2.1}),
        ("stream", {"stream": "yes"}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("stream_options.fast", {"stream": True, "stream_options": {"fast": True}}),
        ("messages", {"messages": []}),
        ("messages", {"messages": "hi"}),
        ("messages", {"messages": [{"role": "assistant", "content": "hi"}]}),
        ("messages[0]", {"messages": ["hi"]}),
        ("messages[0].role", {"messages": [{"role": "poet", "content": "hi"}]}),
        ("messages[0].tool_call_id", {"messages": [{"role": "tool", "content": "hi"}]}),
        (
            "messages[0].tool_call_id",
            {"messages": [{"role": "tool", "content": "hi", "tool_call_id": "x"}]},
        ),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": 5}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": "\ud800"}]}),
        (
            "messages[0].content[0].type",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        ),
        ("messages", {"messages": [{"role": "user", "content": "a b c " * 400}]}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_refused_by_name(url: str, param: str, change: dict, stream: bool) -> None:
    body = {"messages": MESSAGES, "stream": stream, **change}
    if param == "stream_options":
        body["stream"] = False
    response = HTTP.post(
        f"{url}/v1/chat/completions",
        content=json.dumps(body),
        headers={"content-type": "application/json"},
    )
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_the_sdk_sees_the_error(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a b c " * 400}]
        )
    assert caught.value.code == "context_length_exceeded"
    assert "384" in str(caught.value)
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)


def test_an_answer_of_the_length_asked_for_must_fit(client: OpenAI, engine: Engine) -> None:
    """As OpenAI does it: refused when prompt and max_tokens exceed the context, to the token. Without
    max_tokens an answer may take all that is left."""
    room = 384 - len(engine.tokenizer.chat_ids(MESSAGES, add_generation_prompt=True))

    def ask(**limit: int) -> openai.types.chat.ChatCompletion:
        return client.chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=2, seed=1, **limit
        )

    assert ask().usage.total_tokens <= 384
    assert ask(max_tokens=room).choices == ask().choices
    with pytest.raises(openai.BadRequestError, match=f"leaves {room}") as caught:
        ask(max_tokens=room + 1)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")


def test_parts_and_developer_messages_are_understood(client: OpenAI, engine: Engine) -> None:
    got = client.chat.completions.create(
        model="tiny",
        temperature=0,
        max_tokens=9,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}],
            },
        ],
    )
    same = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    expected = engine.chat(same, SamplingParams(max_tokens=9, temperature=0))
    assert got.choices[0].message.content == expected.text


@pytest.mark.parametrize(
    ("status", "method", "path", "content"),
    [
        (400, "POST", "/v1/chat/completions", b"{"),
        (400, "POST", "/v1/chat/completions", b"\xff\xfe"),
        (400, "POST", "/v1/chat/completions", b"[1]"),
        (400, "POST", "/v1/chat/completions", b'{"temperature": NaN}'),
        (400, "POST", "/v1/chat/completions", b"[" * 100_000),
        (413, "POST", "/v1/chat/completions", b" " * (17 << 20)),
        (404, "POST", "/v1/completion", b"{}"),
        (404, "GET", "/static/../app.py", b""),
        (405, "GET", "/v1/chat/completions", b""),
    ],
)
def test_bad_requests_get_openais_envelope(
    url: str, status: int, method: str, path: str, content: bytes
) -> None:
    response = HTTP.request(method, url + path, content=content)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_retrieval_without_an_index_is_refused(engine: Engine) -> None:
    with served(engine) as url:
        body = {"messages": MESSAGES, "retrieval": True}
        response = HTTP.post(f"{url}/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "retrieval"
