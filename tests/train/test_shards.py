"""Shards that are not what they should be are told before the first step; sound ones are not remarked upon."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gristmill.errors import RequestError
from gristmill.files import read_json, write_json
from gristmill.train import shards
from gristmill.train.pretrain import run
from gristmill.train.windows import Windows
from tests.train.corpus import VOCAB, corpus, tiny_pretrain, write_tokens

LENGTH, START = 16, 1


def sound(size: int = 4000) -> np.ndarray:
    """Documents of 100 tokens, each begun by START."""
    tokens = 2 + np.arange(size) % 97
    tokens[::100] = START
    return tokens


def written(tmp_path: Path, tokens: np.ndarray) -> Path:
    return write_tokens(tmp_path / "tokens", {"train": {"texts": tokens}, "heldout": {}})


def inspected(tmp_path: Path, tokens: np.ndarray, read: int = 4000) -> list[str]:
    directory = written(tmp_path, tokens)
    shards.check(directory)
    return shards.inspect(Windows(directory, "train", LENGTH, {}, 0), VOCAB, START, read)


def test_nothing_is_said_of_a_sound_shard(tmp_path):
    assert inspected(tmp_path, sound()) == []


def test_ids_beyond_the_vocabulary(tmp_path):
    tokens = sound()
    tokens[-1] = VOCAB
    with pytest.raises(
        RequestError, match=r'"texts" holds the token 512, and the vocabulary has 512'
    ):
        inspected(tmp_path, tokens)


def test_doubled_starts_are_counted_wherever_they_lie(tmp_path, monkeypatch):
    """Where a piece ends too, and none twice."""
    monkeypatch.setattr(shards, "_AT_ONCE", 3 * LENGTH)
    tokens = sound()
    for place in (4 * 3 * LENGTH - 1, 300, 301):  # across two pieces; three starts in a row
        tokens[place] = tokens[place + 1] = START
    (said,) = inspected(tmp_path, tokens)
    assert "3 times a document starts right where another does" in said


def test_windows_of_one_token(tmp_path):
    tokens = sound()
    tokens[10 * LENGTH : 13 * LENGTH] = 7
    (said,) = inspected(tmp_path, tokens)
    assert "3 windows of 16 tokens are one token over and over" in said


def test_too_many_epochs(tmp_path):
    assert inspected(tmp_path / "four", sound(), read=16_000) == []
    (said,) = inspected(tmp_path / "five", sound(), read=20_000)
    assert said.startswith('group "texts" is read 5.0 times over')


def test_epochs_follow_the_weights(tmp_path):
    groups = {"large": sound(8000), "small": sound(1000)}
    directory = write_tokens(tmp_path / "tokens", {"train": groups, "heldout": {}})
    windows = Windows(directory, "train", LENGTH, {"large": 1, "small": 1}, 0)
    (said,) = shards.inspect(windows, VOCAB, START, 12_000)
    assert said.startswith('group "small" is read 6.0 times over')


def test_a_truncated_shard(tmp_path):
    path = written(tmp_path, sound()) / "train.texts.npy"
    os.truncate(path, path.stat().st_size - 10)
    with pytest.raises(RequestError, match=r"train\.texts\.npy is truncated or damaged"):
        shards.check(path.parent)


def test_a_shard_of_another_size_than_the_manifest_says(tmp_path):
    path = written(tmp_path, sound()) / "train.texts.npy"
    np.save(path, sound()[:-5].astype(np.uint16))
    with pytest.raises(RequestError, match="holds 3,995 tokens, and the manifest says 4,000"):
        shards.check(path.parent)


def test_a_missing_shard(tmp_path):
    path = written(tmp_path, sound()) / "train.texts.npy"
    path.unlink()
    with pytest.raises(RequestError, match=r"is not there, and .* lists it"):
        shards.check(path.parent)


def test_a_shard_of_another_type(tmp_path):
    path = written(tmp_path, sound()) / "train.texts.npy"
    np.save(path, sound().astype(np.int64))
    with pytest.raises(
        RequestError, match=r"holds int64\[4000\], where the manifest says .* uint16"
    ):
        shards.check(path.parent)


def test_a_run_is_told_before_its_first_step(tmp_path):
    """By the stage itself: warnings go into its metrics, and an error leaves no step done."""
    inputs = corpus(tmp_path)
    config = tiny_pretrain(tokens=512, warm_start="none", evaluations=0, weights={"stdlib": 1.0})
    manifest = read_json(inputs["tokens"] / "manifest.json")
    path = inputs["tokens"] / "train.stdlib.npy"
    tokens = np.load(path)
    tokens[640:768] = 7
    np.save(path, tokens)
    with pytest.warns(UserWarning, match="one token over and over"):
        result = run(config, inputs, tmp_path / "out")
    assert len(result.metrics["warnings"]) == 1
    heldout = np.load(inputs["tokens"] / "heldout.stdlib.npy")
    heldout[5] = 60_000
    np.save(inputs["tokens"] / "heldout.stdlib.npy", heldout)
    with pytest.raises(RequestError, match="holds the token 60000"):
        run(config, inputs, tmp_path / "wrong")
    manifest["dtype"] = "uint32"
    write_json(inputs["tokens"] / "manifest.json", manifest)
    with pytest.raises(RequestError, match="the manifest says one row of uint32"):
        run(config, inputs, tmp_path / "wrong")
    assert not (tmp_path / "wrong" / "metrics.jsonl").exists()
