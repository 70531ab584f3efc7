"""The signals that a profile's rules need: those of `gristmill.data.text`, and three that only code and docs have."""

from __future__ import annotations

import re
from collections.abc import Callable

from gristmill.data.rules.table import Profile
from gristmill.data.text import chain, signals
from gristmill.data.text.words import whitespace_words

GENERATED_LINES = 20  # a mark stands in the header; further down, text is about generated things
TABLE_LINES = 30  # a shorter file of literals is an example, not a table
_GENERATED = re.compile(
    r"(?i)(?:\bauto(?:matically)?[- ]?generated\b|\bgenerated (?:by|from|automatically|file)\b|@generated\b"
    r"|\bdo not (?:edit|modify)\b.{0,40}\b(?:by hand|manually|directly|this file))"
)
_COMMENT = re.compile(r"""^\s*(?:#|//|/\*|\*|--|;|%|<!--|\"\"\"|''')""")
_LITERAL_LINE = re.compile(r"""^\s*[\[({]*\s*(?:[rbuRBU]{0,2}["']|[-+]?\d|0x)""")
_LITERAL_END = re.compile(r"""[,\])}"'\d]\s*(?:#.*)?$""")


def measure(text: str, profile: Profile) -> tuple[dict[str, float], str]:
    """Signals of `text`, and the text to keep: what C4's line rules leave of it, if the profile rewrites.

    Then C4's signals are those of the profile's line rules, FineWeb's four and filled_lines are of the text that is
    left, and all others of the text as it came: the order in which FineWeb's chain sees them.
    """
    if profile.rewrites:
        text, found = chain(text, profile.words, terminal_punctuation=profile.terminal_punctuation)
        found["filled_lines"] = float(sum(bool(line.strip()) for line in text.split("\n")))
    else:
        found = signals(text, profile.words)
    for name in dict.fromkeys(rule.signal for rule in profile.rules):
        if name in SENSORS:
            found[name] = SENSORS[name](text)
    return found, text


def generated_marks(text: str) -> float:
    """Comments in the first 20 lines that say "generated, do not edit"."""
    head = text.split("\n", GENERATED_LINES)[:GENERATED_LINES]
    return float(sum(bool(_GENERATED.search(line)) for line in head if _COMMENT.match(line)))


def literal_line_share(text: str) -> float:
    """Share of the filled lines that hold a literal and little else; 0 below 30 lines."""
    filled = [line.strip() for line in text.split("\n") if line.strip()]
    if len(filled) < TABLE_LINES:
        return 0.0
    literal = sum(bool(_LITERAL_LINE.match(n) and _LITERAL_END.search(n)) for n in filled)
    return literal / len(filled)


def mean_word(text: str) -> float:
    """Mean length of the whitespace words that are no URLs."""
    plain = [len(word) for word in whitespace_words(text) if "://" not in word]
    return sum(plain) / max(len(plain), 1)


SENSORS: dict[str, Callable[[str], float]] = {
    "generated_marks": generated_marks,
    "literal_line_share": literal_line_share,
    "mean_word": mean_word,
}
