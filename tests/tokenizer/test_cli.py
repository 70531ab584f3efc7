"""`gristmill tokenizer`: the verbs, one JSON document each, and exit code 2 for what is wrong."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.tokenizer import Tokenizer


@pytest.fixture
def command(monkeypatch, capsys):
    from gristmill.cli.main import main

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["gristmill", "tokenizer", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = int(exit.code or 0)
        return code, *capsys.readouterr()

    return call


def test_train_encode_decode_stats(command, texts, tmp_path, monkeypatch):
    documents = tmp_path / "documents"
    documents.mkdir()
    for split, chosen in (("train", texts[1:]), ("heldout", texts[:1])):
        rows = [{"id": f"{split}{i}", "text": t, "group": "g"} for i, t in enumerate(chosen)]
        pq.write_table(pa.Table.from_pylist(rows), documents / f"{split}.parquet")
    out = tmp_path / "out"
    code, shown, _ = command("train", tmp_path, "-o", out, "--vocab-size", "800", "--json")
    trained = json.loads(shown)
    assert code == 0 and trained["vocab_size"] == 800
    ours = Tokenizer.load(trained["tokenizer"])

    text = "import heapq\n\t<|im_end|> é"
    code, shown, _ = command("encode", out, text, "--json")
    assert json.loads(shown)["ids"] == ours.encode(text)
    code, shown, _ = command("encode", out, text)
    ids = shown.split()
    assert code == 0 and ids == list(map(str, ours.encode(text)))
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert command("encode", out, "-")[1].split() == ids
    code, shown, _ = command("decode", out, *ids)
    assert code == 0 and shown == text + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(ids)))
    assert command("decode", out, "-")[1] == text + "\n"

    code, shown, _ = command("stats", out, documents, "--json")
    assert code == 0
    assert json.loads(shown)["bytes_per_token"] == trained["bytes_per_token"]
    code, shown, _ = command("stats", out, documents, "--peer", f"same={trained['tokenizer']}")
    rate = f"{trained['bytes_per_token']['heldout']:.3f}"
    assert code == 0 and shown.count(rate) >= 2 and "same" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("encode", "nowhere", "x"), "no tokenizer at nowhere"),
        (("decode", "SAVED", "1500"), "there is no token 1500: ids go from 0 to 1499"),
        (("decode", "SAVED", "x"), "'x' is no token id"),
        (("stats", "SAVED"), "holds no documents"),
        (("stats", "SAVED", "--peer", "gpt2"), "--peer takes NAME=FILE"),
        (("stats", "SAVED", "--peer", "gpt2=nowhere.bpe"), "there is no file nowhere.bpe"),
        (("train", "nowhere", "-o", "OUT"), "nowhere holds no documents"),
        (("train", "SAVED", "-o", "OUT", "--vocab-size", "100"), "vocab-size"),
        (("train", "SAVED", "-o", "SAVED/tokenizer.json"), "is a file; -o names a directory"),
    ],
)
def test_wrong_requests(command, saved, tmp_path, arguments, says):
    places = {"SAVED": str(saved), "OUT": str(tmp_path / "out")}
    for word, place in places.items():
        arguments = [argument.replace(word, place) for argument in arguments]
    code, out, err = command(*arguments)
    assert code == 2 and says in err and not out
    assert not (tmp_path / "out").exists()
