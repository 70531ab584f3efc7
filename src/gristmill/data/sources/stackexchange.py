"""Stack Exchange data dumps: Posts.xml to one document a question, with its good answers.

One pass. Posts are put into a temporary SQLite file as they come, because an answer may stand far from its
question; the documents come out in the order of the questions' ids.
Reasons: "no_answer" (no answer that is good enough), "bad_record", "too_large", "unsupported_format"
(.7z), "unreadable", "broken_archive".
Format: https://meta.stackexchange.com/questions/2677
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gristmill.data.sources.item import Raw, printable
from gristmill.data.sources.licences import spdx
from gristmill.data.sources.markup import fragment_text
from gristmill.data.sources.opening import Damaged, lines, opened

MAX_ROW_BYTES = 2_000_000  # the site refuses bodies above 30,000 characters
MAX_ANSWERS = 50
MIN_SCORE = 3
_SITES = {
    "stackoverflow.com",
    "superuser.com",
    "serverfault.com",
    "askubuntu.com",
    "mathoverflow.net",
    "stackapps.com",
}


def read_stackexchange(
    path: Path,
    *,
    min_score: int = MIN_SCORE,
    max_answers: int = MAX_ANSWERS,
    site: str = "",
    counts: Counter[str] | None = None,
) -> Iterator[Raw]:
    """The questions of a site's dump: Posts.xml (plain or compressed), or the folder with it.

    min_score: answers below it are left out, unless accepted. site: host name for URLs; "" = from the
    folder's name where that is one. counts: takes posts that are neither question nor answer, and answers
    left out.
    """
    counts = counts if counts is not None else Counter()
    if path.is_dir():
        found = sorted(
            p for p in path.iterdir() if re.fullmatch(r"posts\.xml(\.\w+)?", p.name.lower())
        )
        if not found:
            yield Raw(
                printable(path.name),
                reason="unreadable",
                detail={"error": "no Posts.xml in this folder"},
            )
            return
        path = found[0]
    name = printable(f"{path.parent.name}/{path.name}")
    if path.suffix.lower() == ".7z":
        cure = f'unpack it first: 7z x "{path.name}", then name the folder'
        yield Raw(name, reason="unsupported_format", detail={"format": ".7z", "cure": cure})
        return
    site = site or _site(path)
    with tempfile.TemporaryDirectory(prefix="gristmill-posts-") as folder:
        store = sqlite3.connect(Path(folder) / "posts.sqlite", isolation_level=None)
        try:
            yield from _load(store, path, name, counts)
            for question in store.execute("SELECT * FROM questions ORDER BY id"):
                yield _document(store, question, name, site, min_score, max_answers, counts)
        finally:
            store.close()


def is_stackexchange(head: bytes) -> bool:
    """Whether a file's first (decompressed) bytes are those of a Posts.xml."""
    return b"<posts>" in head[:2000]


def _site(path: Path) -> str:
    for part in (path.parent.name.lower(), path.parent.parent.name.lower()):
        if part.endswith(".stackexchange.com") or part.removeprefix("meta.") in _SITES:
            return part
    return ""


