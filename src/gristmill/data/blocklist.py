"""Words and phrases of a user's list in texts, all at once: a pass over the text, however long the list."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gristmill.data.urls import read_lines
from gristmill.errors import RequestError, missing_extra

# Scripts written without blanks: a word there has no boundary to look for.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


class Blocklist:
    """Finds the entries of a list. Case and the composed or decomposed form of letters do not matter."""

    def __init__(self, entries: Iterable[str]) -> None:
        folded = {_folded(" ".join(entry.split())) for entry in entries}
        self.entries = tuple(sorted(folded - {""}))
        self._unspaced = tuple(_UNSPACED.search(entry) is not None for entry in self.entries)
        self._automaton: Any = _automaton(self.entries) if self.entries else None

    @staticmethod
    def load(paths: Iterable[Path]) -> Blocklist:
        """A list from files of one word or phrase a line; "#" begins a comment.

        Raises RequestError for a file that cannot be read or holds no entry, naming it, and the line of an
        entry without letters or digits.
        """
        entries: list[str] = []
        for path in paths:
            lines = read_lines(path)
            if not lines:
                raise RequestError(f"{path} holds no word. Write one word or phrase a line.")
            for number, line in lines:
                if not any(c.isalnum() for c in line):
                    raise RequestError(
                        f"{path}:{number}: {line!r} has no letter or digit. Write words."
                    )
                entries.append(line)
        return Blocklist(entries)

    def count(self, text: str) -> dict[str, int]:
        """How often each entry stands in `text` as a word of its own, sorted by entry.

        Entries in scripts without blanks count wherever they stand. Time is linear in the text and the hits.
        """
        if self._automaton is None:
            return {}
        # Trailing and leading blanks make every word's boundaries characters of the text.
        folded = f" {_folded(text)} "
        if "\n" in folded or "\t" in folded or "  " in folded:
            folded = f" {' '.join(folded.split())} "
        found: Counter[str] = Counter()
        for index, start, end in self._automaton.find_matches_as_indexes(folded, overlapping=True):
            if self._unspaced[index] or _is_apart(folded, start, end):
                found[self.entries[index]] += 1
        return dict(sorted(found.items()))


def _is_apart(text: str, start: int, end: int) -> bool:
    """Whether no letter, digit or mark goes on from the entry, on either side where it ends in one."""
    before, first, last, after = text[start - 1], text[start], text[end - 1], text[end]
    return not (_is_word(before) and _is_word(first)) and not (_is_word(after) and _is_word(last))


def _is_word(c: str) -> bool:
    return c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M"


def _folded(text: str) -> str:
    lowered = text.lower()
    if lowered.isascii():
        return lowered
    whole = lowered.encode("utf-8", "replace").decode()  # without lone surrogates
    return unicodedata.normalize("NFC", whole)


def _automaton(entries: tuple[str, ...]) -> Any:
    try:
        from ahocorasick_rs import AhoCorasick, MatchKind
    except ModuleNotFoundError:
        raise missing_extra("ahocorasick_rs", "data") from None
    return AhoCorasick(entries, matchkind=MatchKind.Standard)
