"""Trace: suffix order against Python's sort, matches and counts against str.find, spans against the documents."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gristmill.data.tokens import TokensConfig
from gristmill.data.tokens import run as encode
from gristmill.data.trace import index_tokens, nearest, open_index, place, said, stories, trace
from gristmill.data.trace.build import sorted_suffixes
from gristmill.data.trace.index import MOST_TOKENS
from gristmill.data.trace.search import find, longest_matches, maximal
from gristmill.errors import RequestError
from gristmill.files import hash_path, read_json, write_json
from gristmill.tokenizer import Tokenizer, train_bpe
from tests.stdlib_documents import stdlib_documents, topic_documents, write_documents

LITTLE_MEMORY = 10 * 2 * MOST_TOKENS  # as little as is allowed: parts of MOST_TOKENS tokens
SEPARATOR = 0


def write_shards(directory: Path, groups: dict[str, list[list[int]]], vocab_size: int) -> Path:
    """Shards of documents that are given as ids, without their separators."""
    dtype = np.uint16 if vocab_size <= 65536 else np.uint32
    splits: dict[str, dict[str, int]] = {}
    directory.mkdir(parents=True, exist_ok=True)
    for group, documents in groups.items():
        whole = [[SEPARATOR, *ids] for ids in documents]
        tokens = np.array([id for ids in whole for id in ids], dtype)
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in whole])]).astype(np.int64)
        np.save(directory / f"train.{group}.npy", tokens)
        np.save(directory / f"train.{group}.offsets.npy", offsets)
        write_json(
            directory / f"train.{group}.ids.json", [f"{group}{i}" for i in range(len(whole))]
        )
        splits[group] = {"tokens": len(tokens), "bytes": 0, "documents": len(whole)}
    write_json(directory / "manifest.json", {"vocab_size": vocab_size, "splits": {"train": splits}})
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(root with documents, tokenizer and tokens; the documents by id) of real text in two groups."""
    root = tmp_path_factory.mktemp("corpus")
    rows = stdlib_documents() + topic_documents()
    write_documents(root / "documents", rows)
    train_bpe((row.text for row in rows), 2000).save(root / "tokenizer")
    inputs = {"documents": root / "documents", "tokenizer": root / "tokenizer"}
    encode(TokensConfig(), inputs, root)
    return root, {row.id: row for row in rows}


@pytest.fixture(scope="module")
def index(corpus):
    index_tokens(corpus[0] / "tokens")
    return open_index(corpus[0] / "tokens")


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return Tokenizer.load(corpus[0] / "tokenizer")


