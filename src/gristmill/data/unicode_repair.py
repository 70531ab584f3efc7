"""Repair of characters: wrong decodings, controls, floods of marks, line ends. Correct text stays as it is.

The number of lines stays, so that a citation's line number stays true. Time is linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from gristmill.errors import missing_extra

_NEWLINES = re.compile("\r\n?")
# Line separators that `str.splitlines` would count and editors would not.
_SEPARATORS = re.compile("[\x85\u2028\u2029]")
# C0 and C1 controls except tab and newline, the byte order mark, soft hyphens.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ufeff\u00ad]")
_ASCII_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
# Characters that nobody sees. One has its use (Thai, emoji, right-to-left); between Latin letters, or four
# in a row, they only hide words from filters.
_UNSEEN = re.compile(
    "(?<=[A-Za-z])[\u200b\u2060]+(?=[A-Za-z])"
    "|[\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f]{4,}"
)
_ANY_UNSEEN = re.compile(
    "[\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f]"
)
_MARKS_KEPT = 8  # on one letter; Hebrew and Tibetan need up to five
_PIECE = 100_000  # characters given to ftfy at once


def repair(text: str) -> tuple[str, tuple[str, ...]]:
    """(`text` repaired, what was done): "surrogates", "line_ends", "mojibake", "controls", "unseen",
    "marks", "nfc", "trailing_blanks". Repairing twice changes nothing more.

    Needs ftfy (the [data] extra) for texts that look wrongly decoded.
    """
    done: dict[str, None] = {}
    # One repair may lay bare another (a control inside a mojibake pair); a handful of rounds ends all
    # but texts made to resist.
    for _ in range(10):
        before = text
        for name, step in _STEPS:
            after = step(text)
            if after != text:
                done[name] = None
                text = after
        if text == before:
            break
    return text, tuple(done)


def _surrogates(text: str) -> str:
    """Pairs become the character they mean, single ones U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _line_ends(text: str) -> str:
    return _NEWLINES.sub("\n", text) if "\r" in text else text


def _separators(text: str) -> str:
    return text if text.isascii() else _SEPARATORS.sub(" ", text)


def _mojibake(text: str) -> str:
    if text.isascii():
        return text
    in_any, in_one = _suspect()
    if not in_any.search(text):
        return text
    parts: list[str] = []
    for line in text.split("\n"):
        if in_any.search(line) and in_one.search(line):
            pieces = [line[i : i + _PIECE] for i in range(0, len(line), _PIECE)]
            line = "".join(map(_decoded_right, pieces))
        parts.append(line)
    return "\n".join(parts)


@cache
def _suspect() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The first two characters that UTF-8 gives when it is read in another code, U+FFFD for what it lacks:
    in any of the codes together (a quick look), and in one of them.

    Right text holds such pairs too; ftfy decides. Lines without one never reach it: it is slow (3 MB/s).
    """
    leads: set[str] = set()
    tails: set[str] = set()
    pairs: list[str] = []
    for codec in ("latin-1", "cp1252", "cp1251", "mac_roman", "cp437"):
        lead = set(bytes(range(0xC2, 0xF5)).decode(codec, "ignore")) - set("“”‘’–—…«»·")
        tail = {*bytes(range(0x80, 0xC0)).decode(codec, "ignore"), "\ufffd"}
        pairs.append(f"[{_class(lead)}][{_class(tail)}]")
        leads |= lead
        tails |= tail
    return re.compile(f"[{_class(leads)}][{_class(tails)}]"), re.compile("|".join(pairs))


def _class(characters: set[str]) -> str:
    return re.escape("".join(sorted(characters)))


def _decoded_right(line: str) -> str:
    try:
        from ftfy import fix_encoding
    except ModuleNotFoundError:
        raise missing_extra("ftfy", "data") from None
    # Line ends that come out of it would move the lines that follow.
    return _SEPARATORS.sub(" ", fix_encoding(line)).replace("\n", " ").replace("\r", " ")


def _controls(text: str) -> str:
    return (_ASCII_CONTROLS if text.isascii() else _CONTROLS).sub("", text)


def _unseen(text: str) -> str:
    return _UNSEEN.sub("", text) if not text.isascii() and _ANY_UNSEEN.search(text) else text


_HIGH = re.compile("[\U00010000-\U0001efff]")


def _marks(text: str) -> str:
    """At most `_MARKS_KEPT` combining marks in a row; also keeps normalization from quadratic time."""
    if text.isascii():
        return text
    # Python searches for characters of the first plane ten times as fast.
    plane = 0x1F000 if _HIGH.search(text) else 0x10000
    return _flood(plane).sub(lambda match: match[0][:_MARKS_KEPT], text)


@cache
def _flood(end: int) -> re.Pattern[str]:
    """More combining marks in a row than are kept, of those below the code point `end`."""
    marks = [c for c in range(0x300, end) if unicodedata.combining(chr(c))]
    ranges: list[list[int]] = []
    for c in marks:
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    inside = "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges)
    # written so that the search for the first mark is quick
    return re.compile(f"[{inside}][{inside}]{{{_MARKS_KEPT},}}")


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _trailing_blanks(text: str) -> str:
    if " \n" in text or "\t\n" in text or text[-1:].isspace() or not text.isascii():
        return "\n".join([line.rstrip() for line in text.split("\n")])
    return text


_STEPS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("surrogates", _surrogates),
    ("line_ends", _line_ends),
    ("mojibake", _mojibake),
    ("line_ends", _separators),  # U+0085 may be half of a mojibake pair
    ("controls", _controls),
    ("unseen", _unseen),
    ("marks", _marks),
    ("nfc", _nfc),
    ("trailing_blanks", _trailing_blanks),
)
