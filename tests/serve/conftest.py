"""A real server on loopback: uvicorn, the engine's thread, an index of three facts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from openai import OpenAI

from gristmill.engine import Engine
from gristmill.retrieval import Index, build
from gristmill.serve import address_of, build_app, listen
from tests.tiny_model import FACTS, QUESTIONS, taught_model

Served = Callable[..., Iterator[str]]


@contextmanager
def served(engine: Engine, index: Index | None = None, examples: tuple[str, ...] = ()):
    """Yields the server's URL while it runs."""
    listener = listen("127.0.0.1", 0)
    app = build_app(engine, "tiny", index, examples)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()


@pytest.fixture(scope="session")
def serve_engine() -> Callable:
    return served


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
