"""Quality rules: measure a text once, then hold the numbers against the table of its kind.

| reason           | signal                                                     | code   | docs  |
|------------------|------------------------------------------------------------|--------|-------|
| too_short        | non-blank lines (code) or words (docs), at least           | 5      | 20    |
| generated        | a "generated, do not edit" mark in the first lines         | any    | –     |
| long_line        | characters of the longest line, at most                    | 1,000  | 20,000|
| minified         | mean characters of a non-blank line, at most               | 100    | –     |
| data_table       | share of lines that are literals, at most                  | 0.75   | –     |
| data_table       | share of digits among non-blank characters, at most        | 0.30   | 0.35  |
| few_letters      | share of letters and digits (code), of words with a letter | 0.25   | 0.5   |
| long_words       | mean length of a word that is no URL, at most              | –      | 12    |
| list_of_words    | lines for each word, at most                               | –      | 1.0   |
| duplicate_lines  | share of characters in repeated lines, at most             | 0.60   | 0.30  |

"code" is Python and other source code, "docs" is markdown, html, text and pydoc (pydoc without
duplicate_lines: related classes share docstrings). JSONL rows take the docs column with 5 words and no line
rules (a row is often one line).
The limits start from RedPajama's and DCLM's for code, and for docs from a profile that keeps 84% of 2,000 real
documentation pages where web rules keep 40 to 86%. They were then widened until an installed Python lost no
module that a person would miss: duplicate_lines at 0.30 dropped bisect.py, requests/api.py and httpx, literal
lines at 0.5 dropped locale.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

Signals = dict[str, float]


@dataclass(frozen=True, slots=True)
class Rule:
    """`reason` applies when `signal` is below `at_least` or above `at_most`."""

    reason: str
    signal: str
    at_least: float | None = None
    at_most: float | None = None

    def broken_by(self, signals: Signals) -> bool:
        value = signals[self.signal]
        low, high = self.at_least, self.at_most
        return (low is not None and value < low) or (high is not None and value > high)

    @property
    def limit(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


_CODE = (
    Rule("too_short", "filled_lines", at_least=5),
    Rule("generated", "generated_marks", at_most=0),
    Rule("long_line", "longest_line", at_most=1000),
    Rule("minified", "mean_line", at_most=100),
)
_CODE_END = (
    Rule("few_letters", "alnum_share", at_least=0.25),
    Rule("duplicate_lines", "duplicate_line_share", at_most=0.60),
)
_DOCS = (
    Rule("data_table", "digit_share", at_most=0.35),
    Rule("few_letters", "lettered_word_share", at_least=0.5),
    Rule("long_words", "mean_word", at_most=12),
)
_PAGE = (
    Rule("too_short", "words", at_least=20),
    Rule("long_line", "longest_line", at_most=20_000),
    *_DOCS,
    Rule("list_of_words", "lines_per_word", at_most=1.0),
    Rule("duplicate_lines", "duplicate_line_share", at_most=0.30),
)
_SOURCE = (
    *_CODE,
    Rule("data_table", "literal_line_share", at_most=0.75),
    Rule("data_table", "digit_share", at_most=0.30),
    *_CODE_END,
)
RULES: dict[str, tuple[Rule, ...]] = {
    "python": _SOURCE,
    "code": _SOURCE,
    "markdown": _PAGE,
    "html": _PAGE,
    "text": _PAGE,
    "pydoc": _PAGE[:-1],
    "jsonl": (Rule("too_short", "words", at_least=5), *_DOCS),
}

_GENERATED = re.compile(
    r"(?i)(?:\bauto(?:matically)?[- ]?generated\b|\bgenerated (?:by|from|automatically|file)\b|@generated\b"
    r"|\bdo not (?:edit|modify)\b.{0,40}\b(?:by hand|manually|directly|this file))"
)
GENERATED_LINES = 20  # a mark stands in the header; further down, text is about generated things
_COMMENT = re.compile(r"""^\s*(?:#|//|/\*|\*|--|;|%|<!--|\"\"\"|''')""")
_LITERAL_LINE = re.compile(r"""^\s*[\[({]*\s*(?:[rbuRBU]{0,2}["']|[-+]?\d|0x)""")
_LITERAL_END = re.compile(r"""[,\])}"'\d]\s*(?:#.*)?$""")
# Scripts written without spaces: each character counts as a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")


def measure(text: str, kind: str) -> Signals:
    """The signals that the rules of `kind` need, in the order of the rules."""
    lines = text.split("\n")
    filled = [line.strip() for line in lines if line.strip()]
    words: list[str] = []
    if kind not in ("python", "code"):
        words = _words(text)
    sensors: dict[str, Callable[[], float]] = {
        "filled_lines": lambda: len(filled),
        "words": lambda: len(words),
        "longest_line": lambda: max(map(len, lines)),
        "mean_line": lambda: sum(map(len, filled)) / max(len(filled), 1),
        "generated_marks": lambda: _generated_marks(lines),
        "literal_line_share": lambda: _literal_line_share(filled),
        "digit_share": lambda: len(re.findall("[0-9]", text)) / max(len("".join(text.split())), 1),
        "alnum_share": lambda: sum(map(str.isalnum, text)) / max(len(text), 1),
        "lettered_word_share": lambda: sum(map(_has_letter, words)) / max(len(words), 1),
        "mean_word": lambda: _mean_word(words),
        "lines_per_word": lambda: len(filled) / max(len(words), 1),
        "duplicate_line_share": lambda: _duplicate_line_share(filled),
    }
    names = dict.fromkeys(rule.signal for rule in RULES[kind])
    return {name: round(float(sensors[name]()), 4) for name in names}


def judge(signals: Signals, kind: str) -> Rule | None:
    """The first rule of `kind` that `signals` break, or None."""
    return next((rule for rule in RULES[kind] if rule.broken_by(signals)), None)


def _words(text: str) -> list[str]:
    if _UNSPACED_CHARACTER.search(text):
        text = _UNSPACED_CHARACTER.sub(r" \g<0> ", text)
    return text.split()


def _has_letter(word: str) -> bool:
    return word.isalpha() or any(map(str.isalpha, word))


def _mean_word(words: list[str]) -> float:
    plain = [len(word) for word in words if "://" not in word]
    return sum(plain) / max(len(plain), 1)


def _generated_marks(lines: list[str]) -> int:
    head = lines[:GENERATED_LINES]
    return sum(bool(_GENERATED.search(line)) for line in head if _COMMENT.match(line))


def _literal_line_share(filled: list[str]) -> float:
    """Of at least 30 lines: a short file of literals is an example, not a table."""
    if len(filled) < 30:
        return 0.0
    literal = sum(bool(_LITERAL_LINE.match(n) and _LITERAL_END.search(n)) for n in filled)
    return literal / len(filled)


def _duplicate_line_share(filled: list[str]) -> float:
    """Characters in lines seen before, over all characters; brackets and other short lines do not count."""
    seen: set[str] = set()
    repeated = total = 0
    for line in filled:
        total += len(line)
        if len(line) < 12:
            continue
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return repeated / max(total, 1)
