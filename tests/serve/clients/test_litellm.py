"""litellm by three of its prefixes: each answer is the engine's, each refusal of the right class."""

from __future__ import annotations

from typing import Any

import pytest

from gristmill.engine import Engine
from gristmill.lm import Request, SamplingParams
from tests.serve.clients import peers
from tests.serve.openai.thinker import ARGUMENTS, ASKED, SAID, THOUGHT

PREFIXES = ["openai", "hosted_vllm", "anthropic"]


@pytest.fixture(scope="module")
def told(two_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return peers.run("ask_litellm.py", tmp_path_factory.mktemp("litellm"), two_url)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_whole_and_streamed_are_the_engines(
    told: dict[str, Any], plain: Engine, prefix: str
) -> None:
    params = SamplingParams(max_tokens=20, temperature=0)
    expected = plain.chat([{"role": "user", "content": ASKED}], params)
    for way in ("whole", "streamed"):
        got = told[prefix][way]
        (choice,) = got["choices"]
        assert choice["message"]["content"] == expected.text
        assert choice["finish_reason"] == expected.finish_reason == "length"
        usage = got["usage"]
        assert usage["completion_tokens"] == len(expected.token_ids), way
        assert usage["prompt_tokens"] == expected.prompt_tokens, way
        assert usage["total_tokens"] == expected.prompt_tokens + len(expected.token_ids)


@pytest.mark.parametrize("way", ["called", "called, streamed"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_calls(told: dict[str, Any], prefix: str, way: str) -> None:
    (choice,) = told[prefix][way]["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert call["function"]["arguments"] == ARGUMENTS
    assert choice["message"]["content"] == SAID
    assert choice["message"]["reasoning_content"] == THOUGHT


@pytest.mark.parametrize("prefix", PREFIXES)
def test_refusals(told: dict[str, Any], prefix: str) -> None:
    assert told[prefix]["unknown model"] == "NotFoundError"
    assert told[prefix]["too long"] in ("ContextWindowExceededError", "BadRequestError")


def test_embeddings_and_texts(told: dict[str, Any], plain: Engine) -> None:
    expected = plain.embed(["Heaps"])[0].tolist()
    for prefix in ("openai", "hosted_vllm"):
        assert told[prefix]["embedding"] == pytest.approx(expected, abs=1e-6)
    (text,) = plain.generate([Request("Heaps", SamplingParams(max_tokens=8, seed=3))])
    assert told["text"] == text.text
