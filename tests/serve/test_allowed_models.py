"""To a key that may not use a model it is not there, whichever route asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gristmill import serve
from gristmill.engine import Engine
from gristmill.serve.keys import KeyFile, add_key
from tests.tiny_model import random_model

USER = [{"role": "user", "content": "x"}]
ASKING: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": USER, "max_tokens": 1}),
    ("/v1/completions", {"prompt": "x", "max_tokens": 1}),
    ("/v1/responses", {"input": "x", "max_output_tokens": 1}),
    ("/v1/embeddings", {"input": "x"}),
    ("/v1/messages", {"messages": USER, "max_tokens": 1}),
    ("/v1/messages/count_tokens", {"messages": USER}),
    ("/tokenize", {"prompt": "x"}),
    ("/detokenize", {"tokens": [5]}),
]


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client whose key may use the second of two models."""
    path = tmp_path_factory.mktemp("keys") / "keys.jsonl"
    secret = add_key(path, "alice", models=("open",))
    models = [serve.Served(name, Engine(random_model())) for name in ("secret", "open")]
    app = serve.build_app(models, serve.Operations(keys=KeyFile(path)))
    with (
        serve.served(app) as url,
        httpx.Client(base_url=url, headers={"x-api-key": secret}, timeout=60) as client,
    ):
        yield client


@pytest.mark.parametrize(("path", "body"), ASKING)
def test_a_model_that_a_key_may_not_use_is_not_there(
    http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    for named in ({"model": "open"}, {}):  # without a name, the first that it may use
        assert http.post(path, json={**body, **named}).status_code == 200
    refused = {
        name: http.post(path, json={**body, "model": name}) for name in ("secret", "nothing")
    }
    for name, got in refused.items():
        assert got.status_code == 404
        assert got.text.replace(name, "") == refused["nothing"].text.replace("nothing", "")
        assert "'open'" in got.text
        assert name == "secret" or "secret" not in got.text


def test_looking_shows_no_more(http: httpx.Client) -> None:
    assert http.get("/v1/models/open").status_code == 200
    assert http.get("/v1/models/secret").status_code == 404
    assert [each["id"] for each in http.get("/v1/models").json()["data"]] == ["open"]
    assert [each["name"] for each in http.get("/app/info").json()["models"]] == ["open"]
