"""Words, lines and paragraphs of the native pass, against spaCy itself and Python's own string methods."""

from __future__ import annotations

import pydoc_data.topics
import re
from pathlib import Path

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.data.text import segment
from gristmill.data.text.segment import KNOWN_CHUNKS, cutter, fold
from gristmill.data.text.words import whitespace_words
from gristmill.errors import RequestError

ENGLISH = spacy.blank("en").tokenizer
SHARED = Path(__file__).parents[4] / "shared/data/text"
# Pieces that meet spaCy's rules at their borders: its exceptions, marks, numbers, links, other scripts.
_WRITTEN = """
word Word WORD McD it's don't cannot Dr. Co Adm. etc. U.S. e.g. a I id wed 'em and/or Ph.D. Is ’s 's 'S S
' " “ ” ‘ ’ ( ) [ ] { } < > . .. ... … , ; : ! ? - -- – — / \\ | # * & _ + = % $ @ ~ ^
1 8 10 10am 3.14 1,000 12. 0.0 5km 7% 20°C. x2 2x https://a.org/b?c=d a@b.org www.x.de C++ v1.2.3
café naïve Straße ä. größer. русский слово. 中文 日本 ไทย ½ ² № ™ 🙂 \u200b \u0301 \u00ad \ufeff İ ŉ
"""
PIECES = _WRITTEN.split()


def words_of(text: str, words: str = "spacy:en") -> list[str]:
    return [text[int(a) : int(b)] for a, b in segment(text, words).words]


def spacy_words(text: str) -> list[str]:
    return [word for token in ENGLISH(text) if (word := token.text.strip())]


@pytest.mark.parametrize("name", ["topics", *sorted(p.name for p in SHARED.glob("*.txt"))])
def test_words_of_real_text_are_spacys(name: str) -> None:
    texts = list(pydoc_data.topics.topics.values())
    if name != "topics":
        texts = [(SHARED / name).read_text(encoding="utf-8")[:200_000]]
    for text in texts:
        assert words_of(text) == spacy_words(text)


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=5).map("".join))
def test_a_chunk_is_cut_as_spacy_cuts_it(chunk: str) -> None:
    assert words_of(chunk) == spacy_words(chunk)


@settings(max_examples=1500, deadline=None)
@given(st.text(st.sampled_from("aBs'’.,-:;!?()[]\"”“1 "), max_size=8))
def test_marks_around_letters_are_cut_as_spacy_cuts_them(text: str) -> None:
    # Newlines keep faces from reaching over white space: see the module's docstring.
    text = text.replace(" ", "\n")
    assert words_of(text) == spacy_words(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_the_words_lines_and_paragraphs_of_python(text: str) -> None:
    assert words_of(text, "whitespace") == whitespace_words(text)
    cut = segment(text, "whitespace")
    assert [text[int(a) : int(b)] for a, b in cut.lines] == text.split("\n")
    assert [text[int(a) : int(b)] for a, b in cut.paragraphs] == re.split("\n{2,}", text.strip())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "a b", "é", "", " a"]), min_size=1, max_size=12))
def test_equal_hashes_are_equal_pieces(parts: list[str]) -> None:
    text = "\n".join(parts)
    cut = segment(text, "whitespace")
    for names, hashes in (
        (text.split("\n"), cut.line_hashes),
        (text.split(), cut.word_hashes),
        (re.split("\n{2,}", text.strip()), cut.paragraph_hashes),
    ):
        assert len(set(names)) == len(set(hashes.tolist()))
        assert len(names) == len(hashes)


def test_lone_surrogates_are_characters_of_a_word() -> None:
    assert words_of("a \ud800b c") == ["a", "\ud800b", "c"]


def test_what_is_known_is_forgotten_and_learned_again() -> None:
    known = cutter("spacy:en").known
    text = " ".join(f"a{n}" for n in range(1000))
    before = words_of(text)
    assert known.known() >= 1000
    native = type(known)(2, 10, [])
    native.fill(0, [1 if chr(c).isspace() else 2 for c in range(256)], list(range(256)))
    for n in range(20):
        native.add(f"a{n}".encode(), [2 if n < 10 else 3])
    assert native.known() == 20
    native.trim()
    assert native.known() == 0
    assert words_of(text) == before
    assert KNOWN_CHUNKS >= 1000


def test_ends_of_words_that_cannot_be_are_refused() -> None:
    known = cutter("whitespace").known
    for ends in ([], [1], [2, 1, 3], [4], [0, 3]):
        with pytest.raises(ValueError, match="end"):
            known.add(b"abc", ends)


def test_names_that_are_no_definition_of_words() -> None:
    with pytest.raises(RequestError, match="whitespace"):
        segment("a", "words")
    with pytest.raises(RequestError, match="further packages"):
        segment("a", "spacy:zzz")


def test_folding_takes_case_and_accents() -> None:
    assert [fold(c) for c in "AÉñßİ中"] == ["a", "e", "n", "ß", "i", "中"]
