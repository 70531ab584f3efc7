"""The index: one SQLite file with FTS5, built from facts and prose, searched by name and by BM25.

A question that names something finds that first (`heapq.nlargest`, or its tail `nlargest`); the rest is
ranked by SQLite's bm25() over three columns (names, title, text; k1 1.2, b 0.75 are fixed there). A passage
that does not hold the question's subject is not a result: searching for what is not there finds nothing.
"""

from __future__ import annotations

import math
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gristmill.data import Document, Fact, documents, read_facts
from gristmill.errors import RequestError
from gristmill.files import write_with
from gristmill.retrieval.entries import Entry, entries, is_prose
from gristmill.retrieval.terms import STOP_WORDS, Question, index_text, parse_question
from gristmill.stage import Progress, Result, StageConfig, quiet

_APPLICATION_ID = (
    0x4752_4958  # "GRIX" in the file's header: how an index is told from any other database
)
_SCHEMA = """
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, name TEXT, title TEXT, text TEXT, source TEXT, line INTEGER, fact_id TEXT
);
CREATE TABLE names (
    name TEXT, whole INTEGER, passage INTEGER, PRIMARY KEY (name, whole, passage)
) WITHOUT ROWID;
CREATE VIRTUAL TABLE terms USING fts5(
    names, title, text, content='', tokenize="porter unicode61 remove_diacritics 2 tokenchars '._'"
);
"""
_WEIGHTS = "6.0, 6.0, 1.0"  # of the columns names, title, text
_EXACT_SCORE = 100.0
_MAX_TERMS = 32
_CANDIDATES = 50
_SUPPORT = 0.5


class IndexConfig(StageConfig):
    """chunk_chars: the most characters of prose in one passage."""

    chunk_chars: int = 320


@dataclass(frozen=True)
class Passage:
    """What the index found. score: higher is better; a passage found by its name has 100."""

    text: str
    title: str
    source: str
    line: int
    score: float
    fact_id: str | None = None

    @property
    def by_name(self) -> bool:
        return self.score >= _EXACT_SCORE

    @property
    def cite(self) -> str:
        return f"{self.source}:{self.line}"


def run(
    config: IndexConfig, inputs: dict[str, Path], out_dir: Path, progress: Progress = quiet
) -> Result:
    """Index `inputs["facts"]` and the prose of `inputs["documents"]` into out_dir/index.sqlite."""
    facts = read_facts(inputs["facts"])
    prose = (
        document
        for split in ("train", "heldout")
        for document in documents(inputs["documents"], split)
        if is_prose(document)
    )
    path = out_dir / "index.sqlite"
    metrics = build(path, facts, prose, config, progress)
    return Result({"index": path}, metrics)


