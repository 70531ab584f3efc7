"""Training: deterministic, exact in size, complete in bytes; its numbers recomputed by other libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken
from pydantic import ValidationError

from gristmill.errors import RequestError
from gristmill.tokenizer import TokenizerConfig, train_bpe
from gristmill.tokenizer.patterns import GPT2, to_bytes
from gristmill.tokenizer.training import SPECIALS, run, sample_texts

TRAIN = """
import sys
from pathlib import Path
from gristmill.tokenizer import TokenizerConfig
from gristmill.tokenizer.training import run
run(TokenizerConfig(vocab_size=700, max_bytes=150_000), {"documents": Path(sys.argv[1])}, Path(sys.argv[2]))
"""


def write_documents(path, texts, reverse=False):
    path.mkdir()
    rows = [
        {"id": f"{split}{i}", "text": text, "group": group}
        for split, group, i, text in (
            ("train" if i % 4 else "heldout", "ab"[i % 2], i, text) for i, text in enumerate(texts)
        )
    ]
    for split in ("train", "heldout"):
        chosen = [row for row in rows if row["id"].startswith(split)]
        table = pa.Table.from_pylist(chosen[::-1] if reverse else chosen)
        pq.write_table(table, path / f"{split}.parquet")
    return path


@pytest.fixture(scope="module")
def documents(texts, tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("data") / "documents", texts)


def test_same_file_whatever_threads_hash_seed_and_order(texts, documents, tmp_path):
    reversed_ = write_documents(tmp_path / "documents", texts, reverse=True)
    made = []
    for threads, seed, source in (
        ("1", "1", documents),
        ("2", "2", documents),
        ("2", "3", reversed_),
    ):
        out = tmp_path / f"out{len(made)}"
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", TRAIN, source, out], env=environment, check=True)
        made.append((out / "tokenizer" / "tokenizer.json").read_bytes())
    assert made[0] == made[1] == made[2]
    assert len(json.loads(made[0])["model"]["merges"]) == 700 - 256 - len(SPECIALS)


def test_vocabulary_is_exact_and_control_tokens_come_last(tokenizer):
    assert tokenizer.vocab_size == 1500
    assert list(tokenizer.special_tokens) == list(SPECIALS)
    assert list(tokenizer.special_tokens.values()) == list(range(1500 - len(SPECIALS), 1500))
    singles = [tokenizer.token_bytes(id) for id in range(256)]
    assert sorted(singles) == [bytes([byte]) for byte in range(256)]


def test_a_text_too_small_fills_up_with_reserved_tokens():
    small = train_bpe(iter(["abab"]), vocab_size=400)
    assert small.vocab_size == 400
    assert small.special("<|reserved_60|>") > small.special("<|reserved_59|>")
    assert small.decode(small.encode("zß🙂")) == "zß🙂"


def test_an_endless_word_does_not_stall_training():
    # 2 MB of one word: without a limit each of its merges walks through all of it
    text = "".join(chr(97 + (i * i // 7) % 26) for i in range(2_000_000))
    assert train_bpe(iter([text, "some words"]), vocab_size=1000).vocab_size == 1000


def test_no_token_crosses_the_split_pattern(tokenizer):
    import regex

    from gristmill.tokenizer.patterns import LLAMA3

    control = set(tokenizer.special_tokens.values())
    for id in range(tokenizer.vocab_size):
        text = tokenizer.token_bytes(id).decode("utf-8", errors="ignore")
        if id not in control and text and "\ufffd" not in text:
            assert len(regex.findall(LLAMA3, text)) <= 1 or text.isspace(), repr(text)


def test_metrics_are_what_other_libraries_count(documents, tmp_path, shared_file):
    peer = shared_file("vocab.bpe")
    config = TokenizerConfig(vocab_size=900, peers={"gpt2": str(peer)})
    result = run(config, {"documents": documents}, tmp_path)
    from transformers import AutoTokenizer

    ours = AutoTokenizer.from_pretrained(result.outputs["tokenizer"])
    ranks = {to_bytes(k): v for k, v in json.loads(shared_file("encoder.json").read_text()).items()
             if k != "<|endoftext|>"}  # fmt: skip
    gpt2 = tiktoken.Encoding("gpt2", pat_str=GPT2, mergeable_ranks=ranks, special_tokens={})
    rows = pq.read_table(documents / "heldout.parquet").to_pylist()
    size = sum(len(row["text"].encode()) for row in rows)
    counts, used = {}, set()
    for row in rows:
        ids = ours(row["text"], add_special_tokens=False)["input_ids"]
        counts[row["group"]] = counts.get(row["group"], 0) + len(ids)
        used |= set(ids)
    metrics = result.metrics
    assert metrics["bytes_per_token"]["heldout"] == round(size / sum(counts.values()), 4)
    assert metrics["bytes_per_token"]["by_group"].keys() == counts.keys()
    theirs = sum(len(gpt2.encode_ordinary(row["text"])) for row in rows)
    assert metrics["peers"] == {"gpt2": round(size / theirs, 4)}
    assert metrics["unused_tokens"] == 900 - len(SPECIALS) - len(used)
    assert metrics["vocab_size"] == 900 and metrics["heldout_bytes"] == size


def test_the_sample_is_bounded_and_follows_the_seed(documents):
    whole = sample_texts(documents, 10**9, seed=0)
    some = sample_texts(documents, 50_000, seed=0)
    assert some == whole[: len(some)] and 0 < len(some) < len(whole)
    assert sum(len(t.encode()) for _, t in some[:-1]) < 50_000
    assert [id for id, _ in sample_texts(documents, 10**9, seed=1)] != [id for id, _ in whole]


def test_bad_requests(tmp_path):
    with pytest.raises(RequestError, match=r"train\.parquet is missing"):
        run(TokenizerConfig(), {"documents": tmp_path}, tmp_path / "out")
    with pytest.raises(RequestError, match=r"peers: there is no file .*nothere\.bpe"):
        config = TokenizerConfig(peers={"gpt2": str(tmp_path / "nothere.bpe")})
        run(config, {"documents": tmp_path}, tmp_path / "out")
    with pytest.raises(ValidationError):
        TokenizerConfig(vocab_size=300)
    assert not (tmp_path / "out").exists()
