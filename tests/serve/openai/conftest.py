from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from gristmill import serve
from gristmill.engine import Engine
from gristmill.serve.store import Store
from tests.serve.openai.thinker import thinking_model
from tests.tiny_model import random_model


@pytest.fixture(scope="session")
def thinker() -> Engine:
    return Engine(thinking_model())


@pytest.fixture(scope="session")
def thinker_url(thinker: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that keeps responses. Its second model, "plain", writes at random, and never thinks."""
    plain = Engine(random_model(max_seq_len=2048))
    models = [serve.Served("thinker", thinker), serve.Served("plain", plain)]
    path = tmp_path_factory.mktemp("store") / "serve.sqlite"
    with Store(path) as store, serve.served(serve.build_app(models, store=store)) as url:
        yield url


@pytest.fixture(scope="session")
def sdk(thinker_url: str) -> OpenAI:
    return OpenAI(base_url=f"{thinker_url}/v1", api_key="none", max_retries=0)
