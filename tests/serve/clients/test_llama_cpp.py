"""llama.cpp's server beside ours on the same GGUF files: shapes of answers, ends, counts, texts, log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from gristmill import serve
from gristmill.engine import Engine
from gristmill.formats import Model, convert
from gristmill.formats.gguf import GGUFFile, write_gguf
from gristmill.formats.gguf_models.model import save_gguf
from tests.llama_cpp import running
from tests.tiny_model import QUESTIONS, taught_model

HTTP = httpx.Client(timeout=60)
STORIES = Path("../shared/data/models/stories260K.bin")
THEIRS = {"timings"}  # and what else is llama.cpp's alone
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": QUESTIONS[0]}]},
    {"messages": [{"role": "user", "content": QUESTIONS[1]}], "max_tokens": 5},
    {"messages": [{"role": "user", "content": QUESTIONS[2]}], "stop": ["escaped"]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": QUESTIONS[0]},
            {"role": "assistant", "content": "It finds what is large."},
            {"role": "user", "content": QUESTIONS[2]},
        ],
        "max_tokens": 12,
    },
]
TEXTS: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "max_tokens": 60},
    {"prompt": "Lily and Tom went to", "max_tokens": 40, "stop": ["."]},
    {"prompt": "One day, a bird", "max_tokens": 1},
]


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, str]]]:
    """For each model our server and llama.cpp's."""
    root = tmp_path_factory.mktemp("gguf")
    files = {name: root / f"{name}.gguf" for name in ("taught", "stories")}
    model = taught_model()
    save_gguf(model.network, model.tokenizer, root / "with_bos.gguf", "F32")
    without_bos(root / "with_bos.gguf", files["taught"])
    convert(STORIES, files["stories"], quant="F32")
    with ExitStack() as stack:
        engines = {n: Engine(Model.load(p), cache_dtype="float32") for n, p in files.items()}
        app = serve.build_app([serve.Served(name, engine) for name, engine in engines.items()])
        ours = stack.enter_context(serve.served(app))
        yield {
            name: (ours, stack.enter_context(running(path, engines[name].context)).url)
            for name, path in files.items()
        }


def without_bos(path: Path, target: Path) -> None:
    """llama.cpp puts the BOS that prompts have before chats too; transformers, whose templates say all, does not."""
    file = GGUFFile.open(path)
    metadata = {**file.typed_metadata, "tokenizer.ggml.add_bos_token": False}
    tensors = [(i.name, i.shape, i.type, file.raw(i.name)) for i in file.tensors.values()]
    write_gguf(target, metadata, tensors)


def both(urls: tuple[str, str], route: str, model: str, body: dict[str, Any]) -> list[Any]:
    asked = {"temperature": 0, "model": model, "cache_prompt": False, **body}
    got = [HTTP.post(f"{url}/v1/{route}", json=asked) for url in urls]
    assert [each.status_code for each in got] == [200, 200], got[1].text
    return [each.json() for each in got]


def keys(value: Any) -> Any:
    """The names in a document and what they hold, as far as names go."""
    if isinstance(value, dict):
        return {name: keys(each) for name, each in value.items() if name not in THEIRS}
    return [keys(value[0])] if isinstance(value, list) and value else None


def missing(ours: Any, theirs: Any, place: str = "") -> list[str]:
    """Names that theirs has and ours has not."""
    if isinstance(theirs, list):
        return missing(ours[0], theirs[0], f"{place}[]") if ours else [place]
    if not isinstance(theirs, dict):
        return []
    found = [f"{place}.{name}" for name in theirs if name not in (ours or {})]
    shared = [name for name in theirs if name in (ours or {})]
    return found + [m for n in shared for m in missing(ours[n], theirs[n], f"{place}.{n}")]


def counted(usage: dict[str, Any]) -> list[int]:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return [usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")]


@pytest.mark.parametrize("body", CHATS)
def test_chat(urls: dict[str, tuple[str, str]], body: dict[str, Any]) -> None:
    asked = {**body, "logprobs": True, "top_logprobs": 3}
    ours, theirs = both(urls["taught"], "chat/completions", "taught", asked)
    assert missing(keys(ours), keys(theirs)) == [
        ".choices[].logprobs.content[].id",  # its own; ours has the bytes as well
        ".choices[].logprobs.content[].top_logprobs[].id",
    ]
    (our,), (their,) = ours["choices"], theirs["choices"]
    assert our["message"]["content"] == their["message"]["content"]
    assert our["finish_reason"] == their["finish_reason"]
    assert counted(ours["usage"]) == counted(theirs["usage"])
    if "stop" in body:  # it leaves out tokens that it held back
        return
    entries = our["logprobs"]["content"], their["logprobs"]["content"]
    for mine, other in zip(*entries, strict=False):
        assert mine["bytes"] == other["bytes"]
        assert mine["logprob"] == pytest.approx(other["logprob"], abs=0.1)
        assert mine["top_logprobs"][0]["bytes"] == other["top_logprobs"][0]["bytes"]
    assert min(map(len, entries)) > 4


@pytest.mark.parametrize("body", TEXTS)
def test_completions(urls: dict[str, tuple[str, str]], body: dict[str, Any]) -> None:
    ours, theirs = both(urls["stories"], "completions", "stories", body)
    assert missing(keys(ours), keys(theirs)) == []
    (our,), (their,) = ours["choices"], theirs["choices"]
    assert (our["text"], our["finish_reason"]) == (their["text"], their["finish_reason"])
    assert counted(ours["usage"]) == counted(theirs["usage"])
    ours, theirs = both(urls["stories"], "completions", "stories", {**body, "logprobs": 2})
    mine = ours["choices"][0]["logprobs"]["token_logprobs"]
    others = [entry["logprob"] for entry in theirs["choices"][0]["logprobs"]["content"]]
    # It leaves out tokens that it held back for a stop string.
    least = 3 if "stop" in body else body["max_tokens"]
    assert min(len(mine), len(others)) >= least
    assert mine[: len(others)] == pytest.approx(others[: len(mine)], abs=0.1)


@pytest.mark.parametrize("body", CHATS)
def test_streams(urls: dict[str, tuple[str, str]], body: dict[str, Any]) -> None:
    asked = {
        **body,
        "model": "taught",
        "temperature": 0,
        "cache_prompt": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    told = []
    for url in urls["taught"]:
        lines = HTTP.post(f"{url}/v1/chat/completions", json=asked).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        told.append([json.loads(line.removeprefix("data: ")) for line in lines[:-2]])
    ours, theirs = told
    for place in (0, 1, -2, -1):
        assert missing(keys(ours[place]), keys(theirs[place])) == []
    texts = [
        "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks[:-1])
        for chunks in told
    ]
    assert texts[0] == texts[1]
    assert ours[-2]["choices"][0]["finish_reason"] == theirs[-2]["choices"][0]["finish_reason"]
    assert counted(ours[-1]["usage"]) == counted(theirs[-1]["usage"])


@pytest.mark.parametrize(
    "body",
    [
        {"messages": "hi"},
        {},
        {"messages": [{"role": "user", "content": "a b " * 900}]},
        {"messages": [{"role": "user", "content": "x"}], "temperature": "hot"},
    ],
)
def test_refusals_have_one_shape(urls: dict[str, tuple[str, str]], body: dict[str, Any]) -> None:
    ours, theirs = [
        HTTP.post(f"{url}/v1/chat/completions", json={"model": "taught", **body})
        for url in urls["taught"]
    ]
    assert ours.status_code == 400 and 400 <= theirs.status_code <= 500
    assert {"message", "type"} <= ours.json()["error"].keys() & theirs.json()["error"].keys()
