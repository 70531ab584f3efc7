"""The signals of a text in plain Python: what the native pass of `gristmill.data.text` must equal.

A signal is a number and never a decision; `gristmill.data.rules` holds the limits. The definitions of the web
signals are datatrove 0.10's (Gopher: arXiv 2112.11446 table A1; C4: JMLR 21/20-074; FineWeb: arXiv 2406.17557),
whose decisions tests/data/test_parity_datatrove.py compares. Lengths are Python characters throughout.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from gristmill.data.text.words import TERMINAL, Words, characters, definition, whitespace_words

Signals = dict[str, float]

# A word of these alone is a symbol. ff11, a full-width digit one, stands in datatrove's list, so it does in ours.
SYMBOLS = frozenset(TERMINAL) | characters(
    "0-8 b-1f 21-2f 3a-40 5b-60 7b-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001-3002 3008-300d"
    " 3010-3011 ff01 ff05 ff08-ff09 ff0c ff0e ff11 ff1a-ff1b ff1f ff5e"
)
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
SHORT_LINE = 30  # characters, of fineweb's short_line_ratio
SHORT_REPEAT = 12  # characters: shorter lines (brackets) do not count in duplicate_line_share
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
C4_LONG_WORD, C4_LINE_WORDS = 1000, 3


def signals(text: str, words: str = "spacy:en") -> Signals:
    """All signals of `text`: every name is told in the functions below.

    Raises RequestError where `words` is no word definition, or spaCy is not installed.
    """
    define = definition(words)
    with define.zone():
        split = define.split(text)
        _, c4 = _c4(text, define, terminal_punctuation=False)
    return {
        **gopher_quality(text, split),
        **gopher_repetition(text, split),
        **fineweb(text, split),
        **c4,
        **general(text),
    }


def rewritten(
    text: str, words: str = "spacy:en", *, terminal_punctuation: bool = False
) -> tuple[str, Signals]:
    """The lines that C4 keeps, and C4's signals. terminal_punctuation: drop lines that end with none of . ? ! " '
    (as C4 did; FineWeb does not, since that alone would remove 30% of all tokens)."""
    define = definition(words)
    with define.zone():
        return _c4(text, define, terminal_punctuation)


def fineweb_signals(text: str, words: str = "spacy:en") -> Signals:
    """FineWeb's four signals alone: of a text that C4 has rewritten."""
    define = definition(words)
    with define.zone():
        return fineweb(text, define.split(text))


def gopher_quality(text: str, words: Sequence[str]) -> Signals:
    """Shares are of all words, or of all lines; stop_words counts different ones, as they are written."""
    plain = [word for word in words if not SYMBOLS.issuperset(word)]
    lines = text.splitlines()
    return {
        "non_symbol_words": float(len(plain)),
        "mean_word_length": _share(sum(map(len, plain)), len(plain)),
        "hash_ratio": _share(text.count("#"), len(words)),
        "ellipsis_ratio": _share(text.count("...") + text.count("…"), len(words)),
        "bullet_line_ratio": _share(
            sum(line.lstrip().startswith(("•", "-")) for line in lines), len(lines)
        ),
        "ellipsis_line_ratio": _share(
            sum(line.rstrip().endswith(("...", "…")) for line in lines), len(lines)
        ),
        "alpha_word_ratio": _share(sum(map(_has_letter, words)), len(words)),
        "stop_words": float(len(STOP_WORDS.intersection(words))),
        "words": float(len(words)),
    }


def gopher_repetition(text: str, words: Sequence[str]) -> Signals:
    """Shares of lines, of paragraphs, and of the characters of the text. A text's first or last newline leaves an
    empty "line", which counts."""
    lines = re.split("\n+", text)
    paragraphs = re.split("\n{2,}", text.strip())
    again, characters = _repeated(lines)
    paragraphs_again, paragraph_characters = _repeated(paragraphs)
    return {
        "dup_line_frac": _share(again, len(lines)),
        "dup_line_char_frac": _share(characters, len(text)),
        "dup_para_frac": _share(paragraphs_again, len(paragraphs)),
        "dup_para_char_frac": _share(paragraph_characters, len(text)),
        **{f"top_{n}_gram": _share(_top(words, n), len(text)) for n in (2, 3, 4)},
        **{f"dup_{n}_gram": _share(_covered(words, n), len(text)) for n in range(5, 11)},
    }


