"""What the app is told of the models, beside what torch and the engine themselves say."""

from __future__ import annotations

import pytest
import torch
from starlette.testclient import TestClient

import gristmill
from gristmill.engine import Engine
from gristmill.kernels import Codes, QuantizedLinear, replace_int8
from gristmill.model import Linear
from gristmill.retrieval import Index
from gristmill.serve.app import build_app
from gristmill.serve.models import Served
from gristmill.serve.web.live import quantization
from tests.serve.web.conftest import State, client_of
from tests.tiny_model import FACTS, random_model


@pytest.fixture(scope="module")
def engine():
    return Engine(random_model(), cache_tokens=1024, cache_dtype="int8")


def test_what_the_menu_offers(engine):
    served = [
        Served("tiny", engine, Index.in_memory(FACTS, []), ("What is it?",)),
        Served("tuned", engine, adapter="tuned"),
    ]
    with client_of(State(models=served, keys_required=True)) as client:
        told = client.get("/app/info").json()
    assert told["version"] == gristmill.__version__
    assert (told["store"], told["keys_required"]) == (False, True)
    first, second = told["models"]
    weights = {id(p): p.numel() for p in engine.model.network.parameters()}
    assert first == {
        "name": "tiny",
        "parameters": sum(weights.values()),
        "context": 192,
        "retrieval": True,
        "examples": ["What is it?"],
        "reasoning": first["reasoning"],
        "tools": first["tools"],
        "adapter_of": None,
    }
    assert isinstance(first["reasoning"], bool)
    assert isinstance(first["tools"], bool)
    assert (second["name"], second["adapter_of"], second["examples"]) == ("tuned", "tiny", [])


def test_the_apps_files_are_asked_about_at_each_use(engine):
    """Else browsers keep some of them for days, and mix two versions after an upgrade."""
    with TestClient(build_app([Served("tiny", engine)]), base_url="http://localhost") as client:
        got = client.get("/static/app.js")
        assert got.status_code == 200 and got.headers["cache-control"] == "no-cache"
        again = client.get("/static/app.js", headers={"if-none-match": got.headers["etag"]})
        assert again.status_code == 304 and again.headers["cache-control"] == "no-cache"


def test_what_is_loaded(engine, store):
    served = [Served("tiny", engine), Served("tuned", engine, adapter="tuned")]
    with client_of(State(store, served)) as client:
        (loaded,) = client.get("/app/models").json()["models"]
        assert client.get("/app/info").json()["store"] is True
    weights = {p.data_ptr(): p.numel() * 4 for p in engine.model.network.parameters()}
    buffers = {b.data_ptr(): b.nbytes for b in engine.model.network.buffers()}
    assert loaded == {
        "name": "tiny",
        "architecture": "Qwen3ForCausalLM",
        "parameters": sum(weights.values()) // 4,
        "quantization": None,
        "weights_bytes": sum((weights | buffers).values()),
        "cache_bytes": engine.cache_bytes,
        "cache_tokens": 1024,
        "context": 192,
        "engine": engine.describe(),
        "adapters": [],
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
def test_the_caches_bytes_are_those_of_its_tensors(dtype):
    engine = Engine(
        random_model(), cache_tokens=512, block_size=64, cache_dtype=dtype, runner="torch"
    )
    cache = engine.runner._cache  # type: ignore[attr-defined]
    assert engine.cache_bytes == sum(t.nbytes for t in (*cache.keys, *cache.values))


def test_how_weights_are_held_is_told_by_layer():
    network = random_model().network
    assert quantization(network) is None
    names = [
        name for name, m in network.named_modules() if isinstance(m, Linear) and "layers" in name
    ]
    replace_int8(network, [f"{name}.weight_scale" for name in names[:2]])
    assert quantization(network) == "int8"
    for name in names[2:]:
        old = network.get_submodule(name)
        q = torch.zeros(old.out_features, old.in_features, dtype=torch.uint8)
        scale, zero = torch.ones(old.out_features, 1), torch.full((old.out_features, 1), 8)
        codes = Codes(q, scale, zero.to(torch.uint8), 4, old.in_features)
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, QuantizedLinear.from_codes(codes))
    assert quantization(network) == "int4, int8"


def test_the_figures_are_the_servers(client):
    response = client.get("/app/stats")
    assert response.json() == {"time": 1.5, "models": {}, "memory_bytes": 7}
    assert response.headers["cache-control"] == "no-store"