def build(
    path: Path,
    facts: Iterable[Fact],
    prose: Iterable[Document],
    config: IndexConfig | None = None,
    progress: Progress = quiet,
) -> dict[str, int]:
    """Write the index of these facts and documents to `path`, whole or not at all; equal input gives equal
    bytes under one version of SQLite. Returns counts. Raises RequestError without FTS5."""
    counts: dict[str, int] = {}

    def write(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        database = sqlite3.connect(temporary, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            counts.update(_fill(database, facts, prose, config or IndexConfig(), progress))
            database.execute("VACUUM")
        finally:
            database.close()

    write_with(path, write)
    return {"passages": sum(counts.values()), **counts, "bytes": path.stat().st_size}


def _fill(
    database: sqlite3.Connection,
    facts: Iterable[Fact],
    prose: Iterable[Document],
    config: IndexConfig,
    progress: Progress,
) -> dict[str, int]:
    _create(database)
    facts = list(facts)
    counts = {"facts": 0, "chunks": 0}
    database.execute("BEGIN")
    for number, entry in enumerate(entries(facts, prose, config.chunk_chars), 1):
        _insert(database, number, entry)
        counts["facts" if entry.name else "chunks"] += 1
        if number % 1000 == 0:
            progress(number, max(number, len(facts)), "passages")
    database.execute("COMMIT")
    database.execute("INSERT INTO terms(terms) VALUES ('optimize')")
    return counts


def _create(database: sqlite3.Connection) -> None:
    try:
        database.executescript(_SCHEMA)
    except sqlite3.OperationalError as error:
        raise _without_fts5(error) from None


def _without_fts5(error: sqlite3.Error) -> RequestError:
    return RequestError(
        f"the SQLite {sqlite3.sqlite_version} of this Python cannot search text ({error}). "
        "It needs the FTS5 module: use a Python from python.org, your distribution, or conda."
    )


def _insert(database: sqlite3.Connection, number: int, entry: Entry) -> None:
    database.execute(
        "INSERT INTO passages VALUES (?, ?, ?, ?, ?, ?, ?)",
        (number, entry.name, entry.title, entry.text, entry.source, entry.line, entry.fact_id),
    )
    database.execute(
        "INSERT INTO terms(rowid, names, title, text) VALUES (?, ?, ?, ?)",
        (number, index_text(entry.names), index_text(entry.heading), index_text(entry.body)),
    )
    for whole in entry.known_as:
        parts = whole.lower().split(".") if entry.name else [whole]
        for start in range(len(parts)):
            known = (".".join(parts[start:]), int(start == 0), number)
            database.execute("INSERT OR IGNORE INTO names VALUES (?, ?, ?)", known)


class Searchable(Protocol):
    """What answers are looked up in."""

    def search(self, question: str, k: int = 3) -> list[Passage]:
        """The best passages for a question, at most `k`."""
        ...


class Index:
    """An index open for reading. Safe to use from several threads. path: None for one in memory."""

    def __init__(self, database: sqlite3.Connection, path: Path | None) -> None:
        self._database = database
        self._lock = threading.Lock()
        self.path = path
        self.size: int = self._rows("SELECT count(*) FROM passages")[0][0]

    @classmethod
    def open(cls, path: Path | str) -> Index:
        """Open a file made by `build`. Raises RequestError when it is absent, something else, or when
        this Python's SQLite has no FTS5."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise RequestError(
                f"{path} is not there: an index is a file, index.sqlite in a run's index/."
            )
        address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        database = sqlite3.connect(address, uri=True, check_same_thread=False)
        try:
            kind = database.execute("PRAGMA application_id").fetchone()[0]
            if kind != _APPLICATION_ID:
                raise sqlite3.DatabaseError("another application's database")
            database.execute("SELECT rowid FROM terms WHERE terms MATCH '\"a\"' LIMIT 1").fetchall()
            return cls(database, path)
        except sqlite3.Error as error:
            database.close()
            if "fts5" in str(error):
                raise _without_fts5(error) from None
            raise RequestError(
                f"{path} is not an index of ours ({error}). `gristmill rag index` or the recipe's stage "
                '"index" makes one.'
            ) from None

    @classmethod
    def in_memory(
        cls, facts: Iterable[Fact], prose: Iterable[Document], config: IndexConfig | None = None
    ) -> Index:
        """What `build` writes, without a file. Raises RequestError without FTS5."""
        database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            _fill(database, facts, prose, config or IndexConfig(), quiet)
            made = cls(database, None)
        except BaseException:
            database.close()
            raise
        # Whoever still searches it when it is let go of finishes first.
        weakref.finalize(made, database.close)
        return made

    @property
    def nbytes(self) -> int:
        """Of the database."""
        (pages,), (size,) = (
            self._rows(f"PRAGMA {what}")[0] for what in ("page_count", "page_size")
        )
        return pages * size

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def search(self, question: str, k: int = 3) -> list[Passage]:
        """The best passages for a question, at most `k`; [] when none holds what the question is about.

        A result holds at least half of the question's subject, each term weighted by its rarity
        (inverse document frequency). Any text is a valid question.
        """
        asked = parse_question(question)
        found: dict[int, float] = {}
        if not asked.wants_name:
            found = dict.fromkeys(self._named(asked, k), _EXACT_SCORE)
        if len(found) < k:
            for number, score in self._by_terms(asked):
                found.setdefault(number, score)
        return [self._passage(number, score) for number, score in list(found.items())[:k]]

    def _named(self, asked: Question, k: int) -> list[int]:
        """Passages that the question names: by a heading or title of several words that stands in it and holds
        its whole subject; else by its names; else by its only word of substance, which may be a bare name."""
        if asked.phrases:
            marks = ",".join("?" * len(asked.phrases))
            rows = self._rows(
                f"SELECT DISTINCT name FROM names WHERE whole = 1 AND name IN ({marks})",
                asked.phrases,
            )
            known = {name for (name,) in rows if " " in name}
            for text in asked.phrases:
                if text in known:
                    return self._names(text, k)
        found = dict.fromkeys(
            number for name in asked.names[:_MAX_TERMS] for number in self._by_name(name, k)
        )
        if found or asked.names:
            return list(found)
        if len(asked.subject) == 1:
            return self._names(asked.subject[0], k)
        return self._names(asked.last, k) if set(asked.subject) <= STOP_WORDS else []

    def _by_name(self, name: str, k: int) -> list[int]:
        """Passages known under this name, best first: written exactly so, whole before a tail, short first.

        `np.linalg.svd` finds `numpy.linalg.svd`: a first part that nothing is called is taken for an alias.
        """
        found = self._names(name, k)
        head, _, rest = name.partition(".")
        if not found and rest and not self._names(head, 1):
            found = self._names(rest, k)
        return found

    def _names(self, name: str, k: int) -> list[int]:
        rows = self._rows(
            "SELECT p.id FROM names n JOIN passages p ON p.id = n.passage WHERE n.name = ? GROUP BY p.id "
            "ORDER BY p.name = ? OR lower(p.title) = ? DESC, max(n.whole) DESC, "
            "substr(p.name, -length(?)) = ? DESC, length(p.title), p.id LIMIT ?",
            (name.lower(), name, name.lower(), name, name, k),
        )
        return [number for (number,) in rows]

    def _by_terms(self, asked: Question) -> Iterator[tuple[int, float]]:
        """(passage, BM25) of what holds enough of the subject, best first."""
        searched = [*asked.names, *asked.words][:_MAX_TERMS]
        terms = dict.fromkeys(term for word in searched for term in index_text(word).split())
        if not terms:
            return
        query = " OR ".join(f'"{term}"' for term in list(terms)[: 2 * _MAX_TERMS])
        rows = self._rows(
            f"SELECT rowid, -bm25(terms, {_WEIGHTS}) AS score FROM terms WHERE terms MATCH ? "
            "ORDER BY score DESC, rowid LIMIT ?",
            (query, _CANDIDATES),
        )
        candidates = [number for number, _ in rows]
        held = dict.fromkeys(candidates, 0.0)
        total = 0.0
        for word in asked.subject[:_MAX_TERMS]:
            present, frequency = self._holders(word, candidates)
            rarity = math.log(1 + (self.size - frequency + 0.5) / (frequency + 0.5))
            total += rarity
            for number in present:
                held[number] += rarity
        for number, score in rows:
            if total and held[number] >= _SUPPORT * total:
                yield number, score

    def _holders(self, word: str, candidates: list[int]) -> tuple[list[int], int]:
        """Which candidates hold a subject word, and how many passages do.

        A dotted name is held by its last part too, unless its first part is known here: `heapq.sum` asks
        for something in `heapq`, and no other `sum` will do.
        """
        term = index_text(word).split()
        if not term:
            return [], 0
        query = f'"{term[0]}"'
        head, _, tail = word.rpartition(".")
        if head and not self._names(head.split(".")[0], 1):
            query += f' OR "{tail}"'
        frequency = self._rows("SELECT count(*) FROM terms WHERE terms MATCH ?", (query,))[0][0]
        marks = ",".join(map(str, candidates))
        rows = self._rows(
            f"SELECT rowid FROM terms WHERE terms MATCH ? AND rowid IN ({marks})", (query,)
        )
        return [number for (number,) in rows], frequency

    def _passage(self, number: int, score: float) -> Passage:
        text, title, source, line, fact_id = self._rows(
            "SELECT text, title, source, line, fact_id FROM passages WHERE id = ?", (number,)
        )[0]
        return Passage(text, title, source, line, round(score, 6), fact_id)

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[tuple]:
        with self._lock:
            return self._database.execute(query, values).fetchall()
