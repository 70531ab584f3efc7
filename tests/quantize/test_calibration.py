"""Windows of calibration text: what is in them, what is refused."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from gristmill.errors import RequestError
from gristmill.files import hash_file, write_json
from gristmill.quantize import PYTHON_DOCS, read_windows
from tests.tiny_model import taught_model

TEXT = "Heaps are arrays for which a[k] <= a[2*k+1]. " * 200


@pytest.fixture(scope="module")
def tokenizer():
    return taught_model().tokenizer


def read(source, tokenizer, **asked):
    return read_windows(source, tokenizer, **{"count": 4, "length": 16, **asked})


def test_windows_are_stretches_of_the_text_in_order(tmp_path, tokenizer):
    file = tmp_path / "a.txt"
    file.write_text(TEXT, encoding="utf-8")
    ids = np.array([*tokenizer.document_start, *tokenizer.encode(TEXT)])
    cut = ids[: len(ids) // 16 * 16].reshape(-1, 16)
    every = read(file, tokenizer, count=len(cut))
    assert np.array_equal(every.tokens.numpy(), cut)  # nothing is padded, nothing twice
    assert every.source_sha256 == hash_file(file)
    some = read(file, tokenizer, seed=3)
    places = [np.flatnonzero((cut == row).all(1)) for row in some.tokens.numpy()]
    assert all(len(place) for place in places) and some.tokens.shape == (4, 16)
    other, again = read(file, tokenizer, seed=4), read(file, tokenizer, seed=3)
    assert some.sha256 == again.sha256 != other.sha256
    content = some.tokens.numpy().astype("<i8").tobytes()
    assert some.sha256 == hashlib.sha256(b"4 16\n" + content).hexdigest()


def test_chats_go_through_the_models_own_template(tmp_path, tokenizer):
    chat = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That. " * 9}]
    file = tmp_path / "a.jsonl"
    rows = [{"messages": chat}, {"text": TEXT[:400]}]
    file.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    ids = tokenizer.chat_ids(chat, add_generation_prompt=False)
    ids += [*tokenizer.document_start, *tokenizer.encode(TEXT[:400])]
    found = read(file, tokenizer, count=len(ids) // 16)
    assert found.tokens.flatten().tolist() == ids[: len(ids) // 16 * 16]
    assert tokenizer.special("<|im_start|>") in found.tokens


def test_a_row_may_hold_what_other_programs_take_for_the_end_of_a_line(tmp_path, tokenizer):
    text = "one\u2028two\x85three. " * 20
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    ids = [*tokenizer.document_start, *tokenizer.encode(text)]
    found = read(file, tokenizer, count=len(ids) // 16)
    assert found.tokens.flatten().tolist() == ids[: len(ids) // 16 * 16]


def test_a_file_that_is_too_large_is_refused_with_the_cure(tmp_path, tokenizer):
    file = tmp_path / "a.txt"
    with open(file, "wb") as opened:
        opened.truncate(300_000_000)  # takes no room on disk
    with pytest.raises(RequestError, match="larger than 256 MB; give a part of it"):
        read(file, tokenizer)


def test_shards_are_read_by_split_and_never_across_groups(tmp_path, tokenizer):
    groups = {"a": np.arange(40), "b": np.arange(100, 135)}
    splits = {"train": {}, "heldout": {"a": {}}}
    for name, ids in groups.items():
        np.save(tmp_path / f"train.{name}.npy", ids.astype(np.uint16))
        splits["train"][name] = {}
    np.save(tmp_path / "heldout.a.npy", np.arange(200, 240).astype(np.uint16))
    write_json(tmp_path / "manifest.json", {"splits": splits})
    found = read(tmp_path, tokenizer)
    starts = [row[0] for row in found.tokens.tolist()]
    assert starts == [0, 16, 100, 116]
    held = read(tmp_path, tokenizer, split="heldout", count=2)
    assert held.tokens[0, 0] == 200 and held.source_sha256 != found.source_sha256
    with pytest.raises(RequestError, match="no token shards of the split other"):
        read(tmp_path, tokenizer, split="other")
    np.save(tmp_path / "train.a.npy", np.array([60_000], np.uint16))
    with pytest.raises(RequestError, match="token 60000, but the tokenizer has"):
        read(tmp_path, tokenizer)


def test_python_docs_are_split_into_chapters_that_differ(tokenizer):
    found = {
        split: read(PYTHON_DOCS, tokenizer, split=split, count=8, length=64)
        for split in ("train", "heldout")
    }
    assert found["train"].source_sha256 != found["heldout"].source_sha256
    rows = {tuple(row) for row in found["train"].tokens.tolist()}
    assert not rows & {tuple(row) for row in found["heldout"].tokens.tolist()}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"", "has 0 tokens, 0 full windows of 16, and 4 × 16 = 64 are needed"),
        ("a.txt", b"short", r"has \d tokens, 0 full windows of 16, and 4 × 16 = 64 are needed"),
        ("a.txt", b"ab\xff", "is not UTF-8 text: byte 2 is wrong"),
        ("a.jsonl", b"\n{]\n", "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', 'line 1 has neither "text" nor "messages"'),
        ("a.jsonl", b"", "has 0 tokens"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, tokenizer, name, content, says):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(RequestError, match=says):
        read(file, tokenizer)


def test_a_short_text_is_enough_where_fewer_are_allowed(tmp_path, tokenizer):
    file = tmp_path / "a.txt"
    file.write_text(TEXT[:200])
    assert 0 < len(read(file, tokenizer, count=999, fewer=True).tokens) < 999
    with pytest.raises(RequestError, match="there is no text file"):
        read(tmp_path / "none.txt", tokenizer)
