"""Which conversations and preference pairs come nearest to a text in words, by BM25."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from gristmill.errors import RequestError

_WORD = re.compile(r"\w+")
_MAX_WORDS = 64


def nearest(texts: Iterable[str], text: str, k: int) -> list[tuple[int, float]]:
    """(number from 0, BM25 score, higher is nearer) of the best `k` of `texts` that share a word with `text`.

    SQLite's bm25() ranks (k1 1.2, b 0.75). Of a long text its 64 rarest words count. Equal scores come in
    their own order. Raises RequestError where SQLite lacks FTS5.
    """
    database = sqlite3.connect(":memory:", isolation_level=None)
    try:
        try:
            database.executescript(
                "CREATE VIRTUAL TABLE texts USING fts5(text, tokenize='unicode61 remove_diacritics 2');"
                "CREATE VIRTUAL TABLE words USING fts5vocab(texts, 'row');"
            )
        except sqlite3.OperationalError as error:
            raise RequestError(
                f"the SQLite of this Python cannot search text ({error}); it needs the FTS5 module"
            ) from None
        database.execute("BEGIN")
        rows = ((number, one.replace("\0", " ")) for number, one in enumerate(texts))
        database.executemany("INSERT INTO texts(rowid, text) VALUES (?, ?)", rows)
        database.execute("COMMIT")
        query = " OR ".join(f'"{word}"' for word in _rarest(database, text))
        if not query:
            return []
        return database.execute(
            "SELECT rowid, -bm25(texts) AS score FROM texts WHERE texts MATCH ? "
            "ORDER BY score DESC, rowid LIMIT ?",
            (query, k),
        ).fetchall()
    finally:
        database.close()


def _rarest(database: sqlite3.Connection, text: str) -> list[str]:
    """Words of the text that the rows hold, rarest first."""
    words = dict.fromkeys(part for word in _WORD.findall(text.lower()) for part in word.split("_"))
    held: list[tuple[int, str]] = []
    for word in words:
        found = database.execute("SELECT doc FROM words WHERE term = ?", (word,)).fetchone()
        if found:
            held.append((found[0], word))
    return [word for _, word in sorted(held)[:_MAX_WORDS]]


def said(row: dict[str, Any]) -> str:
    """All that a row of SFT data or a preference pair says, one text after another; prompts may be conversations."""
    parts: list[str] = []
    for key in ("messages", "prompt", "chosen", "rejected"):
        value = row.get(key)
        if isinstance(value, str):
            parts.append(value)
        elif isinstance(value, Sequence):
            parts += [
                content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
                for content in (turn.get("content") for turn in value if isinstance(turn, dict))
                if content
            ]
    return "\n".join(parts)
