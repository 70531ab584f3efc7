"""Token shards: exactly the ids that `tokenizers` gives, where the offsets say, the same on every run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from gristmill.data import tokens
from gristmill.data.schema import Document, arrow_schema
from gristmill.data.tokens import TokensConfig, run
from gristmill.errors import RequestError
from gristmill.files import hash_file, hash_path, read_json
from gristmill.tokenizer import train_bpe
from gristmill.train.windows import Windows

TEXTS = [Path(file).read_text(encoding="utf-8") for file in (os.__file__, pa.__file__)]
TEXTS += ["naïve 🙂\r\n", "<|endoftext|> is only text here", "x", "\x00\ufffd你好 " * 5]
GROUPS = ["stdlib", "my notes.v2", "stdlib", "topics", "my notes.v2", "topics"]

RUN = """
import sys
from pathlib import Path
from gristmill.data import tokens
from gristmill.data.tokens import TokensConfig, run
inputs = {"documents": Path(sys.argv[1]), "tokenizer": Path(sys.argv[2])}
run(TokensConfig(), inputs, Path(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokens")
    (root / "documents").mkdir()
    for split in ("train", "heldout", "dropped"):
        rows = [
            asdict(
                Document(
                    f"{split}{i}", text, f"f{i}", "", "", "", "{}", "text", group, "", "", split
                )
            )
            for i, (text, group) in enumerate(zip(TEXTS, GROUPS, strict=True))
            if split == "train" or i % 2
        ]
        pq.write_table(
            pa.Table.from_pylist(rows, schema=arrow_schema()),
            root / "documents" / f"{split}.parquet",
        )
    train_bpe(iter(TEXTS), 500).save(root / "tokenizer")
    return {"documents": root / "documents", "tokenizer": root / "tokenizer"}


def test_shards_hold_the_ids_of_every_document(inputs, tmp_path):
    result = run(TokensConfig(), inputs, tmp_path)
    out = result.outputs["tokens"]
    manifest = read_json(out / "manifest.json")
    assert manifest["vocab_size"] == 500 and manifest["dtype"] == "uint16"
    assert manifest["tokenizer_sha256"] == hash_file(inputs["tokenizer"] / "tokenizer.json")
    assert manifest["splits"] == result.metrics
    oracle = tokenizers.Tokenizer.from_file(str(inputs["tokenizer"] / "tokenizer.json"))
    oracle.encode_special_tokens = True  # tokenizers' own way of reading them as text
    separator = oracle.token_to_id("<|endoftext|>")
    for split in ("train", "heldout"):
        rows = pq.read_table(inputs["documents"] / f"{split}.parquet").to_pylist()
        assert list(manifest["splits"][split]) == sorted({row["group"] for row in rows})
        for group, numbers in manifest["splits"][split].items():
            chosen = [row for row in rows if row["group"] == group]
            tokens = np.load(out / f"{split}.{group}.npy", mmap_mode="r")
            offsets = np.load(out / f"{split}.{group}.offsets.npy")
            assert tokens.dtype == np.uint16 and offsets.dtype == np.int64
            assert read_json(out / f"{split}.{group}.ids.json") == [row["id"] for row in chosen]
            assert offsets[0] == 0 and offsets[-1] == len(tokens) == numbers["tokens"]
            assert len(offsets) == len(chosen) + 1 == numbers["documents"] + 1
            assert numbers["bytes"] == sum(len(row["text"].encode()) for row in chosen)
            for row, start, end in zip(chosen, offsets, offsets[1:], strict=False):
                expected = [separator, *oracle.encode(row["text"], add_special_tokens=False).ids]
                assert tokens[start:end].tolist() == expected, row["id"]


def test_equal_inputs_give_equal_bytes(inputs, tmp_path):
    run(TokensConfig(), inputs, tmp_path / "here")
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    # also without the fast encoder: a module that cannot be imported stands in its way
    script = "import sys; sys.modules['gigatoken'] = None" + RUN
    subprocess.run(
        [sys.executable, "-c", script, *map(str, inputs.values()), tmp_path / "there"],
        env=environment,
        check=True,
    )
    assert hash_path(tmp_path / "here" / "tokens") == hash_path(tmp_path / "there" / "tokens")


def test_large_vocabularies_take_four_bytes(inputs, tmp_path):
    backend = tokenizers.Tokenizer.from_file(str(inputs["tokenizer"] / "tokenizer.json"))
    backend.add_special_tokens([f"<|more_{i}|>" for i in range(65_100)])
    wide = tmp_path / "wide"
    wide.mkdir()
    backend.save(str(wide / "tokenizer.json"))
    (wide / "tokenizer_config.json").write_text(
        '{"bos_token": "<|more_65099|>", "add_bos_token": true}'
    )
    out = run(TokensConfig(), {**inputs, "tokenizer": wide}, tmp_path / "out").outputs["tokens"]
    assert read_json(out / "manifest.json")["dtype"] == "uint32"
    tokens = np.load(out / "train.topics.npy")
    assert tokens.dtype == np.uint32 and tokens[0] == backend.token_to_id("<|more_65099|>") > 65_535


def test_what_is_missing_is_named(inputs, tmp_path):
    with pytest.raises(RequestError, match="holds no documents"):
        run(TokensConfig(), {**inputs, "documents": tmp_path}, tmp_path / "out")
    with pytest.raises(RequestError, match=r"tokenizer\.json is missing"):
        run(TokensConfig(), {**inputs, "tokenizer": tmp_path}, tmp_path / "out")
    bare = tmp_path / "bare"
    bare.mkdir()
    content = read_json(inputs["tokenizer"] / "tokenizer.json") | {"post_processor": None}
    (bare / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match="names neither bos_token nor eos_token"):
        run(TokensConfig(), {**inputs, "tokenizer": bare}, tmp_path / "out")


def test_a_mixture_draws_whole_documents_and_tells_training_the_shares(inputs, tmp_path):
    run(TokensConfig(), inputs, tmp_path / "all")
    everything = read_json(tmp_path / "all/tokens/manifest.json")["splits"]["train"]
    wanted = {
        "stdlib": int(0.8 * everything["stdlib"]["tokens"]),
        "topics": 2 * everything["topics"]["tokens"],
    }
    config = TokensConfig(mix=dict(wanted), budget=sum(wanted.values()), seed=3)
    run(config, inputs, tmp_path / "mixed")
    manifest = read_json(tmp_path / "mixed/tokens/manifest.json")
    shares = manifest["mixture"]
    assert sum(share["tokens"] for share in shares.values()) == config.budget
    assert shares["my notes.v2"]["tokens"] == 0 and "my notes.v2" not in manifest["splits"]["train"]
    assert {name: shares[name]["tokens"] for name in wanted} == wanted
    assert shares["topics"]["epochs"] == 2
    kept = read_json(tmp_path / "mixed/tokens/train.stdlib.ids.json")
    whole = read_json(tmp_path / "all/tokens/train.stdlib.ids.json")
    assert set(kept) < set(whole), "part of an epoch leaves whole documents out"
    shards = {
        name: np.load(tmp_path / name / "tokens/train.stdlib.npy") for name in ("all", "mixed")
    }
    offsets = np.load(tmp_path / "all/tokens/train.stdlib.offsets.npy")
    expected = [shards["all"][offsets[i] : offsets[i + 1]] for i in map(whole.index, kept)]
    assert shards["mixed"].tolist() == [id for document in expected for id in document]
    windows = Windows(tmp_path / "mixed/tokens", "train", 8, {}, 0)
    assert dict(zip(windows.groups, windows.weights, strict=True)) == {
        name: share["tokens"] for name, share in shares.items() if share["tokens"]
    }


def test_a_mixture_that_cannot_be_is_refused(inputs, tmp_path):
    with pytest.raises(RequestError, match="no source is called 'topic'"):
        run(TokensConfig(mix={"topic": 1}), inputs, tmp_path)
    with pytest.raises(RequestError, match="these sources give"):
        run(TokensConfig(mix={"topics": 1}, budget=10**9), inputs, tmp_path)


def test_a_stage_that_was_killed_encodes_no_block_again(inputs, tmp_path, monkeypatch):
    run(TokensConfig(), inputs, tmp_path / "whole")
    seen: list[str] = []

    def broken(self, table, encoder):
        if seen:
            raise KeyboardInterrupt
        seen.append("train")
        return encoded(self, table, encoder)

    encoded = tokens._Encoding._encoded
    monkeypatch.setattr(tokens._Encoding, "_encoded", broken)
    with pytest.raises(KeyboardInterrupt):
        run(TokensConfig(), inputs, tmp_path / "killed")
    assert len(list((tmp_path / "killed/work").iterdir())) == 1
    counted: list[int] = []
    monkeypatch.setattr(tokens._Encoding, "_encoded", lambda *a: counted.append(1) or encoded(*a))
    run(TokensConfig(), inputs, tmp_path / "killed")
    assert len(counted) == 1, "train was there, heldout was not"
    assert hash_path(tmp_path / "killed/tokens") == hash_path(tmp_path / "whole/tokens")
