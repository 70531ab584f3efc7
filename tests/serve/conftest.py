from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from gristmill.engine import Engine
from gristmill.retrieval import Index, build
from tests.served import served
from tests.tiny_model import FACTS, QUESTIONS, taught_model


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(taught_model())


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    path: Path = tmp_path_factory.mktemp("index") / "index.sqlite"
    build(path, FACTS, [])
    return Index.open(path)


@pytest.fixture(scope="session")
def url(engine: Engine, index: Index) -> Iterator[str]:
    with served(engine, index, tuple(QUESTIONS)) as address:
        yield address


@pytest.fixture(scope="session")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
