"""The story of a document: finding it by what people call it, and telling what was decided about it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from gristmill.data import Document, documents, documents_dir
from gristmill.data.schema import FILES
from gristmill.errors import RequestError

_SHOWN = 20
_LOOKED_AT = 20_000  # sources that are compared for a hint: more would take minutes


def find(directory: Path, wanted: str) -> list[Document]:
    """The documents that `wanted` names: exactly, else by the end of source or path.

    Raises RequestError when there is none (with the nearest source) or more than 20.
    """
    if not wanted.strip():
        raise RequestError("name a document: its id, its source, or the end of its source or path")
    path = Path(wanted).expanduser()
    url = path.resolve().as_uri() if path.exists() else ""
    tail = "/" + wanted.lstrip("/")
    ways = (
        lambda row: wanted in (row.id, row.source, row.url),
        lambda row: row.url == url,
        lambda row: row.source.startswith((f"{wanted}:", f"{wanted}/")),  # records of a file
        lambda row: f"/{wanted.lstrip('/')}:" in row.source or f"{tail}/" in row.source,
        lambda row: row.source.endswith(tail),
    )
    by_way: list[list[Document]] = [[] for _ in ways]
    counts = [0] * len(ways)
    for row in _all(directory):
        for number, matches in enumerate(ways):
            if matches(row):
                counts[number] += 1
                if len(by_way[number]) < _SHOWN:
                    by_way[number].append(row)
    found, count = next(
        ((rows, count) for rows, count in zip(by_way, counts, strict=True) if rows), ([], 0)
    )
    if not found:
        raise RequestError(
            f'no document "{wanted}" in {documents_dir(directory)}.{_nearest(directory, wanted)}'
        )
    if count > _SHOWN:
        raise RequestError(
            f'"{wanted}" names {count} documents, for example {found[0].source} and {found[1].source}. '
            "Give more of the source, or an id."
        )
    return found


def _all(directory: Path) -> Iterator[Document]:
    for part in FILES:
        yield from documents(directory, part)


def _nearest(directory: Path, wanted: str) -> str:
    """A hint: the nearest source, or the source whose file name is nearest: people type either."""
    sources = [row.source for row in islice(_all(directory), _LOOKED_AT)]
    names = {source.rsplit("/", 1)[-1]: source for source in reversed(sources)}
    names |= {source: source for source in sources}
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    return f' Did you mean "{names[close[0]]}"?' if close else ""


def record(row: Document) -> dict[str, Any]:
    columns = (
        "id",
        "source",
        "url",
        "license",
        "date",
        "kind",
        "group",
        "package",
        "drop_reason",
        "split",
    )
    return {
        **{name: getattr(row, name) for name in columns},
        "kept": not row.drop_reason,
        "characters": len(row.text),
        "meta": row.details,
    }


def explain(row: Document) -> list[tuple[str, str]]:
    """(label, value) lines for a person: what it is, what was changed, what was decided and why, what was measured."""
    story = dict(row.details)
    profile = story.pop("profile", row.kind)
    lines = [
        *_what(row, story),
        *_changed(row, story),
        *_decided(row, story),
        *((name.replace("_", " "), _plain(value)) for name, value in _rest(story)),
    ]
    for name, value in story.get("signals", {}).items():
        lines.append(("measured", f"{name} {value:g}{_limits(profile, name)}"))
    return lines


_TOLD = (
    "bytes",
    "encoding",
    "not_python",
    "removed",
    "flagged",
    "repaired",
    "decided",
    "also",
    "nearly",
)
_TOLD += ("duplicate_of", "signals", "split_by", "language", "title", "evaluation_items")


def _rest(story: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted((name, value) for name, value in story.items() if name not in _TOLD)


def _what(row: Document, story: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "document", f"{row.source}  (id {row.id})"
    if "title" in story:
        yield "title", story["title"]
    yield "from", row.url
    if row.date:
        yield "changed", row.date
    yield "licence", row.license or "not stated"
    yield "kind", row.kind + (f", read as {story['encoding']}" if "encoding" in story else "")
    if "not_python" in story:
        yield "", f"does not parse as Python: {story['not_python']}"
    if "language" in story:
        language = story["language"]
        yield "language", f"{language['code']} ({language['confidence']:.0%} sure)"
    yield "group", row.group + (f", package {row.package}" if row.package else "")
    yield "size", f"{story.get('bytes', 0):,} bytes on disk, {len(row.text.encode()):,} cleaned"


def _changed(row: Document, story: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "repaired" in story:
        yield "repaired", ", ".join(story["repaired"])
    for name, label in (("removed", "removed"), ("flagged", "holds")):
        if name in story:
            yield label, ", ".join(f"{count} {kind}" for kind, count in story[name].items())


def _decided(row: Document, story: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if row.drop_reason:
        yield "decision", f"dropped: {row.drop_reason}"
        if "decided" in story:
            yield "because", _finding(story["decided"])
    else:
        unit = f", split by {story['split_by']}" if "split_by" in story else ""
        yield "decision", f"kept, in {row.split}{unit}"
    for finding in story.get("also", ()):
        yield "also", f"{finding['reason']}: {_finding(finding)}"
    for finding in story.get("nearly", ()):
        yield "nearly", f"{finding['reason']}: {_finding(finding)}"
    if "duplicate_of" in story:
        stays = story["duplicate_of"]
        yield "copy of", f"{stays['source']}  (id {stays['id']}), which stays"
    for item in story.get("evaluation_items", ()):
        yield (
            "holds",
            f"item {item['item']} of {item['set']}, {item['share']:.0%} of it, at bytes {item['bytes']}",
        )


def _finding(finding: Mapping[str, Any]) -> str:
    value = finding["value"]
    told = f"{value:g}" if isinstance(value, int | float) else f'"{value}"'
    return f"{finding['signal']} is {told}, kept if {finding['limit']}"


def _limits(profile: str, signal: str) -> str:
    from gristmill.data.rules import PROFILES

    rules = [rule for rule in PROFILES[profile].rules if rule.signal == signal]
    return "".join(f"  (kept if {rule.limit}, else {rule.reason})" for rule in rules)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
