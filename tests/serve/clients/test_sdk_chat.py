"""Chat by OpenAI's SDK: its objects of the types that it declares, its values the engine's."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, Field

from gristmill.engine import Engine
from gristmill.lm import Completion, SamplingParams
from tests.serve.clients.strict import accumulated, checked
from tests.serve.openai.thinker import PUZZLE, PUZZLING, SOLVED

MESSAGES: Any = [{"role": "user", "content": "Heaps are arrays"}]
ASK: Any = {"model": "plain", "messages": MESSAGES, "max_completion_tokens": 12, "seed": 5}
PARAMS: Any = {"max_tokens": 12, "seed": 5}

# What is asked beyond ASK, and the engine's words for it
SAMPLING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0}, {"temperature": 0}),
    ({"temperature": 1.7, "top_p": 0.8}, {"temperature": 1.7, "top_p": 0.8}),
    ({"n": 3}, {"n": 3}),
    ({"stop": ["e", "zz"]}, {"stop": ("e", "zz")}),
    (
        {"logit_bias": {"40": 100, "41": 99.5}, "temperature": 0},
        {"logit_bias": {40: 100, 41: 99.5}, "temperature": 0},
    ),
    (
        {"presence_penalty": 2, "temperature": 0, "logit_bias": {"40": 20, "41": 19.5}},
        {"presence_penalty": 2, "temperature": 0, "logit_bias": {40: 20, 41: 19.5}},
    ),
    (
        {"frequency_penalty": 1.5, "temperature": 0.2},
        {"frequency_penalty": 1.5, "temperature": 0.2},
    ),
    (
        {"extra_body": {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.3, "min_tokens": 9}},
        {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.3, "min_tokens": 9},
    ),
]


class Flags(BaseModel):
    size: Literal["small", "large"]
    ready: bool
    count: int = Field(ge=0, le=9)


def same(got: ChatCompletion, expected: Completion) -> None:
    answers = (expected, *expected.alternatives)
    assert [choice.index for choice in got.choices] == list(range(len(answers)))
    for choice, answer in zip(got.choices, answers, strict=True):
        assert choice.message.content == answer.text
        assert choice.finish_reason == answer.finish_reason
    made = sum(len(answer.token_ids) for answer in answers)
    assert got.usage is not None
    assert got.usage.prompt_tokens == expected.prompt_tokens
    assert got.usage.completion_tokens == made
    assert got.usage.total_tokens == expected.prompt_tokens + made


@pytest.mark.parametrize(("asked", "params"), SAMPLING)
def test_sampling_is_the_engines(sdk: OpenAI, plain: Engine, asked: dict, params: dict) -> None:
    got = checked(sdk.chat.completions.create(**ASK, **asked))
    same(got, plain.chat(MESSAGES, SamplingParams(**PARAMS, **params)))


@pytest.mark.parametrize(("asked", "params"), SAMPLING)
def test_the_streams_accumulator_makes_the_same(
    sdk: OpenAI, plain: Engine, asked: dict, params: dict
) -> None:
    usage: Any = {"include_usage": True}
    got = accumulated(sdk.chat.completions.stream(**ASK, **asked, stream_options=usage))
    same(got, plain.chat(MESSAGES, SamplingParams(**PARAMS, **params)))


def test_logprobs_accumulate(sdk: OpenAI, plain: Engine) -> None:
    asked: Any = {**ASK, "logprobs": True, "top_logprobs": 4, "n": 2}
    whole = checked(sdk.chat.completions.create(**asked))
    joined = accumulated(sdk.chat.completions.stream(**asked))
    expected = plain.chat(MESSAGES, SamplingParams(**PARAMS, logprobs=4, n=2))
    for one, other, answer in zip(
        whole.choices, joined.choices, (expected, *expected.alternatives), strict=True
    ):
        assert one.logprobs and other.logprobs and answer.logprobs
        assert one.logprobs.content == other.logprobs.content
        entries = one.logprobs.content or []
        assert [e.logprob for e in entries] == pytest.approx(
            [t.logprob for t in answer.logprobs], abs=1e-4
        )
        tops = [[(bytes(t.bytes or []), t.logprob) for t in e.top_logprobs] for e in entries]
        for top, token in zip(tops, answer.logprobs, strict=True):
            spelled = [plain.tokenizer.token_bytes(id) for id, _ in token.top]
            assert [raw for raw, _ in top] == spelled
            assert [p for _, p in top] == pytest.approx([p for _, p in token.top], abs=1e-4)


def test_the_async_client_and_its_accumulator(two_url: str, sdk: OpenAI) -> None:
    async def ask() -> tuple[ChatCompletion, ChatCompletion]:
        async with AsyncOpenAI(base_url=f"{two_url}/v1", api_key="none") as client:
            whole = await client.chat.completions.create(**ASK)
            async with client.chat.completions.stream(**ASK) as stream:
                async for _ in stream:
                    pass
                return whole, stream.current_completion_snapshot

    whole, joined = asyncio.run(ask())
    alone = sdk.chat.completions.create(**ASK)
    assert whole.choices[0].message.content == joined.choices[0].message.content
    assert whole.choices[0].message.content == alone.choices[0].message.content


def test_a_thought_comes_beside_the_answer(sdk: OpenAI) -> None:
    asked: Any = {"model": "thinker", "messages": [{"role": "user", "content": PUZZLE}]}
    message = checked(sdk.chat.completions.create(**asked, temperature=0)).choices[0].message
    assert (message.reasoning_content, message.content) == (PUZZLING, SOLVED)  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(4))
def test_parse_gives_the_pydantic_model(sdk: OpenAI, seed: int) -> None:
    asked: Any = {**ASK, "seed": seed, "max_completion_tokens": 200}
    got = checked(sdk.chat.completions.parse(**asked, response_format=Flags)).choices[0].message
    assert isinstance(got.parsed, Flags)
    assert Flags.model_validate_json(got.content or "") == got.parsed
    with sdk.chat.completions.stream(**asked, response_format=Flags) as stream:
        streamed = stream.get_final_completion().choices[0].message
    assert streamed.parsed == got.parsed


def test_json_object(sdk: OpenAI, plain: Engine) -> None:
    """A random model would write on for ever: it is pushed to close what it opened."""
    (close,) = plain.tokenizer.encode("}")
    got = sdk.chat.completions.create(
        **ASK, response_format={"type": "json_object"}, logit_bias={str(close): 100}
    )
    assert json.loads(got.choices[0].message.content or "") == {}
    assert got.choices[0].finish_reason == "stop"
