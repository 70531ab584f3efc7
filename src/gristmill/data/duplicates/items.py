"""Evaluation items: question and right answer of each, from the files in which evaluation sets are handed on."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.errors import RequestError

# The names that sets give to the same thing; the first that a row has counts.
_IDS = ("id", "task_id", "question_id", "example_id", "key")
_QUESTIONS = ("question", "prompt", "input", "problem", "query", "instruction", "turns", "text")
_ANSWERS = ("answer", "target", "canonical_solution", "solution", "output", "completion")
_CHOICES = ("choices", "options", "endings")
_RIGHT = ("answer", "label", "correct", "target")


@dataclass(frozen=True, slots=True)
class EvalItem:
    """set: the file's name; id: its own, or its number in the file from 0; text: question and right answer."""

    set: str
    id: str
    text: str


def read_items(path: Path) -> list[EvalItem]:
    """The items of a .jsonl, .json, .csv or .tsv file (also .gz), or of all such files below a folder.

    A CSV without a header has question, options and the letter of the right one (as MMLU is handed on). JSON is a
    list of objects, or an object with the list as "examples".
    Raises RequestError when there is no such file, it cannot be read, or a row has no question.
    """
    path = Path(path)
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if _form(file) in _READERS]
        if not files:
            raise RequestError(f"{path}: no .jsonl, .json, .csv or .tsv file in this folder")
        return [item for file in files for item in read_items(file)]
    if _form(path) not in _READERS:
        raise RequestError(f"{path}: evaluation items come as .jsonl, .json, .csv or .tsv")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = list(_READERS[_form(path)](raw.decode("utf-8-sig")))
    except (OSError, EOFError, ValueError, csv.Error) as error:
        raise RequestError(f"{path}: cannot read evaluation items: {error}") from None
    return [_item(path, number, row) for number, row in enumerate(rows)]


def _form(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _item(path: Path, number: int, row: Any) -> EvalItem:
    if not isinstance(row, dict):
        raise RequestError(
            f"{path}, item {number}: expected an object with a question, got {row!r:.80}"
        )
    question = _text(_first(row, _QUESTIONS))
    parts = [_text(row.get("context")), question, _right(row)]
    if not question:
        raise RequestError(
            f"{path}, item {number}: no question; name it one of {', '.join(_QUESTIONS)}"
        )
    own = _first(row, _IDS)
    name = path.name.removesuffix(".gz")
    return EvalItem(name, str(number if own is None else own), "\n".join(p for p in parts if p))


def _right(row: dict[str, Any]) -> str:
    """The right option where there are options, else the answer."""
    options = _options(row)
    right = _first(row, _RIGHT)
    if options and right is not None:
        at = _number(right)
        if at is not None and 0 <= at < len(options):
            return options[at]
    return _text(_first(row, _ANSWERS))


def _options(row: dict[str, Any]) -> list[str]:
    listed = _first(row, _CHOICES)
    if isinstance(listed, dict):  # {"text": [...], "label": [...]}
        listed = listed.get("text")
    if isinstance(listed, list):
        return [_text(option) for option in listed]
    for names in ("ABCDEFGHIJ", [f"ans{n}" for n in range(10)]):
        found = [_text(row[name]) for name in names if name in row]
        if found:
            return found
    return []


def _number(right: Any) -> int | None:
    """Which option: 0 for 0, "0" and "A"."""
    if isinstance(right, int):
        return right
    if isinstance(right, str) and len(right) == 1 and right.isascii():
        return int(right) if right.isdigit() else ord(right.upper()) - ord("A")
    return None


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "", [])), None)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(_text(one) for one in value)
    if isinstance(value, dict):
        return _text(value.get("content") or value.get("text") or "")
    return "" if value is None else str(value).strip()


def _json_lines(text: str) -> Iterator[Any]:
    return (json.loads(line) for line in text.split("\n") if line.strip())


def _json(text: str) -> Iterator[Any]:
    found = json.loads(text)
    found = found.get("examples", [found]) if isinstance(found, dict) else found
    return iter(found if isinstance(found, list) else [found])


def _csv(text: str, separator: str = ",") -> Iterator[dict[str, Any]]:
    rows = [row for row in csv.reader(text.splitlines(keepends=True), delimiter=separator) if row]
    if not rows:
        return
    header = [name.strip().lower() for name in rows[0]]
    if any(name in header for name in _QUESTIONS):
        for row in rows[1:]:
            yield dict(zip([name.strip() for name in rows[0]], row, strict=False))
        return
    for question, *options in rows:
        named = dict(zip("ABCDEFGHIJ", options[:-1], strict=False))
        yield {"question": question, "answer": options[-1] if options else "", **named}


def _tsv(text: str) -> Iterator[dict[str, Any]]:
    return _csv(text, "\t")


_READERS = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".tsv": _tsv}
