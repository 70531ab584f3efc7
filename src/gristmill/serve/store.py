"""What a server keeps between runs, in one SQLite file: conversations, votes, and the responses of `/v1/responses`.

A commit is on the disk when it returns (WAL, synchronous=FULL), so a server that is killed loses nothing that it has
confirmed. Several servers may share a file. Every call here waits for the disk: not for an event loop.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.errors import RequestError, WorkError

_APPLICATION_ID = 0x4752_5356  # "GRSV" in the file's header
_BUSY_SECONDS = 10.0  # that a write waits for another process
_MAX_WORDS = 32  # of a query
# One entry a version; what is on disks is never edited, only added to.
_MIGRATIONS = (
    """
CREATE TABLE conversations (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, model TEXT NOT NULL,
    updated REAL NOT NULL, revision INTEGER NOT NULL, document TEXT NOT NULL
);
CREATE INDEX conversations_updated ON conversations (updated);
CREATE VIRTUAL TABLE conversation_texts USING fts5(
    title, text, tokenize="unicode61 remove_diacritics 2", prefix='2 3'
);
CREATE TABLE votes (
    number INTEGER PRIMARY KEY, created REAL NOT NULL, prompt TEXT NOT NULL, first_model TEXT NOT NULL,
    first_text TEXT NOT NULL, second_model TEXT NOT NULL, second_text TEXT NOT NULL, choice TEXT NOT NULL,
    reason TEXT NOT NULL, annotator TEXT NOT NULL, blind INTEGER NOT NULL
);
CREATE TABLE responses (
    id TEXT PRIMARY KEY, previous TEXT, created REAL NOT NULL, document TEXT NOT NULL
) WITHOUT ROWID;
""",
)


class Conflict(Exception):
    """A conversation was to be written over a revision that is not the stored one. stored: that one, or None."""

    def __init__(self, stored: dict[str, Any] | None) -> None:
        super().__init__("the conversation has changed")
        self.stored = stored


@dataclass(frozen=True)
class Vote:
    """A person's choice between two answers to `prompt`, a list of messages. choice: "first", "second", "tie" or "bad".

    models, texts: of the first and the second answer. created: seconds since the epoch.
    """

    prompt: list[dict[str, str]]
    models: tuple[str, str]
    texts: tuple[str, str]
    choice: str
    reason: str = ""
    annotator: str = ""
    blind: bool = False
    created: float = 0.0


def default_path() -> Path:
    """Where a person's programs keep their data, by the XDG base directory specification."""
    home = os.environ.get("XDG_DATA_HOME", "")
    data = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "share"
    return data / "gristmill" / "serve.sqlite"