@given(
    st.lists(st.sampled_from([0, 1, 2, 255, 256, 257, 511, 65535]), max_size=40), st.integers(2, 4)
)
@example([1] * 30, 2)
def test_suffixes_are_in_the_order_that_python_sorts(tokens, width):
    array = np.array(tokens, np.uint32)
    order = sorted_suffixes(array, width) if tokens else np.empty(0, int)
    begins = [p // width for p in order.tolist() if p % width == 0]
    assert begins == sorted(range(len(tokens)), key=lambda i: tokens[i:])


def as_text(ids) -> str:
    return "".join(chr(0x4E00 + id) for id in ids)


def overlapping(whole: str, part: str) -> int:
    count, at = 0, whole.find(part)
    while at >= 0:
        count, at = count + 1, whole.find(part, at + 1)
    return count


def check(index, documents: list[list[int]], query: list[int], least: int = 1) -> None:
    """Lengths, maximal spans and counts by searching every document's text, one after another."""
    texts = [as_text(ids) for ids in documents]
    wanted = []
    for start in range(len(query)):
        length = 0
        while start + length < len(query) and any(
            as_text(query[start : start + length + 1]) in text for text in texts
        ):
            length += 1
        wanted.append(length)
    lengths = longest_matches(index, np.array(query))
    assert lengths.tolist() == wanted
    spans = [(i, i + n) for i, n in enumerate(wanted) if n >= least]
    inner = [
        (a, b)
        for a, b in spans
        if not any((c, d) != (a, b) and c <= a and b <= d for c, d in spans)
    ]
    starts = maximal(lengths, least)
    matches = find(index, np.array(query), starts, lengths[starts])
    assert [(match.begin, match.end) for match in matches] == inner
    for match in matches:
        part = as_text(query[match.begin : match.end])
        assert match.places == sum(overlapping(text, part) for text in texts)


DOCUMENTS = st.lists(st.lists(st.integers(1, 4), max_size=30), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, DOCUMENTS, st.lists(st.integers(1, 5), max_size=30), st.integers(1, 3))
@example([[1, 2, 3], [3, 1]], [[2]], [1, 2, 3, 3, 1, 2], 1)  # would go on across documents
@example([[1] * 25], [[1] * 30, []], [1] * 30, 1)
def test_matches_are_those_of_plain_search(tmp_path_factory, first, second, query, least):
    place_ = tmp_path_factory.mktemp("shards")
    shards = write_shards(place_ / "tokens", {"a": first, "b": second}, vocab_size=6)
    index_tokens(shards)
    check(open_index(shards), first + second, query, least)
    shutil.rmtree(place_)


def test_a_separator_in_the_text_ends_matches(tmp_path):
    shards = write_shards(tmp_path / "tokens", {"a": [[1, 2], [3, 4]]}, vocab_size=300)
    index_tokens(shards)
    index = open_index(shards)
    assert longest_matches(index, np.array([1, 2, SEPARATOR, 3, 4])).tolist() == [2, 1, 0, 2, 1]
    assert longest_matches(index, np.array([1, 999, -1, 2])).tolist() == [1, 0, 0, 1]
    assert longest_matches(index, np.array([], int)).tolist() == []


@pytest.mark.parametrize("vocab_size", [2000, 70_000])
def test_many_parts_answer_as_one(corpus, tmp_path, vocab_size):
    """Real text, in parts so small that matches go on behind them; also in three bytes a token."""
    groups = {}
    for group in ("stdlib", "topics"):
        tokens = np.load(corpus[0] / "tokens" / f"train.{group}.npy").astype(np.int64)
        offsets = np.load(corpus[0] / "tokens" / f"train.{group}.offsets.npy")
        shift = vocab_size - 2000  # ids that use the third byte
        groups[group] = [(d[1:] + shift).tolist() for d in np.split(tokens, offsets[1:-1])]
    small = write_shards(tmp_path / "small" / "tokens", groups, vocab_size)
    large = write_shards(tmp_path / "large" / "tokens", groups, vocab_size)
    index_tokens(small, memory=LITTLE_MEMORY * (1 if vocab_size < 65536 else 2))
    index_tokens(large)
    few, many = open_index(large), open_index(small)
    assert len(few.parts) == 2 and len(many.parts) > 15
    longest = max(groups["stdlib"], key=len)
    rng = np.random.default_rng(0)
    query = np.array([*longest[10_000:20_000], *rng.permutation(longest)[:2000], *longest[:300]])
    lengths = longest_matches(few, query)
    assert (longest_matches(many, query) == lengths).all() and lengths[0] >= 10_000
    starts = maximal(lengths, 3)
    one, other = (find(i, query, starts, lengths[starts]) for i in (few, many))
    assert [m.places for m in one] == [m.places for m in other]
    part = as_text(query[starts[-1] : starts[-1] + lengths[starts[-1]]])
    every = [as_text(ids) for documents in groups.values() for ids in documents]
    assert one[-1].places == sum(overlapping(text, part) for text in every) >= 1
    assert (few.counts == many.counts).all() and few.counts.sum() == sum(
        len(ids) + 1 for documents in groups.values() for ids in documents
    )


def test_spans_stand_in_the_documents_they_name(corpus, index, tokenizer):
    root, rows = corpus
    trained = [row for row in rows.values() if row.split == "train"]
    heapq_ = next(row for row in trained if row.source.endswith("heapq.py"))
    unseen = "zyx Wörter, which nobody wrote: 🙂 "
    text = heapq_.text[3000:3600] + unseen + trained[9].text[200:420]
    traced = trace(text, index, tokenizer, root / "documents")
    assert [s.begin for s in traced.spans] == sorted(s.begin for s in traced.spans)
    assert 0.8 < traced.verbatim < 1 and traced.tokens == len(tokenizer.encode(text))
    first = traced.spans[0]
    assert first.places[0].document == heapq_.id and len(first.text) > 500
    assert traced.documents[heapq_.id].source == heapq_.source
    for span in traced.spans:
        assert span.text == text[span.begin : span.end] and span.occurrences >= len(span.places)
        assert len({p.document for p in span.places}) == len(span.places)
        for where in span.places:
            # bytes of half a character at the edges of the context are U+FFFD
            around = where.before.strip("�") + span.text + where.after.strip("�")
            assert around in rows[where.document].text
            assert rows[where.document].split == "train"
            assert where.group == rows[where.document].group
    assert not any(unseen[:12] in span.text for span in traced.spans)
    covered = {i for s in traced.spans for i in range(s.begin, s.end)}
    assert covered == {i for p in traced.passages for i in range(p.begin, p.end)}
    assert sorted(n for p in traced.passages for n in p.spans) == [*range(1, len(traced.spans) + 1)]


def test_no_span_crosses_from_one_document_to_the_next(corpus, index, tokenizer):
    root, _ = corpus
    tokens = np.load(root / "tokens" / "train.topics.npy")
    offsets = np.load(root / "tokens" / "train.topics.offsets.npy")
    end = offsets[5]
    ids = np.concatenate([tokens[end - 40 : end], tokens[end + 1 : end + 41]])
    lengths = longest_matches(index, ids)
    assert lengths[0] == 40 and lengths[40] == 40
    assert (np.arange(40) + lengths[:40] < 60).all()


def test_the_rarest_spans_are_those_of_the_smallest_product(corpus, index, tokenizer):
    root, rows = corpus
    train = [row.text for row in rows.values() if row.split == "train"]
    text = "".join(one[500:560] + "¤¤ " for one in train[:40])
    everything = trace(text, index, tokenizer, spans=10_000, least_tokens=3)
    assert everything.found == len(everything.spans) > 40
    # counted anew from the shards
    ids = np.concatenate(
        [np.load(root / "tokens" / f"train.{group}.npy") for group in ("stdlib", "topics")]
    )
    counts = np.bincount(ids, minlength=2000)
    for span in everything.spans[:20]:
        encoded = tokenizer.plain.encode(text, add_special_tokens=False)
        inside = [
            id
            for id, (a, b) in zip(encoded.ids, encoded.offsets, strict=True)
            if a >= span.begin and b <= span.end and a < b
        ]
        product = -sum(math.log2(counts[id] / len(ids)) for id in inside)
        if len(inside) == span.tokens:
            assert span.bits == pytest.approx(product, abs=1e-3)
    three = trace(text, index, tokenizer, spans=3, least_tokens=3)
    best = sorted((-s.bits, s.begin) for s in everything.spans)[:3]
    assert sorted((-s.bits, s.begin) for s in three.spans) == best
    assert three.found == everything.found and three.verbatim == everything.verbatim
    automatic = trace(text, index, tokenizer, least_tokens=3)
    assert len(automatic.spans) == max(5, math.ceil(0.05 * automatic.tokens))


def test_documents_that_hold_more_of_the_text_come_first(tmp_path, tokenizer):
    ids = tokenizer.encode("the quick brown fox jumps over the lazy dog and runs away from it all")
    half = len(ids) // 2
    filler = tokenizer.encode("import os")
    shards = write_shards(
        tmp_path / "tokens",
        {"a": [ids[:half], ids[:half] + filler, [*ids[half:], *filler, *ids[:half]]]},
        2000,
    )
    index_tokens(shards)
    text = tokenizer.decode(ids)
    traced = trace(text, open_index(shards), tokenizer, per_span=2)
    assert [span.occurrences for span in traced.spans] == [3, 1]
    assert [p.document for p in traced.spans[0].places] == ["a2", "a0"]
    assert [p.document for p in traced.spans[1].places] == ["a2"]


def test_the_index_follows_the_shards(tmp_path):
    shards = write_shards(tmp_path / "tokens", {"a": [[1, 2, 3]], "b": [[4]]}, 6)
    before = hash_path(shards)
    out = index_tokens(shards)
    assert out == place(shards) == tmp_path / "tokens.trace"
    assert hash_path(shards) == before  # a stage's output, which must not change
    made = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    index_tokens(shards)
    assert made == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    # copied, as with a run that is moved to another disk: same content, other times
    content = hash_path(out)
    os.utime(shards / "train.a.npy", ns=(1, 1))
    index_tokens(shards)
    assert (out / "a.0.suffixes.npy").stat().st_mtime_ns == made["a.0.suffixes.npy"]
    # same length, other content
    write_shards(shards, {"a": [[3, 2, 1]], "b": [[4]]}, 6)
    index_tokens(shards)
    assert longest_matches(open_index(shards), np.array([3, 2, 1])).tolist() == [3, 2, 1]
    # a group less: its files go
    write_shards(shards, {"a": [[1, 2, 3]]}, 6)
    index_tokens(shards)
    assert sorted(p.name for p in out.iterdir()) == [
        ".lock", "a.0.first.npy", "a.0.suffixes.npy", "manifest.json",
    ]  # fmt: skip
    # equal shards give equal files, whatever was there
    write_shards(shards, {"a": [[1, 2, 3]], "b": [[4]]}, 6)
    os.utime(shards / "train.a.npy", ns=(1, 1))
    index_tokens(shards)
    for name in ("a.0.suffixes.npy", "b.0.first.npy"):
        twin = write_shards(tmp_path / "twin" / "tokens", {"a": [[1, 2, 3]], "b": [[4]]}, 6)
        assert (index_tokens(twin) / name).read_bytes() == (out / name).read_bytes()
    assert content != hash_path(out)  # the manifest holds times


@pytest.mark.parametrize("harm", ["cut off", "no json", "file gone", "other schema"])
def test_an_index_that_was_not_finished_is_made_anew(tmp_path, harm):
    shards = write_shards(tmp_path / "tokens", {"a": [[1, 2, 3], [2, 3]]}, 6)
    manifest = index_tokens(shards) / "manifest.json"
    if harm == "cut off":  # killed before the manifest
        manifest.unlink()
        (manifest.parent / "a.0.suffixes.npy").write_bytes(b"half")
    elif harm == "no json":
        manifest.write_text("{")
    elif harm == "file gone":
        (manifest.parent / "a.0.first.npy").unlink()
    else:
        write_json(manifest, read_json(manifest) | {"schema": 0})
        with pytest.raises(RequestError, match="has no index"):
            open_index(shards)
    index_tokens(shards)
    assert longest_matches(open_index(shards), np.array([2, 3])).tolist() == [2, 1]


def test_what_are_no_shards_is_named(tmp_path, tokenizer):
    with pytest.raises(RequestError, match="holds no token shards"):
        index_tokens(tmp_path / "nowhere")
    shards = write_shards(tmp_path / "tokens", {"a": [[1, 2, 3]]}, 6)
    with pytest.raises(RequestError, match="has no index"):
        open_index(shards)
    with pytest.raises(RequestError, match="too few to index"):
        index_tokens(shards, memory=1000)
    np.save(shards / "train.a.npy", np.array([0, 1, 2, 9], np.uint16))
    with pytest.raises(RequestError, match="hold id 9"):
        index_tokens(shards)
    np.save(shards / "train.a.npy", np.array([0, 1, 2, 1], np.uint16))
    np.save(shards / "train.a.offsets.npy", np.array([0, 2, 4], np.int64))
    with pytest.raises(RequestError, match="begin with one token"):
        index_tokens(shards)
    (shards / "train.a.npy").write_bytes(b"\x93NUMPY junk")
    with pytest.raises(RequestError, match=r"train\.a\.npy is damaged"):
        index_tokens(shards)
    (shards / "train.a.ids.json").unlink()
    with pytest.raises(RequestError, match=r"ids\.json is missing"):
        index_tokens(shards)


def test_a_text_may_not_be_longer_than_order_holds(index, tokenizer):
    assert len(longest_matches(index, np.ones(MOST_TOKENS, int))) == MOST_TOKENS
    with pytest.raises(RequestError, match="16,385 tokens"):
        longest_matches(index, np.ones(MOST_TOKENS + 1, int))
    empty = trace("", index, tokenizer)
    assert empty.spans == () and empty.verbatim == 0
    with pytest.raises(RequestError, match="surrogate"):
        trace("a\ud800", index, tokenizer)


def test_stories_are_the_rows_without_their_text(corpus):
    root, rows = corpus
    trained = [row for row in rows.values() if row.split == "train"]
    heldout = next(row for row in rows.values() if row.split == "heldout")
    found = stories(root / "documents", [trained[3].id, trained[-1].id, heldout.id, "unknown"])
    assert set(found) == {trained[3].id, trained[-1].id}
    for id, row in found.items():
        assert row.text == "" and (row.source, row.meta) == (rows[id].source, rows[id].meta)
    assert stories(root / "documents", []) == {}


def test_rows_nearest_in_words():
    rows = [
        {"messages": [{"role": "user", "content": "What does `heapq.nlargest` do?"},
                      {"role": "assistant", "content": "Find the n largest elements in a dataset."}]},
        {"prompt": "What does os.walk do?", "chosen": "Directory tree generator.", "rejected": "Heap."},
        {"prompt": [{"role": "user", "content": "the the the"}], "chosen": [], "rejected": None},
        {"other": 1},
    ]  # fmt: skip
    texts = [said(row) for row in rows]
    assert "n largest" in texts[0] and "Directory tree" in texts[1] and texts[3] == ""
    found = nearest(texts, "the n LARGEST elements, with heapq_nlargest", 5)
    assert [number for number, _ in found] == [0, 2] and found[0][1] > found[1][1]
    assert nearest(texts, "generator", 5)[0][0] == 1
    for nothing in ("", "unheard-of", '" OR (', "\0"):
        assert nearest(texts, nothing, 5) == [], nothing
    assert nearest([], "the", 5) == []
    assert len(nearest(["the same"] * 9, "the same", 4)) == 4
