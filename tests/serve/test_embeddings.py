"""Embeddings: the engine's own vectors, in order, and an end when nobody waits for them any more."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import httpx
import numpy as np
import pytest
from openai import OpenAI

from tests.serve.faults import CHAT, SHORT, Target, endless_engine, soon, target

PATH = "/v1/embeddings"
embeddings = import_module(
    "gristmill.serve.openai.embeddings"
)  # its package has a function of the name


@pytest.fixture(scope="module")
def server() -> Iterator[Target]:
    with target(endless_engine()) as running:
        yield running


@pytest.mark.parametrize("batch", [1, 7, 10_000])
def test_vectors_are_the_engines_however_they_are_cut(
    server: Target, monkeypatch, batch: int
) -> None:
    monkeypatch.setattr(embeddings, "BATCH_TOKENS", batch)
    texts = ["a heap", "x", "a queue of three", "the quick brown fox jumps"]
    want = server.engine.embed(texts).numpy()
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    got = client.embeddings.create(model="tiny", input=texts)  # asks for base64
    assert [each.index for each in got.data] == [0, 1, 2, 3]
    np.testing.assert_array_equal(np.array([e.embedding for e in got.data], "f4"), want)
    tokens = sum(len(server.engine.tokenizer.prompt_ids(text)) for text in texts)
    assert got.usage.prompt_tokens == got.usage.total_tokens == tokens
    short = server.ask(PATH, {"input": texts[0], "dimensions": 8}).json()["data"][0]["embedding"]
    cut = want[0, :8] / np.linalg.norm(want[0, :8])
    np.testing.assert_allclose(short, cut, rtol=1e-6)
    raw = server.ask(PATH, {"input": texts[0], "encoding_format": "base64"}).json()
    decoded = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(decoded, want[0])


@pytest.fixture
def slow(server: Target, monkeypatch) -> Iterator[list[int]]:
    """Each batch waits until the test is over, or for its turn; the sizes of the batches so far."""
    real, sizes, go_on = server.engine.embed, [], threading.Event()

    def embed(rows: Any, *more: Any) -> Any:
        sizes.append(len(rows))
        go_on.wait(0.2)
        return real(rows, *more)

    monkeypatch.setattr(server.engine, "embed", embed)
    yield sizes
    go_on.set()
    assert soon(server.at_rest)


def test_who_leaves_is_not_read_for_any_longer(
    server: Target, slow: list[int], monkeypatch
) -> None:
    monkeypatch.setattr(embeddings, "BATCH_TOKENS", 8)
    connection = server.send(PATH, {"input": ["a b c d e f g h"] * 200})
    assert soon(lambda: len(slow) >= 2)
    connection.close()
    assert soon(lambda: server.requests == 0)
    seen = len(slow)
    threading.Event().wait(0.6)  # three batches' time
    assert len(slow) <= seen + 1 < 200


def test_many_embeddings_hold_nobody_up(server: Target, slow: list[int], monkeypatch) -> None:
    """They have threads of their own: chats need others, to be tokenized."""
    monkeypatch.setattr(embeddings, "BATCH_TOKENS", 8)
    many = [server.send(PATH, {"input": ["a b c d e f g h"] * 100}) for _ in range(40)]
    assert soon(lambda: len(slow) >= 4)
    answer = httpx.post(server.url + CHAT, json=SHORT, timeout=5)
    assert answer.json()["choices"][0]["message"]["content"] == server.alone
    for connection in many:
        connection.close()


def test_the_answer_is_json_of_the_declared_form(server: Target) -> None:
    got = server.ask(PATH, {"input": ["a", "b"]})
    assert got.headers["content-type"] == "application/json"
    assert set(json.loads(got.text)) == {"object", "data", "model", "usage"}