def fineweb(text: str, words: Sequence[str]) -> Signals:
    """Shares of the non-blank lines, of the characters without newlines, and newlines for each word."""
    lines = [line for line in text.split("\n") if line.strip()]
    newlines = text.count("\n")
    return {
        "line_punct_ratio": _share(sum(line.endswith(TERMINAL) for line in lines), len(lines)),
        "short_line_ratio": _share(sum(len(line) <= SHORT_LINE for line in lines), len(lines)),
        "char_dup_ratio": _share(_repeated(lines)[1], len(text) - newlines),
        "list_ratio": _share(newlines, len(words)),
    }


def general(text: str) -> Signals:
    """For any profile, of any kind of text; words are whitespace words here.

    long_word is the length of the longest one. duplicate_line_share: characters in lines that stood before, of
    those of all stripped lines; lines shorter than 12 characters are never such copies.
    """
    lines = text.split("\n")
    filled = [line.strip() for line in lines if line.strip()]
    words = whitespace_words(text)
    inked = sum(map(len, text.split()))
    digits = len(re.findall("[0-9]", text))
    copies = _repeated([line for line in filled if len(line) >= SHORT_REPEAT])[1]
    return {
        "chars": float(len(text)),
        "bytes": float(len(text.encode("utf-8", "surrogatepass"))),
        "lines": float(len(lines)),
        "filled_lines": float(len(filled)),
        "longest_line": float(max(map(len, lines))),
        "mean_line": _share(sum(map(len, filled)), len(filled)),
        "alnum_share": _share(sum(map(str.isalnum, text)), len(text)),
        "digit_share": _share(digits, inked),
        "lettered_word_share": _share(sum(map(_has_letter, words)), len(words)),
        "lines_per_word": _share(len(filled), len(words)),
        "duplicate_line_share": _share(copies, sum(map(len, filled))),
        "long_word": float(max(map(len, words), default=0)),
        "uppercase_share": _share(sum(map(str.isupper, text)), len(text)),
    }


def _c4(text: str, words: Words, terminal_punctuation: bool) -> tuple[str, Signals]:
    """The first rule that a line breaks decides about it, so their order matters: a line dropped for its
    punctuation is never tested for "{". Words are counted before citations are taken out.

    Where datatrove leaves the document (lorem ipsum, "{"), the line is counted and dropped, so that the other
    numbers stay whole. c4_curly_bracket counts only up to the first "lorem ipsum": whichever is found first in the
    text is then the first reason, if the bracket is judged first.
    """
    kept: list[str] = []
    lorem = brackets = sentences = 0
    lines = text.splitlines()
    for line in map(str.strip, lines):
        split = line.split()
        if any(len(word) > C4_LONG_WORD for word in split):
            continue
        line = _CITATION.sub("", line)
        if terminal_punctuation and (
            not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")
        ):
            continue
        if len(split) < C4_LINE_WORDS:
            continue
        lower = line.lower()
        if "lorem ipsum" in lower:
            lorem += 1
        elif "javascript" in lower:
            continue
        elif "{" in line:
            brackets += not lorem
        elif not any(phrase in lower for phrase in _POLICY):
            sentences += words.sentences(line)
            kept.append(line)
    return "\n".join(kept).strip(), {
        "c4_lorem_ipsum": float(lorem),
        "c4_curly_bracket": float(brackets),
        "c4_sentences": float(sentences),
        "c4_kept_lines": float(len(kept)),
        "c4_lines": float(len(lines)),
    }


def _share(part: float, whole: float) -> float:
    """0 of nothing is 0."""
    return part / whole if whole else 0.0


def _has_letter(word: str) -> bool:
    return word.isalpha() or any(map(str.isalpha, word))


def _repeated(items: Iterable[str]) -> tuple[int, int]:
    """How many items stood before, and their characters: the second and later copies."""
    seen: set[str] = set()
    count = characters = 0
    for item in items:
        if item in seen:
            count += 1
            characters += len(item)
        seen.add(item)
    return count, characters


def _top(words: Sequence[str], n: int) -> int:
    """Characters, spaces included, of all copies of the commonest n-gram: the first seen of those, if it stands
    there once."""
    grams = Counter(" ".join(words[at : at + n]) for at in range(len(words) - n + 1))
    if not grams:
        return 0
    gram, count = max(grams.items(), key=lambda pair: pair[1])
    return len(gram) * count


def _covered(words: Sequence[str], n: int) -> int:
    """Characters of n-grams seen before; after one the next begins behind it. Equal are those whose letters are,
    wherever the words part."""
    seen: set[str] = set()
    characters = at = 0
    while at <= len(words) - n:
        gram = "".join(words[at : at + n])
        if gram in seen:
            characters += len(gram)
            at += n
        else:
            seen.add(gram)
            at += 1
    return characters