def _load(store: sqlite3.Connection, path: Path, name: str, counts: Counter[str]) -> Iterator[Raw]:
    store.executescript(
        "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536; BEGIN;"
        "CREATE TABLE questions(id INTEGER PRIMARY KEY, score, accepted, body, title, tags, date, license);"
        "CREATE TABLE answers(parent, id INTEGER, score, body, date, license, PRIMARY KEY(parent, id)) WITHOUT ROWID;"
    )
    rows = 0
    try:
        with opened(path) as stream:
            for number, line, length in lines(stream, MAX_ROW_BYTES):
                if line is None:
                    yield Raw(
                        f"{name}:{number}",
                        reason="too_large",
                        detail={"bytes": length, "limit": MAX_ROW_BYTES},
                    )
                    continue
                line = line.strip().removeprefix(b"\xef\xbb\xbf")
                if not line.startswith(b"<row"):
                    if b"<!DOCTYPE" in line or b"<!ENTITY" in line:
                        error = "it declares a document type; these dumps have none, and entities can be a bomb"
                        yield Raw(name, reason="unreadable", detail={"error": error})
                        return
                    if number == 1 and not line.startswith(b"<"):
                        yield Raw(
                            name, reason="unreadable", detail={"error": "no XML at its start"}
                        )
                        return
                    continue
                rows += 1
                try:
                    _insert(store, ElementTree.fromstring(line), counts)
                except (ElementTree.ParseError, ValueError, KeyError, OverflowError) as error:
                    yield Raw(f"{name}:{number}", reason="bad_record", detail={"error": str(error)})
    except Damaged as error:
        reason = "broken_archive" if rows else "unreadable"
        yield Raw(name, reason=reason, detail={"error": str(error), "rows_read": rows})
    except OSError as error:
        yield Raw(name, reason="unreadable", detail={"error": error.strerror or str(error)})
    else:
        if not rows:
            yield Raw(name, reason="unreadable", detail={"error": "no <row> element"})


def _insert(store: sqlite3.Connection, row: ElementTree.Element, counts: Counter[str]) -> None:
    post, kind = int(row.attrib["Id"]), row.get("PostTypeId", "")
    score, body, date = int(row.get("Score", "0")), row.get("Body", ""), row.get("CreationDate", "")
    license = row.get("ContentLicense", "")
    if kind == "1":
        accepted = int(row.get("AcceptedAnswerId", "0"))
        values = (
            post,
            score,
            accepted,
            body,
            row.get("Title", ""),
            row.get("Tags", ""),
            date,
            license,
        )
        store.execute("INSERT OR REPLACE INTO questions VALUES (?,?,?,?,?,?,?,?)", values)
    elif kind == "2":
        values = (int(row.attrib["ParentId"]), post, score, body, date, license)
        store.execute("INSERT OR REPLACE INTO answers VALUES (?,?,?,?,?,?)", values)
    else:
        counts[f"post type {kind or 'unknown'}"] += 1


def _document(
    store: sqlite3.Connection,
    question: tuple[Any, ...],
    name: str,
    site: str,
    min_score: int,
    max_answers: int,
    counts: Counter[str],
) -> Raw:
    post, score, accepted, body, title, tags, date, license = question
    answers = store.execute(
        "SELECT id, score, body, license FROM answers WHERE parent = ? AND (score >= ? OR id = ?)"
        " ORDER BY id = ? DESC, score DESC, id LIMIT ?",
        (post, min_score, accepted, accepted, max_answers),
    ).fetchall()
    total = store.execute("SELECT count(*) FROM answers WHERE parent = ?", (post,)).fetchone()[0]
    counts["answer left out"] += total - len(answers)
    licenses = sorted({spdx(text) or text for text in (license, *(a[3] for a in answers)) if text})
    stated = licenses[0] if len(licenses) == 1 else " AND ".join(licenses)
    detail = {
        "post_id": post,
        "score": score,
        "tags": [tag for tag in re.split(r"[<>|]+", tags) if tag][:20],
        "answers": [{"id": a[0], "score": a[1], "accepted": a[0] == accepted} for a in answers],
        "answers_in_all": total,
    }
    labels: dict[str, Any] = {
        "source": f"{name}#{post}",
        "url": f"https://{site}/questions/{post}" if site else "",
        "date": f"{date[:19]}Z" if re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", date) else date,
        "license": stated,
        "kind": "qa",
        "title": title,
        "detail": detail,
    }
    if not answers:
        return Raw(**labels, reason="no_answer")
    parts = [f"# {title}" if title else "# Question", fragment_text(body)]
    for answer in answers:
        heading = "## Accepted answer" if answer[0] == accepted else "## Answer"
        parts += [heading, fragment_text(answer[2])]
    return Raw(**labels, text="\n\n".join(part for part in parts if part) + "\n")
