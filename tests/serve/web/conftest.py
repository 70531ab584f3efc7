from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from gristmill.errors import GristmillError
from gristmill.serve.errors import ApiError
from gristmill.serve.http import on_error
from gristmill.serve.models import Served
from gristmill.serve.store import Store
from gristmill.serve.web import Attachments, routes


@dataclass
class State:
    """What a server gives the app's routes."""

    store: Store | None = None
    models: list[Served] = field(default_factory=list)
    attachments: Attachments = field(default_factory=Attachments)
    keys_required: bool = False

    def stats(self) -> dict[str, Any]:
        return {"time": 1.5, "models": {}, "memory_bytes": 7}


def client_of(state: State) -> TestClient:
    handlers = {ApiError: on_error, GristmillError: on_error, Exception: on_error}
    app = Starlette(routes=list(routes(state)), exception_handlers=handlers)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def store(tmp_path) -> Iterator[Store]:
    with Store(tmp_path / "serve.sqlite") as opened:
        yield opened


@pytest.fixture
def state(store) -> State:
    return State(store)


@pytest.fixture
def client(state) -> Iterator[TestClient]:
    with client_of(state) as opened:
        yield opened
