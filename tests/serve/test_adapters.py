"""Adapters by request: loaded, asked for, counted and named in the metrics, unloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from gristmill import serve
from gristmill.adapters import LoraConfig, add_lora, save_adapter, unload_adapter
from gristmill.engine import Engine
from gristmill.formats import Model
from tests.serve.faults import soon
from tests.tiny_model import random_model

HTTP = httpx.Client(timeout=60)
PROMPT = {"prompt": "Once upon", "max_tokens": 12, "temperature": 0}


def save(model: Model, path: Path, seed: int) -> None:
    """A PEFT adapter that changes what the model says."""
    add_lora(model.network, LoraConfig(rank=4), "made", seed)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if ".lora.made." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(seed)).mul_(0.3)
    save_adapter(model.network, path, "made")
    unload_adapter(model.network, "made")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    model = random_model(max_seq_len=20_000)
    made = [tmp_path_factory.mktemp("adapters") / str(seed) for seed in (1, 2)]
    for seed, path in enumerate(made):
        save(model, path, seed)
    return made


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    model = random_model(max_seq_len=20_000)
    model.tokenizer.stop_ids = frozenset()
    app = serve.build_app(
        [serve.Served("tiny", Engine(model, max_rows=1))], adapters_by_request=True
    )
    with serve.served(app) as address:
        yield address


def post(url: str, path: str, **body: object) -> httpx.Response:
    return HTTP.post(f"{url}/v1/{path}", json=body)


def text(url: str, model: str) -> str:
    got = post(url, "completions", **PROMPT, model=model)
    assert got.status_code == 200, got.text
    return got.json()["choices"][0]["text"]


def labels(url: str, name: str) -> list[dict[str, str]]:
    families = text_string_to_metric_families(HTTP.get(f"{url}/metrics").text)
    return [s.labels for family in families for s in family.samples if s.name == f"vllm:{name}"]


def counted(url: str) -> set[str]:
    return {each["model_name"] for each in labels(url, "generation_tokens_total")}


def test_an_adapter_comes_and_goes(url: str, paths: list[Path]) -> None:
    base = text(url, "tiny")
    assert labels(url, "lora_requests_info") == []
    loaded = post(url, "load_lora_adapter", lora_name="legal", lora_path=str(paths[0]))
    assert loaded.json() == {"status": "ok", "id": "legal"}
    first = text(url, "legal")
    assert first != base == text(url, "tiny")
    assert counted(url) == {"tiny", "legal"}, "by the name that requests use"
    again = post(url, "load_lora_adapter", lora_name="legal", lora_path=str(paths[1]))
    assert again.status_code == 400 and "load_inplace" in again.text
    body = {"lora_name": "legal", "lora_path": str(paths[1]), "load_inplace": True}
    assert post(url, "load_lora_adapter", **body).status_code == 200
    assert text(url, "legal") not in (first, base)
    assert counted(url) == {"tiny", "legal"}
    card = HTTP.get(f"{url}/v1/models/legal").json()
    assert (card["parent"], card["root"]) == ("", "legal")
    assert post(url, "unload_lora_adapter", lora_name="legal").status_code == 200
    assert counted(url) == {"tiny"}, "its series are gone"
    gone = post(url, "completions", **PROMPT, model="legal")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    assert post(url, "unload_lora_adapter", lora_name="legal").status_code == 404
    assert post(url, "unload_lora_adapter", lora_name="tiny").status_code == 400


def test_metrics_tell_which_adapters_run_and_wait(url: str, paths: list[Path]) -> None:
    for name, path in zip(("a", "b"), paths, strict=True):
        post(url, "load_lora_adapter", lora_name=name, lora_path=str(path))

    def in_use() -> tuple[str, str]:
        (info,) = labels(url, "lora_requests_info")
        assert (info["max_lora"], info["model_name"]) == ("2", "tiny")
        return info["running_lora_adapters"], info["waiting_lora_adapters"]

    assert in_use() == ("", "")
    long = {"prompt": "x", "max_tokens": 15_000, "temperature": 0, "stream": True}
    with HTTP.stream("POST", f"{url}/v1/completions", json={**long, "model": "a"}) as first:
        lines = first.iter_lines()  # held: what is let go of is closed
        assert next(lines)
        with httpx.Client(timeout=60) as other:  # there is one place: it waits
            request = other.build_request(
                "POST", f"{url}/v1/completions", json={**long, "model": "b"}
            )
            second = other.send(request, stream=True)
            assert soon(lambda: in_use() == ("a", "b")), in_use()
            second.close()
    assert soon(lambda: in_use() == ("", "")), in_use()


def test_without_the_switch_nothing_is_loaded(paths: list[Path]) -> None:
    app = serve.build_app([serve.Served("tiny", Engine(random_model()))])
    with serve.served(app) as url:
        for path in ("load_lora_adapter", "unload_lora_adapter"):
            got = post(url, path, lora_name="tiny", lora_path=str(paths[0]))
            assert got.status_code == 403 and "--allow-adapters" in got.text
