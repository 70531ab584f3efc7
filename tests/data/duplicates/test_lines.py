"""Repeated lines and paragraphs against a dictionary of all that came before."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from corpus import labels_of

from gristmill.data.decisions import Labels
from gristmill.data.duplicates.lines import Floor, drop_repeated, pieces
from gristmill.data.write import without

LOW = Floor(3, 1)


def corpus(directory: Path, texts: list[str], kinds: list[str] | None = None) -> Labels:
    sizes = [len(text.encode()) for text in texts]
    shingle = np.arange(3, dtype=np.uint64)
    return labels_of(
        directory, [shingle] * len(texts), sizes, texts=texts, part_rows=2, kinds=kinds
    )


def written(labels: Labels, texts: list[str]) -> list[str | None]:
    """What is left of each, None where it was dropped."""
    assert all(labels.kept[at] for at in labels.cuts)
    kept = labels.kept
    out = [without(t, labels.cuts.get(at, [])) if kept[at] else None for at, t in enumerate(texts)]
    for at, text in enumerate(out):
        assert labels.size[at] == len((texts[at] if text is None else text).encode())
    return out


def one_at_a_time(texts: list[str], apart: str, floor: Floor) -> list[list[str]]:
    """The lines or paragraphs that stay, by a set."""
    seen: set[str] = set()
    out = []
    for text in texts:
        stay = []
        for piece in filter(None, map(str.strip, re.split(apart, text))):
            if len(piece) >= floor.characters and len(piece.split()) >= floor.words:
                if piece in seen:
                    continue
                seen.add(piece)
            stay.append(piece)
        out.append(stay)
    return out


lines = st.sampled_from(["a", "abc", "a bc", "über", "漢字x", "", " ", "abc ", "\tabc", "b c d"])
ends = st.sampled_from(["", "\n", "\n\n", "\n \n"])
texts = st.lists(
    st.builds(lambda rows, end: "\n".join(rows) + end, st.lists(lines, max_size=8), ends),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(texts, st.sampled_from([("lines", "\n"), ("paragraphs", r"\n(?:[ \t]*\n)+")]))
@pytest.mark.parametrize("memory", [1 << 28, 300])
def test_equal_to_a_set(memory: int, texts: list[str], kind: tuple) -> None:
    what, apart = kind
    floor = Floor(3, 1)
    with TemporaryDirectory() as directory:
        labels = corpus(Path(directory), texts)
        drop_repeated(labels, Path(directory), what, floor, memory)
        assert sorted(p.suffix for p in Path(directory).iterdir()) == [".parquet"] * len(
            labels.parts
        )
    left = written(labels, texts)
    expected = one_at_a_time(texts, apart, floor)
    for text, stay, original in zip(left, expected, texts, strict=True):
        assert (text is None) == (not stay and bool(original.strip()))
        if text is not None:
            assert [p for p in map(str.strip, re.split(apart, text)) if p] == stay
            assert not original.endswith("\n") or text.endswith("\n") or not text


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab \n", max_size=40), st.sampled_from(["lines", "paragraphs"]))
def test_pieces_cover_the_text(text: str, what) -> None:
    found = list(pieces(text, what))
    for number, (piece, start, end) in enumerate(found):
        assert text[start:end].strip() == piece
        if number + 1 < len(found):
            assert text[end - 1] == "\n"
    assert "".join("".join(p.split()) for p, _, _ in found) == "".join(text.split())


def test_headings_stay_and_notices_go(tmp_path: Path) -> None:
    notice = "This page was made by the people of the mill and may be copied freely."
    texts = [f"Examples\n\n{notice}\n\n{n} first.\n" for n in range(5)]
    labels = corpus(tmp_path, texts)
    drop_repeated(labels, tmp_path, "lines")
    assert written(labels, texts)[0] == texts[0]
    assert written(labels, texts)[3] == "Examples\n\n\n3 first.\n"
    labels = corpus(tmp_path, texts)
    drop_repeated(labels, tmp_path, "paragraphs", Floor(40, 6))
    assert written(labels, texts)[3] == "Examples\n\n3 first.\n"
    labels = corpus(tmp_path, texts)
    drop_repeated(labels, tmp_path, "paragraphs")  # 72 characters are too few
    assert written(labels, texts) == texts


def test_a_script_without_spaces_is_not_one_word(tmp_path: Path) -> None:
    texts = ["水車小屋の話" * 30 + "\n一\n", "水車小屋の話" * 30 + "\n二\n"]
    labels = corpus(tmp_path, texts)
    drop_repeated(labels, tmp_path, "lines")
    assert written(labels, texts) == [texts[0], "二\n"]


def test_code_stays_and_does_not_count(tmp_path: Path) -> None:
    line = "return the value of the mill and the wheel"
    texts = [line, f"{line}\nmore", f"{line}\nprose", f"{line}\nagain"]
    labels = corpus(tmp_path, texts, kinds=["python", "code", "text", "text"])
    drop_repeated(labels, tmp_path, "lines")
    assert written(labels, texts) == [*texts[:3], "again"]


def test_what_was_cut_before_does_not_count(tmp_path: Path) -> None:
    texts = ["abc def\nend", "dropped", "two\nabc def\nfin", "abc def\nabc def\nx"]
    labels = corpus(tmp_path, texts)
    labels.drop(np.array([1]), "some_reason")
    labels.cuts[0], labels.size[0] = [(0, 8)], 3
    labels.cuts[2], labels.size[2] = [(0, 4)], 11
    drop_repeated(labels, tmp_path, "lines", LOW)
    assert labels.cuts == {0: [(0, 8)], 2: [(0, 4)], 3: [(0, 16)]}
    assert labels.size.tolist() == [3, 7, 11, 1]


def test_a_text_that_repeats_whole_is_dropped_whole(tmp_path: Path) -> None:
    texts = ["abc def\nghi jkl\n", "ghi jkl\n\nabc def", "new\nabc def"]
    labels = corpus(tmp_path, texts)
    drop_repeated(labels, tmp_path, "lines", LOW)
    assert written(labels, texts) == [texts[0], None, "new"]
    assert labels.reasons.names[labels.reason[1]] == "repeated_text"
    assert labels.size[1] == len(texts[1])


def test_a_killed_process_leaves_nothing_that_counts(tmp_path: Path) -> None:
    (tmp_path / "repeated").mkdir()
    (tmp_path / "repeated" / "0.bin").write_bytes(b"half a rec")
    texts = ["abc def\n", "abc def\nx\n"]
    labels = corpus(tmp_path, texts)
    drop_repeated(labels, tmp_path, "lines", LOW)
    assert written(labels, texts) == ["abc def\n", "x\n"]
    assert not (tmp_path / "repeated").exists()
