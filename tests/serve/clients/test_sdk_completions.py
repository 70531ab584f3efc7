"""Completions, embeddings and models by OpenAI's SDK: its types, and the engine's values."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI

from gristmill.engine import Engine
from gristmill.lm import Completion, Request, SamplingParams
from tests.serve.clients.strict import checked

TEXTS = ["Heaps", "def nlargest(n", "naïve 🙂"]
ASK: Any = {"model": "plain", "max_tokens": 9, "seed": 3}


def forms(engine: Engine) -> list[Any]:
    ids = [engine.tokenizer.prompt_ids(text) for text in TEXTS]
    return [TEXTS[0], TEXTS, ids[0], ids]


def alone(engine: Engine, prompt: Any, **params: Any) -> list[Completion]:
    made = SamplingParams(max_tokens=9, seed=3, **params)
    listed = prompt if isinstance(prompt[0], list) or len(prompt) == len(TEXTS) else [prompt]
    return engine.generate(
        [
            Request(each, made) if isinstance(each, str) else Request(token_ids=each, params=made)
            for each in listed
        ]
    )


@pytest.mark.parametrize("form", range(4), ids=["text", "texts", "ids", "lists of ids"])
@pytest.mark.parametrize("n", [1, 3])
def test_every_form_of_a_prompt(sdk: OpenAI, plain: Engine, form: int, n: int) -> None:
    prompt = forms(plain)[form]
    got = checked(sdk.completions.create(**ASK, prompt=prompt, n=n))
    expected = [each for c in alone(plain, prompt, n=n) for each in (c, *c.alternatives)]
    assert [c.index for c in got.choices] == list(range(len(expected)))
    assert [c.text for c in got.choices] == [c.text for c in expected]
    assert [c.finish_reason for c in got.choices] == [c.finish_reason for c in expected]
    prompts = sum(c.prompt_tokens for c in expected) // n
    assert got.usage is not None
    assert got.usage.prompt_tokens == prompts
    assert got.usage.completion_tokens == sum(len(c.token_ids) for c in expected)
    assert got.usage.total_tokens == prompts + got.usage.completion_tokens

    texts = [""] * len(expected)
    usage: Any = {"include_usage": True}
    for chunk in sdk.completions.create(
        **ASK, prompt=prompt, n=n, stream=True, stream_options=usage
    ):
        checked_chunk(chunk)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        if not chunk.choices:
            assert chunk.usage and chunk.usage.total_tokens == got.usage.total_tokens
    assert texts == [c.text for c in got.choices]


def checked_chunk(chunk: openai.types.Completion) -> None:
    """The SDK has one type for both, whose finish_reason is never null; in a stream it is until the end."""
    sent = chunk.to_dict(mode="python")
    for choice in sent["choices"]:  # type: ignore[attr-defined]
        assert choice["finish_reason"] in (None, "stop", "length")
        choice["finish_reason"] = "stop"
    openai.types.Completion.model_validate(sent, strict=True)


@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("form", range(4), ids=["text", "texts", "ids", "lists of ids"])
def test_echoed_logprobs_are_the_texts_likelihood(
    sdk: OpenAI, plain: Engine, form: int, limit: int
) -> None:
    prompt = forms(plain)[form]
    asked: Any = {"model": "plain", "prompt": prompt, "max_tokens": limit, "temperature": 0}
    got = sdk.completions.create(**asked, echo=True, logprobs=2)
    scored = plain.score(TEXTS if len(got.choices) > 1 else TEXTS[:1])
    for choice, expected in zip(got.choices, scored, strict=True):
        told = choice.logprobs
        assert told and told.token_logprobs and told.tokens and told.text_offset
        assert told.top_logprobs
        assert len(told.token_logprobs) == len(expected.token_ids) + limit
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        values = told.token_logprobs[1 : len(expected.token_ids)]
        assert values == pytest.approx(list(expected.logprobs[1:]), abs=1e-4)
        for token, value, top in zip(
            told.tokens[1:], told.token_logprobs[1:], told.top_logprobs[1:], strict=True
        ):
            assert top[token] == value and len(top) <= 3
            assert sum(map(math.exp, top.values())) <= 1 + 1e-6
        # What stands at its offset is the token, unless it is hidden or a part of a character.
        ends = [*told.text_offset[1:], len(choice.text)]
        for token, start, end in zip(told.tokens, told.text_offset, ends, strict=True):
            partial = token.startswith("bytes:") and end - start <= 1
            hidden = token.startswith("<|") and start == end
            assert choice.text[start:end] == token or partial or hidden
        # The first token has none: OpenAI's API says null there, which the SDK's type does not know.
        told.token_logprobs[0], told.top_logprobs[0] = 0.0, {}
    checked(got)
    assert got.usage and got.usage.completion_tokens == limit * len(got.choices)


def test_the_best_of_several(sdk: OpenAI, plain: Engine) -> None:
    got = checked(sdk.completions.create(**ASK, prompt=TEXTS[0], n=2, best_of=5))
    (first,) = alone(plain, TEXTS[0], n=5, logprobs=0)
    every = [first, *first.alternatives]

    def mean(c: Completion) -> float:
        assert c.logprobs is not None
        return sum(t.logprob for t in c.logprobs) / len(c.logprobs)

    best = sorted(every, key=mean, reverse=True)[:2]
    assert [c.text for c in got.choices] == [c.text for c in best]
    assert got.usage and got.usage.completion_tokens == sum(len(c.token_ids) for c in every)


def test_streamed_logprobs_are_the_whole_ones(sdk: OpenAI, plain: Engine) -> None:
    asked: Any = {**ASK, "prompt": TEXTS[0], "echo": True, "logprobs": 3}
    whole = sdk.completions.create(**asked).choices[0]
    assert whole.logprobs is not None
    text, lists = "", {name: [] for name in whole.logprobs.to_dict()}
    for chunk in sdk.completions.create(**asked, stream=True):
        text += chunk.choices[0].text
        for name, values in (chunk.choices[0].logprobs or whole.logprobs).to_dict().items():
            lists[name] += values if chunk.choices[0].logprobs else []  # type: ignore[operator]
    assert text == whole.text
    assert lists == whole.logprobs.to_dict()


@pytest.mark.parametrize("form", range(4), ids=["text", "texts", "ids", "lists of ids"])
@pytest.mark.parametrize("width", [None, 7])
def test_embeddings_are_the_engines(
    sdk: OpenAI, plain: Engine, form: int, width: int | None
) -> None:
    """The SDK asks for base64 unless it is told otherwise; both are the same numbers."""
    given = forms(plain)[form]
    sizes: Any = {} if width is None else {"dimensions": width}
    expected = plain.embed(TEXTS)
    if width is not None:
        expected = torch.nn.functional.normalize(expected[:, :width], dim=-1)
    forms_of_numbers: list[Any] = [{}, {"encoding_format": "float"}]
    for more in forms_of_numbers:
        got = checked(sdk.embeddings.create(model="plain", input=given, **sizes, **more))
        vectors = torch.tensor([each.embedding for each in got.data])
        torch.testing.assert_close(vectors, expected[: len(vectors)], atol=1e-5, rtol=1e-5)
        assert vectors.norm(dim=-1).tolist() == pytest.approx([1.0] * len(vectors), abs=1e-5)
        assert [each.index for each in got.data] == list(range(len(vectors)))
        ids = [plain.tokenizer.prompt_ids(text) for text in TEXTS[: len(vectors)]]
        assert got.usage.prompt_tokens == got.usage.total_tokens == sum(map(len, ids))


def test_the_sdk_does_ask_for_base64(two_url: str) -> None:
    sent: list[bytes] = []
    hooks: Any = {"request": [lambda request: sent.append(request.content)]}
    hook = openai.DefaultHttpxClient(event_hooks=hooks)
    with OpenAI(base_url=f"{two_url}/v1", api_key="none", http_client=hook) as client:
        client.embeddings.create(model="plain", input="Heaps")
    assert b'"encoding_format":"base64"' in sent[0]


def test_models(sdk: OpenAI, engines: dict[str, Engine]) -> None:
    listed = [checked(model) for model in sdk.models.list()]
    assert [model.id for model in listed] == list(engines)
    for model in listed:
        assert checked(sdk.models.retrieve(model.id)) == model
        assert model.max_model_len == engines[model.id].context  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "param", "code", "asked"),
    [
        (openai.NotFoundError, "model", "model_not_found", {"model": "gpt-9"}),
        (openai.BadRequestError, "n", "invalid_value", {"n": 0}),
        (openai.BadRequestError, "max_tokens", "context_length_exceeded", {"max_tokens": 10**6}),
        (openai.BadRequestError, "suffix", "unsupported", {"suffix": "}"}),
        (openai.BadRequestError, "prompt", "invalid_type", {"prompt": 7}),
    ],
)
def test_errors_are_of_the_sdks_classes(
    sdk: OpenAI, error: type[openai.APIStatusError], param: str, code: str, asked: dict
) -> None:
    with pytest.raises(error) as caught:
        sdk.completions.create(**{**ASK, "prompt": "Heaps", **asked})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"
