"""The OpenAPI document by schemathesis: what it generates gets no status, content type or body that is not documented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as openapi

from gristmill import serve
from gristmill.engine import Engine
from gristmill.serve.api import OPERATIONS
from gristmill.serve.openapi import document
from tests.tiny_model import random_model

CHECKS = [
    not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
    openapi.negative_data_rejection,
    openapi.unsupported_method,
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a model whose context ends soon, so that nothing is long."""
    engine = Engine(random_model(max_seq_len=48))
    path = tmp_path_factory.mktemp("store") / "serve.sqlite"
    with serve.Store(path) as store:
        app = serve.build_app([serve.Served("tiny", engine)], store=store)
        with serve.served(app) as address:
            yield address


SCHEMA = schemathesis.openapi.from_dict(document(OPERATIONS))


@SCHEMA.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_what_is_answered_is_what_is_documented(case: schemathesis.Case, url: str) -> None:
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body["model"] = "tiny"  # else all but a few would be refused for their model
    case.call_and_validate(base_url=url, checks=CHECKS, timeout=60)


def test_every_operation_is_there(url: str) -> None:
    served = httpx.get(f"{url}/openapi.json").json()
    assert served == SCHEMA.raw_schema
    paths = served["paths"]
    there = {(method.upper(), path) for path, item in paths.items() for method in item}
    assert there == {(o.method, o.path.replace(":path", "")) for o in OPERATIONS}


def test_a_method_that_is_not_served_is_told_which_are(url: str) -> None:
    refused = httpx.put(f"{url}/v1/responses/resp_1")
    assert refused.status_code == 405
    assert {"GET", "DELETE"} <= set(refused.headers["allow"].replace(",", " ").split())
