"""What a word is. It weighs more than any limit of the rules, so every profile names its definition.

- "spacy:en": the tokens of spaCy's blank English model, stripped, empty ones left out; punctuation is words of
  its own. Other language codes work where spaCy needs no further package for them.
- "whitespace": what `str.split` gives; in scripts written without spaces every character is a word. No library.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

from gristmill.errors import RequestError, missing_extra


def characters(ranges: str) -> frozenset[str]:
    """Of code points and ranges of them in hexadecimal."""
    ends = [item.partition("-")[::2] for item in ranges.split()]
    return frozenset(chr(c) for a, b in ends for c in range(int(a, 16), int(b or a, 16) + 1))


# What ends a sentence, in all scripts: 159 marks.
TERMINAL = tuple(
    sorted(
        characters(
            "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736"
            " 17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f"
            " 203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9"
            " aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89"
            " 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9"
            " 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c"
            " 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88"
        )
    )
)
# Scripts written without spaces: Thai, Lao, Burmese, Khmer, kana and Han.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)


@dataclass(frozen=True)
class Words:
    """A word definition: words of a text, sentences in a line. Both are called inside `zone()`, which bounds
    what the library remembers to one document."""

    split: Callable[[str], list[str]]
    sentences: Callable[[str], int]
    zone: Callable[[], AbstractContextManager[Any]]


def whitespace_words(text: str) -> list[str]:
    if UNSPACED.search(text):
        text = UNSPACED.sub(r" \g<0> ", text)
    return text.split()


def _whitespace_sentences(line: str) -> int:
    """Words that end with a terminal mark end a sentence; the last one needs none."""
    words = whitespace_words(line)
    return sum(word.endswith(TERMINAL) for word in words[:-1]) + 1 if words else 0


@cache
def definition(words: str) -> Words:
    """The word definition of this name."""
    if words == "whitespace":
        return Words(whitespace_words, _whitespace_sentences, nullcontext)
    pipeline = spacy_pipeline(words)
    pipeline.add_pipe("sentencizer")
    pipeline.max_length = 1 << 40  # its limit is for parsers, and there is none

    def split(text: str) -> list[str]:
        return [word for token in pipeline.tokenizer(text) if (word := token.text.strip())]

    def sentences(line: str) -> int:
        return sum(1 for _ in pipeline(line).sents)

    return Words(split, sentences, pipeline.memory_zone)


def spacy_pipeline(words: str) -> Any:
    """spaCy's blank pipeline that the word definition "spacy:<language>" names."""
    library, _, language = words.partition(":")
    if library != "spacy" or not language:
        raise RequestError(
            f'no definition of words is called "{words}": it is "whitespace" or "spacy:" and a language, '
            'as in "spacy:en"'
        )
    try:
        import spacy
        from spacy.symbols import IDS
        from spacy.tokenizer import Tokenizer
    except ModuleNotFoundError as error:
        raise missing_extra("spacy", "data") from error
    try:
        pipeline, why = spacy.blank(language), None
    except ImportError as error:
        pipeline, why = None, error
    if pipeline is None or not isinstance(pipeline.tokenizer, Tokenizer):
        raise RequestError(
            f'spaCy has no words for "{language}" without further packages; say "whitespace" instead of "{words}"'
        ) from why
    # A name of spaCy's own ("mark", "root", "IS_ALPHA") that is first met inside a memory zone stays in the vocabulary
    # when its memory is given back (3.8): KeyErrors follow, or worse. Met here, it is kept for good.
    for name in filter(None, IDS):
        pipeline.vocab[name]
    return pipeline
