"""Where the rows of a batch come from: the group, the place in its shard, the documents."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from gristmill.files import read_json
from gristmill.train.windows import Windows


@dataclass(frozen=True)
class Span:
    """Tokens [begin, end) of a row, which belong to one document."""

    document: str  # its id
    begin: int
    end: int


@dataclass(frozen=True)
class Origin:
    """start: of the row in the group's shard, in tokens. spans: () where the shard has no list of documents."""

    group: str
    start: int
    spans: tuple[Span, ...]


def origins(windows: Windows, tokens_dir: Path, first: int, count: int) -> list[Origin]:
    """Of the rows `first .. first+count-1` of the training stream. Reads the lists of documents of their groups."""
    places, begins = copy(windows), [0]
    for tokens in windows.tokens:
        begins.append(begins[-1] + len(tokens))
    shards = [_Places(b, len(t)) for b, t in zip(begins, windows.tokens, strict=False)]
    places.tokens = cast(Any, shards)
    starts = places.rows(first, count)[:, 0]
    numbers = np.searchsorted(begins, starts, side="right") - 1
    known: dict[str, tuple[np.ndarray, list[str]] | None] = {}
    found = []
    for number, start in zip(numbers.tolist(), starts.tolist(), strict=True):
        group = windows.groups[number]
        if group not in known:
            known[group] = _documents(tokens_dir, group)
        at = start - begins[number]
        found.append(Origin(group, at, _spans(known[group], at, windows.length)))
    return found


class _Places:
    """Stands where a shard does, and gives the places it is asked for, counted through all shards."""

    def __init__(self, begin: int, size: int) -> None:
        self.begin, self.size = begin, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: np.ndarray) -> np.ndarray:
        return at + self.begin


def _documents(tokens_dir: Path, group: str) -> tuple[np.ndarray, list[str]] | None:
    """Where each document of a shard begins, and their ids."""
    offsets, ids = tokens_dir / f"train.{group}.offsets.npy", tokens_dir / f"train.{group}.ids.json"
    if not offsets.is_file() or not ids.is_file():
        return None
    return np.load(offsets, mmap_mode="r"), read_json(ids)


def _spans(
    documents: tuple[np.ndarray, list[str]] | None, start: int, length: int
) -> tuple[Span, ...]:
    if documents is None:
        return ()
    offsets, ids = documents
    first = int(np.searchsorted(offsets, start, side="right")) - 1
    last = int(np.searchsorted(offsets, start + length, side="left"))
    spans = []
    for number in range(first, min(last, len(ids))):
        begin = max(0, int(offsets[number]) - start)
        end = min(length, int(offsets[number + 1]) - start)
        if end > begin:  # an empty document has no tokens
            spans.append(Span(ids[number], begin, end))
    return tuple(spans)
