"""A server with two models: "thinker" has learned to think and to call a tool, "plain" writes at random."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from gristmill import serve
from gristmill.engine import Engine
from tests.serve.openai.thinker import thinking_model
from tests.tiny_model import random_model


@pytest.fixture(scope="session")
def engines() -> dict[str, Engine]:
    return {"thinker": Engine(thinking_model()), "plain": Engine(random_model(max_seq_len=1024))}


@pytest.fixture(scope="session")
def two_url(engines: dict[str, Engine]) -> Iterator[str]:
    app = serve.build_app([serve.Served(name, engine) for name, engine in engines.items()])
    with serve.served(app) as url:
        yield url


@pytest.fixture(scope="session")
def sdk(two_url: str) -> OpenAI:
    return OpenAI(base_url=f"{two_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def plain(engines: dict[str, Engine]) -> Engine:
    return engines["plain"]


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]
