"""Repeated passages against a search that looks every window up."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from corpus import labels_of

from gristmill.data.duplicates.cuts import united
from gristmill.data.duplicates.substring import at_words, cut_passages, repeats
from gristmill.data.write import without


def found(documents: list[np.ndarray], least: int, scratch: Path, memory: int = 1 << 30) -> list:
    total = sum(map(len, documents))
    return list(repeats(lambda: iter(documents), total, least, scratch, memory))


def searched(documents: list[np.ndarray], least: int) -> list[list[bool]]:
    """Which elements go, by looking each window up in all that came before."""
    first: dict[tuple[int, ...], int] = {}
    out, start = [], 0
    for document in documents:
        goes = [False] * len(document)
        for at in range(len(document) - least + 1):
            window = tuple(document[at : at + least].tolist())
            if start + at - first.setdefault(window, start + at) >= least:
                goes[at : at + least] = [True] * least
        out.append(goes)
        start += len(document)
    return out


def as_flags(spans: list[tuple[int, int]], length: int) -> list[bool]:
    flags = [False] * length
    for start, end in spans:
        flags[start:end] = [True] * (end - start)
    return flags


small = st.lists(st.lists(st.integers(0, 2), max_size=40), max_size=6)


@settings(max_examples=150, deadline=None)
@given(small, st.integers(1, 8), st.sampled_from([1 << 30, 500]))
def test_equal_to_a_search(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[int]], least: int, memory: int
) -> None:
    documents = [np.array(values, np.uint16) for values in lists]
    spans = found(documents, least, tmp_path_factory.getbasetemp(), memory)
    flags = [as_flags(s, len(d)) for s, d in zip(spans, documents, strict=True)]
    assert flags == searched(documents, least)
    for document in spans:  # sorted, disjoint, not touching
        assert all(a[1] < b[0] for a, b in pairwise(document))


def test_real_sources_with_one_planted_passage(tmp_path: Path) -> None:
    import calendar
    import textwrap

    one, two = (Path(str(m.__file__)).read_bytes() for m in (calendar, textwrap))
    passage = one[1000:1600]
    planted = two[:900] + passage + two[900:]
    documents = [np.frombuffer(text, np.uint8) for text in (one, two, planted)]
    spans = found(documents, 200, tmp_path)
    assert spans == found(documents, 200, tmp_path, 100_000)  # many passes
    assert spans[0] == spans[1] == [] or all(e - s >= 200 for s, e in spans[0] + spans[1])
    assert without(planted.decode(), spans[2]) == ""  # both halves and the passage stand before
    assert as_flags(spans[2], len(planted)) == searched(documents, 200)[2]


def test_never_across_documents(tmp_path: Path) -> None:
    letters = np.arange(100, dtype=np.uint8)
    assert found([letters[:50], letters[50:], letters], 60, tmp_path) == [[], [], []]
    assert found([letters, letters[:50], letters[50:]], 50, tmp_path) == [[], [(0, 50)], [(0, 50)]]


def test_a_run_of_one_letter_keeps_its_first_window(tmp_path: Path) -> None:
    assert found([np.zeros(100, np.uint8)], 30, tmp_path) == [[(30, 100)]]


def test_large_documents_span_blocks_of_powers(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 50_000, (1 << 20) + 5000).astype(np.uint16)
    tail = values[-100:]  # its powers come from the second block
    assert found([values, tail], 50, tmp_path) == [[], [(0, 100)]]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab é漢\n", max_size=120), st.integers(0, 300), st.integers(0, 300))
def test_cuts_leave_whole_characters(text: str, one: int, two: int) -> None:
    raw = text.encode()
    start, end = sorted((min(one, len(raw)), min(two, len(raw))))
    (cut,) = at_words(raw, [(start, end)]) or [(start, start)]
    assert start <= cut[0] <= cut[1] <= end
    if cut[0] < cut[1]:
        assert (raw[: cut[0]] + raw[cut[1] :]).decode("utf-8", "replace").count("\ufffd") == 0


def test_cuts_end_at_words() -> None:
    text = b"alpha beta gamma delta"
    assert at_words(text, [(2, 19)]) == [(6, 17)]
    assert without(text.decode(), [(6, 17)]) == "alpha delta"
    assert at_words(text, [(0, 22)]) == [(0, 22)]
    assert at_words(text, [(1, 4)]) == []


@pytest.mark.parametrize("least", [0, 1001])
def test_a_length_out_of_range_is_refused(tmp_path: Path, least: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000"):
        found([np.zeros(5, np.uint8)], least, tmp_path)


def test_cuts_of_a_corpus_go_where_texts_are_written(tmp_path: Path) -> None:
    passage = " ".join(f"Satz{n} über{n}" for n in range(40))
    texts = [f"one\n{passage}\nend", "dropped", f"two\n{passage}\nfin", passage[:150]]
    shingle = np.arange(3, dtype=np.uint64)
    labels = labels_of(
        tmp_path, [shingle] * 4, [len(t.encode()) for t in texts], texts=texts, part_rows=2
    )
    labels.drop(np.array([False, True, False, False]), "some_reason")
    labels.cuts[2] = [(0, 4)]  # what an earlier stage took
    cut_passages(labels, tmp_path)
    assert set(labels.cuts) == {2}
    assert without(texts[2], labels.cuts[2]) == "fin"
    assert labels.size.tolist()[2] == 3


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted).map(tuple)))
def test_united_spans_cover_the_same(spans: list[tuple[int, int]]) -> None:
    spans = [span for span in spans if span[0] < span[1]]
    got = united(spans)
    assert as_flags(got, 21) == as_flags(spans, 21)
    assert all(a[1] < b[0] for a, b in pairwise(got))
