"""`gristmill trace` on a run whose stages were really run, from documents to questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gristmill.files import read_json, read_jsonl, write_json
from gristmill.recipe.line import LINE, Node
from gristmill.recipe.manifest import input_entries
from gristmill.tokenizer import train_bpe
from tests.stdlib_documents import stdlib_documents, topic_documents, write_documents

SETTINGS: dict[str, dict[str, Any]] = {
    "facts": {},
    "tokenizer": {"vocab_size": 1500},
    "questions": {"max_facts": 60, "heldout_facts": 10},
    "tokens": {},
}


def finish(run: Path, stage: str, node: Node, manifests: dict[str, Any]) -> None:
    """Run a stage of the real line, and leave what `trace` reads of its manifest."""
    inputs = input_entries(run, node, manifests)
    paths = {name: run / entry["path"] for name, entry in inputs.items()}
    result = node.runner()(node.config_class()(**SETTINGS[stage]), paths, run / stage)
    outputs = {
        name: {"path": path.relative_to(run).as_posix(), "sha256": ""}
        for name, path in result.outputs.items()
    }
    manifests[stage] = {"config": SETTINGS[stage], "inputs": inputs, "outputs": outputs}
    write_json(run / stage / "manifest.json", manifests[stage])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "small"
    rows = stdlib_documents(
        ["heapq", "textwrap", "statistics", "shlex", "fnmatch", "csv", "random"]
    )
    write_documents(run / "data" / "documents", rows + topic_documents()[:20])
    documents = {"path": "data/documents", "sha256": ""}
    manifests: dict[str, Any] = {"data": {"outputs": {"documents": documents}}}
    for stage in SETTINGS:
        finish(run, stage, LINE[stage], manifests)
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def heapq_text() -> str:
    import heapq

    return Path(heapq.__file__).read_text(encoding="utf-8")


def test_a_text_is_led_back_to_its_documents_and_rows(gristmill, run):
    learned = heapq_text()[1000:1400]
    text = f"I say: {learned} qqqq"
    result = gristmill("trace", run, text, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["text"] == text and found["verbatim"] > 0.8
    span = max(found["spans"], key=lambda span: span["tokens"])
    assert text[span["begin"] : span["end"]] == span["text"] and span["text"].strip() in learned
    first = found["documents"][span["places"][0]["document"]]
    assert first["source"].endswith("/heapq.py") and first["split"] == "train"
    assert set(first) >= {"id", "url", "license", "date", "group", "kind", "drop_reason", "meta"}
    assert isinstance(first["meta"], dict) and "text" not in first
    rows = read_jsonl(run / "questions" / "questions" / "sft.train.jsonl")
    for near in found["nearest"]["sft"]:
        assert near["row"] == rows[near["line"] - 1]
    assert (run / "tokens" / "tokens.trace" / "manifest.json").is_file()


def test_the_answer_of_a_training_row_finds_that_row(gristmill, run):
    for name in ("sft", "preferences"):
        row = read_jsonl(run / "questions" / "questions" / f"{name}.train.jsonl")[7]
        said = row["messages"] if name == "sft" else row["chosen"]
        result = gristmill("trace", run, said[-1]["content"], "--json")
        nearest = json.loads(result.out)["nearest"][name]
        answers = [near["row"]["messages" if name == "sft" else "chosen"][-1] for near in nearest]
        assert said[-1] in answers
        scores = [near["score"] for near in nearest]
        assert scores == sorted(scores, reverse=True)


def test_what_a_person_reads(gristmill, run, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr("gristmill.cli.trace_view.out", Console(width=100, highlight=False))
    text = heapq_text()[600:900] + "\x1b[31m [bold]"
    result = gristmill("trace", run, "-", stdin=text)
    assert result.code == 0, result.err
    assert "⟦" in result.out and "⟧[1" in result.out and "\x1b[31m" not in result.out
    assert "[bold]" in result.out
    assert "heapq.py (id " in result.out and "licence not stated" in result.out
    assert "Nearest conversations" in result.out and "assistant: " in result.out
    assert "Nearest preference pairs" in result.out and "rejected: " in result.out
    assert f"gristmill data why {run / 'data' / 'documents'} ID" in " ".join(result.out.split("\n"))
    one = gristmill("trace", run, text, "--spans", 1, "--json")
    assert len(json.loads(one.out)["spans"]) == 1


def test_what_stands_nowhere_is_said(gristmill, run):
    result = gristmill("trace", run, "ʒʒʒ Ωmega ʒʒʒ")
    assert result.code == 0 and "0% of" in result.out and "0 verbatim spans" in result.out
    assert "gristmill data why" not in result.out


def test_a_model_inside_a_run_is_the_runs(gristmill, run):
    (run / "dpo" / "model").mkdir(parents=True)
    assert gristmill("trace", run / "dpo" / "model", heapq_text()[600:900]).code == 0
    write_json(run / "pretrain" / "manifest.json", {"config": {"base": "/models/other"}})
    result = gristmill("trace", run, heapq_text()[600:900])
    assert "went on from /models/other" in result.err


def test_shards_can_be_named_for_what_is_no_run(gristmill, run):
    tokenizer = run / "tokenizer" / "tokenizer"
    text = heapq_text()[600:900]
    stranger = run.parent / "stranger"
    train_bpe(iter([text]), 640).save(stranger)
    write_json(stranger / "config.json", {})
    missing = gristmill("trace", stranger, text)
    assert missing.code == 2 and "--tokens DIR" in missing.err
    model = run.parent / "model"
    shutil.copytree(tokenizer, model)
    write_json(model / "config.json", {})
    named = gristmill("trace", model, text, "--tokens", run / "tokens", "--json")
    assert named.code == 0, named.err
    found = json.loads(named.out)
    assert found["spans"] and found["documents"] == {} and found["nearest"] == {}
    assert gristmill("trace", model, text, "--tokens", run / "tokens").out.count("not at hand") > 0
    whole = ("--tokens", run / "tokens", "--documents", run / "data", "--json")
    assert json.loads(gristmill("trace", model, text, *whole).out)["documents"]
    # another tokenizer
    other = gristmill("trace", stranger, text, "--tokens", run / "tokens")
    assert other.code == 2 and "1,500 ids" in other.err
    (model / "tokenizer.json").write_text((model / "tokenizer.json").read_text() + "\n")
    assert "is not the file" in gristmill("trace", model, text, "--tokens", run / "tokens").err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "text"), "--tokens DIR"),
        (("{run}", " "), "it is empty"),
        (("{run}", "text", "--documents", "."), "belongs to --tokens"),
        (("{run}", "text", "--tokens", "/nowhere"), "holds no token shards"),
        (("{run}", "text", "--least", "0"), "greater than or equal to 1"),
        (("{run}", "word " * 40_000), "at most 16,384"),
    ],
)
def test_wrong_requests(gristmill, run, arguments, says):
    result = gristmill("trace", *(a.replace("{run}", str(run)) for a in arguments))
    assert result.code == 2 and says in result.err, result.err
    assert not result.out


def test_a_stage_that_was_not_finished(gristmill, run):
    write_json(run / "tokens" / "manifest.json", {"outputs": {}})
    result = gristmill("trace", run, "text", "--json")
    assert result.code == 2 and json.loads(result.out)["exit_code"] == 2
    (run / "questions" / "manifest.json").unlink()
    assert "not of a finished stage" in result.err


def test_a_damaged_row_is_named(gristmill, run):
    rows = run / "questions" / "questions" / "sft.train.jsonl"
    rows.write_text('{"messages": []}\n\n{"messages": "text"}\n', encoding="utf-8")
    assert gristmill("trace", run, "some text", "--json").code == 0
    for wrong, says in (("[1]", "must be a JSON object"), ("{", "not JSON")):
        rows.write_text(f"{{}}\n{wrong}\n", encoding="utf-8")
        result = gristmill("trace", run, "some text")
        assert result.code == 2 and f"line 2: {says}" in result.err.replace("a row ", "")


def test_the_index_is_no_part_of_what_the_stage_made(gristmill, run):
    """Otherwise the next `gristmill run` would find the shards changed and make them again."""
    from gristmill.files import hash_path

    shards = run / read_json(run / "tokens" / "manifest.json")["outputs"]["tokens"]["path"]
    before = hash_path(shards)
    assert gristmill("trace", run, heapq_text()[:300]).code == 0
    assert hash_path(shards) == before
