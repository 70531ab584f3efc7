"""A text is cut once, natively: words, lines, paragraphs and their hashes; every signal is read off that.

Words are those of `gristmill.data.text.words`. spaCy cuts what lies between white space independently of what
stands around it, so a chunk is cut once a process and remembered. Plain English shapes are cut natively by spaCy's
rules; every other chunk is asked of spaCy itself. One thing differs: in "foo:) )" spaCy
looks for a longer face over the space, finds that ":))" is not written there, and then leaves ":" and ")" apart;
here a chunk is cut as if it stood alone, and ":)" is a word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from gristmill.data.text.twin import SYMBOLS
from gristmill.data.text.words import TERMINAL, UNSPACED, spacy_pipeline
from gristmill.errors import RequestError

# A chunk and its words are some 150 bytes: 150 MB at most. Then everything is forgotten and learned again.
KNOWN_CHUNKS = 1_000_000
_LINE_BREAKS = frozenset("\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029")
_WHITESPACE, _ASKED, _ENGLISH = 0, 1, 2  # Cut of src/native/text_words.h
Spans = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """A text that was cut. Spans are [n, 2] uint64 of characters, first and behind the last; hashes are uint64 [n].

    Word hashes are polynomials of the word's bytes mod 2^61 - 1; those of lines and paragraphs fold 128-bit products.
    Lines end at every newline; paragraphs are of the stripped text, between two newlines or more.
    """

    text: str
    definition: str
    native: Any

    @property
    def words(self) -> Spans:
        return _spans(self.native.words())

    @property
    def word_hashes(self) -> Spans:
        return np.frombuffer(self.native.word_hashes(), np.uint64)

    @property
    def lines(self) -> Spans:
        return _spans(self.native.lines())

    @property
    def line_hashes(self) -> Spans:
        return np.frombuffer(self.native.line_hashes(), np.uint64)

    @property
    def paragraphs(self) -> Spans:
        return _spans(self.native.paragraphs())

    @property
    def paragraph_hashes(self) -> Spans:
        return np.frombuffer(self.native.paragraph_hashes(), np.uint64)


@dataclass(frozen=True, slots=True)
class Cutter:
    """A word definition with what is known of it: `known` is the native memory, `ask` cuts new chunks, `sentence`
    holds the marks that end a sentence."""

    known: Any
    sentence: frozenset[str]
    ask: Callable[[list[str]], list[list[int]]]

    def learn(self, chunks: Iterable[bytes]) -> None:
        """Cuts `chunks` and remembers them."""
        fresh = list(dict.fromkeys(chunks))
        asked = [chunk.decode("utf-8", "surrogatepass") for chunk in fresh]
        for chunk, ends in zip(fresh, self.ask(asked), strict=True):
            self.known.add(chunk, ends)

    def prepare(self, text: str) -> bytes:
        """The bytes of `text`, when all its characters are known."""
        self.known.trim()
        encoded = text.encode("utf-8", "surrogatepass")
        for page in self.known.missing_pages(encoded):
            self.known.fill(page, *_page(page, self.sentence))
        return encoded


def extension() -> ModuleType | None:
    """The native module, or None where it was not built."""
    try:
        from gristmill import _native
    except ImportError:
        return None
    return _native if hasattr(_native, "TextWords") else None


def segment(text: str, words: str = "spacy:en") -> Segments:
    """Raises RequestError where `words` is no word definition, spaCy is not installed, or there is no extension."""
    native = extension()
    if native is None:
        raise RequestError(
            "the native extension is not built: install a C++ compiler and then gristmill again, or use the signals "
            "of gristmill.data.text.twin"
        )
    known = cutter(words)
    encoded = known.prepare(text)
    cut = native.Text(known.known, encoded)
    if unknown := cut.unknown():
        known.learn(unknown)
        cut = native.Text(known.known, encoded)
    return Segments(text, words, cut)


@cache
def cutter(words: str) -> Cutter:
    """The cutter of a word definition, one a process."""
    native = extension()
    assert native is not None
    if words == "whitespace":
        return Cutter(native.TextWords(_WHITESPACE, KNOWN_CHUNKS, []), frozenset(), lambda _: [])
    pipeline = spacy_pipeline(words)
    tokenizer = pipeline.tokenizer
    english = words == "spacy:en"
    specials = list(tokenizer.rules) if english else []
    known = native.TextWords(_ENGLISH if english else _ASKED, KNOWN_CHUNKS, specials)

    def ask(chunks: list[str]) -> list[list[int]]:
        # A newline is white space that no rule of spaCy joins with anything.
        whole = [chunk for chunk in chunks if not _encodable(chunk)]
        asked = [chunk for chunk in chunks if _encodable(chunk)]
        ends: dict[str, list[int]] = {
            chunk: [len(chunk.encode("utf-8", "surrogatepass"))] for chunk in whole
        }
        if asked:
            with pipeline.memory_zone():
                ends.update(zip(asked, _ends(tokenizer("\n".join(asked)), asked), strict=True))
        return [ends[chunk] for chunk in chunks]

    sentence = frozenset(pipeline.add_pipe("sentencizer").punct_chars)
    return Cutter(known, sentence, ask)


def _ends(tokens: Any, chunks: list[str]) -> list[list[int]]:
    """Where the words of each chunk end, in bytes of the chunk; the chunks stand in lines."""
    found: list[list[int]] = []
    start, at = 0, 0
    places = [(token.idx, token.text) for token in tokens]
    for chunk in chunks:
        ends, size = [], 0
        while at < len(places) and places[at][0] < start + len(chunk):
            size += len(places[at][1].encode())
            ends.append(size)
            at += 1
        found.append(ends)
        start += len(chunk) + 1
        at += 1  # the newline
    return found


def _encodable(chunk: str) -> bool:
    return chunk.isascii() or not any("\ud800" <= c <= "\udfff" for c in chunk)


def _spans(packed: bytes) -> Spans:
    return np.frombuffer(packed, np.uint64).reshape(-1, 2)


def _page(page: int, sentence: frozenset[str]) -> tuple[list[int], list[int]]:
    """Bits and folds of 256 characters; the bits are in the order of src/native/text_chars.h."""
    characters = [chr(c) for c in range(page * 256, page * 256 + 256)]
    tests = _tests(sentence)
    bits = [sum(bool(test(c)) << bit for bit, test in enumerate(tests)) for c in characters]
    return bits, [ord(fold(c)) for c in characters]


def fold(character: str) -> str:
    """Lower case without accents, where that is one character again; else the character."""
    parts = unicodedata.normalize("NFD", character.lower())
    bare = [c for c in parts if unicodedata.category(c) != "Mn"]
    return bare[0] if len(bare) == 1 else character


@cache
def _tests(sentence: frozenset[str]) -> tuple[Callable[[str], Any], ...]:
    terminal = frozenset(TERMINAL)
    return (
        str.isspace,
        str.isalpha,
        str.isalnum,
        str.isupper,
        lambda c: unicodedata.category(c)[0] == "P",
        SYMBOLS.__contains__,
        terminal.__contains__,
        sentence.__contains__,
        str.isdecimal,
        _LINE_BREAKS.__contains__,
        lambda c: unicodedata.category(c) == "Mn",
        UNSPACED.match,
    )
