"""`inspect` against transformers: the next-token table, and the surprisal of every token of a text."""

from __future__ import annotations

import heapq
import json
import math
from pathlib import Path

import pytest
import torch

from gristmill.engine import inspect
from gristmill.errors import RequestError
from gristmill.formats import Model
from gristmill.model import ModelConfig, Transformer
from gristmill.tokenizer import Tokenizer, train_bpe
from tests.tiny_model import randomized

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def model() -> Model:
    tokenizer = train_bpe(iter([Path(heapq.__file__).read_text(encoding="utf-8")]), 450)
    config = ModelConfig(
        vocab_size=460,  # ten rows of padding
        hidden_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=64,
        max_seq_len=64,
    )
    network = randomized(Transformer(config), seed=1, spread=0.2)
    return Model(network.eval(), tokenizer)


@pytest.fixture(scope="module")
def oracle(model, tmp_path_factory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path_factory.mktemp("model")
    model.save(path)
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("text", [TEXT, "é🙂 naïve\n", "x", "<|im_end|>"])
def test_probabilities_are_those_of_transformers(model, oracle, text):
    network, tokenizer = oracle
    ids = tokenizer(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = network(torch.tensor([[tokenizer.bos_token_id, *ids]])).logits[0]
    expected = logits.double().softmax(-1)
    seen = inspect(model, text, top=460)

    assert len(seen.next) == 460 and seen.rest == pytest.approx(0, abs=1e-9)
    assert sum(c.probability for c in seen.next) == pytest.approx(1, abs=1e-9)
    for candidate in seen.next:
        assert candidate.probability == pytest.approx(expected[-1, candidate.id].item(), rel=1e-4)
    assert [c.probability for c in seen.next] == sorted(c.probability for c in seen.next)[::-1]

    assert [t.id for t in seen.tokens] == ids
    total = 0.0
    for at, token in enumerate(seen.tokens):
        p = expected[at, token.id].item()
        total -= math.log(p)
        assert token.probability == pytest.approx(p, rel=1e-4)
        assert token.surprisal == pytest.approx(-math.log2(p), rel=1e-4)
        assert token.rank == 1 + int((expected[at] > p).sum())
    assert seen.loss == pytest.approx(total / len(ids), rel=1e-4)
    assert seen.perplexity == pytest.approx(math.exp(total / len(ids)), rel=1e-3)
    assert seen.bits_per_byte == pytest.approx(total / math.log(2) / len(text.encode()), rel=1e-4)


def test_the_table_is_cut_and_the_rest_is_said(model):
    whole, some = inspect(model, TEXT, top=460), inspect(model, TEXT, top=3)
    assert some.next == whole.next[:3]
    assert some.rest == pytest.approx(sum(c.probability for c in whole.next[3:]), abs=1e-9)


def test_an_empty_text_shows_how_documents_begin(model):
    seen = inspect(model, "")
    assert seen.tokens == () and len(seen.next) == 10
    assert (seen.loss, seen.perplexity, seen.bits_per_byte) == (None, None, None)


def test_without_a_beginning_token_the_first_one_has_no_probability(model):
    config = {key: value for key, value in model.tokenizer.config.items() if key != "bos_token"}
    bare = Model(model.network, Tokenizer(model.tokenizer.backend, config))
    seen = inspect(bare, TEXT)
    assert seen.tokens[0].probability is None and seen.tokens[1].probability is not None
    size = len(TEXT.encode()) - len(seen.tokens[0].token)
    bits = sum(t.surprisal for t in seen.tokens[1:])
    assert seen.bits_per_byte == pytest.approx(bits / size)
    with pytest.raises(RequestError, match="the text is empty"):
        inspect(bare, "")


def test_bad_requests(model):
    with pytest.raises(RequestError, match="do not fit the model's context of 64"):
        inspect(model, "word " * 100)
    with pytest.raises(RequestError, match="top must be at least 1"):
        inspect(model, TEXT, top=0)


def command(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    from gristmill.cli.main import main

    monkeypatch.setattr("sys.argv", ["gristmill", *arguments])
    code = 0
    try:
        main()
    except SystemExit as exit:
        code = int(exit.code or 0)
    return code, *capsys.readouterr()


def test_command_line(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(monkeypatch, capsys, "inspect", TEXT)
    assert code == 2 and not out and "no MODEL was given" in err
    model.save("runs/one/dpo/model")
    Path("runs/one/run.json").write_text('{"model": "dpo/model"}')
    code, out, _ = command(monkeypatch, capsys, "inspect", TEXT, "--top", "4", "--json")
    shown = json.loads(out)
    assert code == 0 and shown["model"] == "runs/one/dpo/model" and shown["text"] == TEXT
    assert [c["probability"] for c in shown["next"]] == pytest.approx(
        [c.probability for c in inspect(model, TEXT, 4).next]
    )
    # of a run, the base model continues text; the one that is tuned to chat is named
    model.save("runs/one/pretrain/model")
    code, out, err = command(monkeypatch, capsys, "inspect", "runs/one", TEXT, "--json")
    assert code == 0 and json.loads(out)["model"] == "runs/one/pretrain/model"
    assert "tuned to chat is runs/one/dpo/model" in err
    # a run or a model without a text is no text: its models are shown
    code, out, _ = command(monkeypatch, capsys, "inspect", "runs/one")
    assert code == 0 and "pretrain/model" in out and "dpo/model *" in out
    assert 'gristmill inspect runs/one "import os"' in out
    code, out, _ = command(monkeypatch, capsys, "inspect", "runs/one/dpo", "--json")
    shown = json.loads(out)
    assert code == 0 and shown["path"] == "runs/one/dpo/model"
    assert shown["parameters"] == model.config.num_parameters
    assert next(t["name"] for t in shown["tensors"]) == "model.embed_tokens.weight"
    # a model by name; brackets in the text are not markup
    code, out, _ = command(monkeypatch, capsys, "inspect", "runs/one/dpo/model", "[bold]x")
    assert code == 0 and "'['" in out and "perplexity" in out and "all others" in out
    code, out, err = command(monkeypatch, capsys, "inspect", "nowhere", TEXT)
    assert code == 2 and not out and "there is no model at nowhere" in err
    code, _, _ = command(monkeypatch, capsys, "inspect", TEXT, "--top", "0")
    assert code == 2
