"""Mixtures from small runs: the source that is like the target gets the weight, and a search goes on where it was."""

from __future__ import annotations

import random
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gristmill.data.schema import Document, arrow_schema
from gristmill.data.tokens import TokensConfig, run
from gristmill.errors import RequestError
from gristmill.tokenizer import train_bpe
from gristmill.train import mixing
from gristmill.train.mixing import Search, learn_mixture

SEARCH = Search("wanted", runs=10, tokens=16_384, layers=1, hidden=32, context=32, batch_tokens=512)


def story(rng: random.Random, words: list[str]) -> str:
    return " ".join(
        f"{a} {b}."
        for a, b in zip(rng.choices(words, k=150), rng.choices(words, k=150), strict=True)
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, Path]:
    """Two groups of one language and one of noise; "wanted" is held out alone."""
    root, rng = tmp_path_factory.mktemp("mixing"), random.Random(1)
    words = {
        "wanted": [f"mill{c}" for c in "abcdefgh"],
        "like": [f"mill{c}" for c in "abcdefgh"],
        "noise": ["".join(rng.choices("qxzjkv", k=4)) for _ in range(200)],
    }
    (root / "documents").mkdir()
    for split in ("train", "heldout", "dropped"):
        rows = [
            asdict(
                Document(
                    f"{split}-{group}-{i}",
                    story(rng, words[group]),
                    "",
                    "",
                    "",
                    "",
                    "{}",
                    "text",
                    group,
                    "",
                    "",
                    split,
                )
            )
            for group in words
            for i in range(12)
            if split == "train" or (split == "heldout" and group == "wanted")
        ]
        pq.write_table(
            pa.Table.from_pylist(rows, schema=arrow_schema()), root / f"documents/{split}.parquet"
        )
    texts = [row["text"] for row in pq.read_table(root / "documents/train.parquet").to_pylist()]
    train_bpe(iter(texts), 400).save(root / "tokenizer")
    inputs = {"documents": root / "documents", "tokenizer": root / "tokenizer"}
    return run(TokensConfig(), inputs, root).outputs["tokens"], root / "tokenizer"


def test_what_is_like_the_target_gets_the_weight(corpus, tmp_path, monkeypatch):
    tokens, tokenizer = corpus
    found = learn_mixture(tokens, tokenizer, tmp_path, SEARCH)
    assert found.weights["noise"] < 0.2 < found.weights["wanted"] + found.weights["like"]
    assert sum(found.weights.values()) == pytest.approx(1)
    monkeypatch.setattr(mixing, "_loss", lambda *_: pytest.fail("measured again"))
    assert learn_mixture(tokens, tokenizer, tmp_path, SEARCH) == found
    assert learn_mixture(tokens, tokenizer, tmp_path, replace(SEARCH, runs=8)) != found


def test_a_target_without_held_out_text_is_refused(corpus, tmp_path):
    with pytest.raises(RequestError, match='no held-out text of a group "noise"'):
        learn_mixture(*corpus, tmp_path, replace(SEARCH, target="noise"))