class Store:
    """Safe to use from several threads."""

    def __init__(self, path: Path | str | None = None) -> None:
        """Open the file, which is made if it is not there; without one, keep all in memory.

        Raises RequestError for a file of something else or of a newer version, a place that cannot be written, and a
        Python whose SQLite has no FTS5.
        """
        self.path = None if path is None else Path(path).expanduser()
        self._lock = threading.Lock()
        self._database = _connect(self.path)
        try:
            self._prepare()
        except sqlite3.Error as error:
            self._database.close()
            raise self._refusal(error) from None
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def conversations(self, query: str | None = None) -> list[dict[str, Any]]:
        """{"id", "title", "model", "updated"} of each, the newest first; with a query, of those whose title or texts
        hold every word of it, or a word that begins so. Any text is a query."""
        columns = "SELECT c.id, c.title, c.model, c.updated FROM conversations c"
        order = "ORDER BY c.updated DESC, c.number DESC"
        if query is None:
            rows = self._rows(f"{columns} {order}")
        else:
            rows = self._rows(
                f"{columns} JOIN conversation_texts t ON t.rowid = c.number "
                f"WHERE conversation_texts MATCH ? {order}",
                (_match(query),),
            )
        return [dict(zip(("id", "title", "model", "updated"), row, strict=True)) for row in rows]

    def conversation(self, id: str) -> dict[str, Any] | None:
        """The document, with its "id", "revision" and "updated"."""
        with self._held() as database:
            row = _stored_row(database, id)
        return _whole(id, row)

    def put_conversation(
        self, id: str, document: Mapping[str, Any], revision: int, text: str
    ) -> int:
        """Keep `document`, which has "title" and "model", in place of `revision` (0: a new one); the new revision.

        text: what it is found by, beside its title. Raises Conflict when another revision is stored.
        """
        kept = json.dumps(document, ensure_ascii=False, allow_nan=False)
        title, model = document["title"], document["model"]
        with self._writing() as database:
            found = database.execute(
                "SELECT number, revision FROM conversations WHERE id = ?", (id,)
            ).fetchone()
            number, stored = found or (None, 0)
            if stored != revision:
                raise Conflict(_whole(id, _stored_row(database, id)))
            values = (title, model, time.time(), revision + 1, kept)
            if number is None:
                number = database.execute(
                    "INSERT INTO conversations (title, model, updated, revision, document, id) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (*values, id),
                ).lastrowid
            else:
                database.execute(
                    "UPDATE conversations SET title = ?, model = ?, updated = ?, revision = ?, document = ? "
                    "WHERE number = ?",
                    (*values, number),
                )
            database.execute(
                "INSERT OR REPLACE INTO conversation_texts (rowid, title, text) VALUES (?, ?, ?)",
                (number, title, text),
            )
        return revision + 1

    def delete_conversation(self, id: str) -> bool:
        """Whether there was one."""
        with self._writing() as database:
            found = database.execute(
                "DELETE FROM conversations WHERE id = ? RETURNING number", (id,)
            ).fetchall()
            database.executemany("DELETE FROM conversation_texts WHERE rowid = ?", found)
        return bool(found)

    def add_vote(self, vote: Vote) -> int:
        """Keep it, with the time; the number of votes."""
        with self._writing() as database:
            database.execute(
                "INSERT INTO votes (created, prompt, first_model, first_text, second_model, second_text, choice, "
                "reason, annotator, blind) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    vote.created or time.time(),
                    json.dumps(vote.prompt, ensure_ascii=False),
                    vote.models[0],
                    vote.texts[0],
                    vote.models[1],
                    vote.texts[1],
                    vote.choice,
                    vote.reason,
                    vote.annotator,
                    vote.blind,
                ),
            )
            return database.execute("SELECT count(*) FROM votes").fetchone()[0]

    def votes(self) -> list[Vote]:
        """In the order in which they were given."""
        rows = self._rows(
            "SELECT prompt, first_model, second_model, first_text, second_text, choice, reason, annotator, blind, "
            "created FROM votes ORDER BY number"
        )
        return [
            Vote(
                json.loads(prompt),
                (a, b),
                (first, second),
                choice,
                reason,
                annotator,
                bool(blind),
                created,
            )
            for prompt, a, b, first, second, choice, reason, annotator, blind, created in rows
        ]

    def vote_counts(self) -> list[tuple[str, str, str, int]]:
        """(first model, second model, choice, how often)."""
        return self._rows(
            "SELECT first_model, second_model, choice, count(*) FROM votes GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        )

    def put_response(
        self, id: str, document: Mapping[str, Any], previous: str | None = None
    ) -> None:
        """Keep the answer to a `/v1/responses` request under its id, in place of what had it. previous: the id of the
        one that it continues."""
        kept = json.dumps(document, ensure_ascii=False, allow_nan=False)
        with self._writing() as database:
            database.execute(
                "INSERT OR REPLACE INTO responses (id, previous, created, document) VALUES (?, ?, ?, ?)",
                (id, previous, time.time(), kept),
            )

    def response(self, id: str) -> tuple[dict[str, Any], str | None] | None:
        """The document, and the id of the one that it continues."""
        rows = self._rows("SELECT document, previous FROM responses WHERE id = ?", (id,))
        return (json.loads(rows[0][0]), rows[0][1]) if rows else None

    def delete_response(self, id: str) -> bool:
        """Whether there was one."""
        with self._writing() as database:
            return database.execute("DELETE FROM responses WHERE id = ?", (id,)).rowcount > 0

    def _prepare(self) -> None:
        database = self._database
        # Asked before anything is written: a file of something else stays as it is.
        kind, version, tables = (
            database.execute(query).fetchone()[0]
            for query in (
                "PRAGMA application_id",
                "PRAGMA user_version",
                "SELECT count(*) FROM sqlite_master",
            )
        )
        if tables and kind != _APPLICATION_ID:
            raise sqlite3.DatabaseError("another application's database")
        if version > len(_MIGRATIONS):
            raise RequestError(
                f"{self.path} was written by a newer Gristmill (version {version} of the store; this one knows "
                f"{len(_MIGRATIONS)}). Upgrade Gristmill, or name another file."
            )
        _write_ahead(database)
        database.execute("PRAGMA synchronous = FULL")
        with _transaction(database):
            # Asked again, now that nobody else writes: another server may just have done it.
            version = database.execute("PRAGMA user_version").fetchone()[0]
            for number, script in enumerate(_MIGRATIONS[version:], version + 1):
                for statement in filter(None, map(str.strip, script.split(";\n"))):
                    database.execute(statement)
                database.execute(f"PRAGMA user_version = {number}")
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")

    def _refusal(self, error: sqlite3.Error) -> RequestError:
        if "fts5" in str(error):
            return RequestError(
                f"the SQLite {sqlite3.sqlite_version} of this Python cannot search text ({error}). It needs the FTS5 "
                "module: use a Python from python.org, your distribution, or conda."
            )
        return RequestError(
            f"{self.path} cannot hold the server's conversations ({error}). Name a file that this server made or "
            "may make."
        )

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> list[tuple]:
        with self._held() as database:
            return database.execute(query, values).fetchall()

    @contextmanager
    def _held(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._database
            except sqlite3.Error as error:
                place = self.path or "the store in memory"
                raise WorkError(f"{place} could not be read or written: {error}") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._held() as database, _transaction(database):
            yield database


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of it, or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def _connect(path: Path | None) -> sqlite3.Connection:
    try:
        if path is not None:
            if path == default_path():
                path.parent.mkdir(parents=True, exist_ok=True)
            if not path.parent.is_dir():
                raise RequestError(f"there is no directory {path.parent} to keep {path.name} in")
            # What people say to a model is theirs alone.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        return sqlite3.connect(
            path or ":memory:", _BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
    except (OSError, sqlite3.Error, ValueError) as error:
        raise RequestError(
            f"{path} cannot hold the server's conversations ({error}). Name a file in a directory that may be "
            "written."
        ) from None


def _write_ahead(database: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. SQLite does not wait for others here, as its busy timeout does elsewhere."""
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _stored_row(database: sqlite3.Connection, id: str) -> tuple[str, int, float] | None:
    return database.execute(
        "SELECT document, revision, updated FROM conversations WHERE id = ?", (id,)
    ).fetchone()


def _whole(id: str, row: tuple[str, int, float] | None) -> dict[str, Any] | None:
    return row and {"id": id, **json.loads(row[0]), "revision": row[1], "updated": row[2]}


def _match(query: str) -> str:
    """An FTS5 expression that holds for texts with all words of `query` or words that begin so; quoted, nothing in it
    is an operator. Text without a word matches nothing."""
    words = query.replace("\0", " ").encode(errors="replace").decode().split()[:_MAX_WORDS]
    return " ".join('"' + word.replace('"', '""') + '"*' for word in words) or '""'
