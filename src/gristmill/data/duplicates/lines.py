"""Lines and paragraphs that stand in the corpus before: menus, notices and footers, cut where they come again.

Each of them is a 128-bit hash and a number in reading order, in files by their hashes; in memory is one file at a
time. Short ones stay, so that headings do, and so does code, where a line means what it means at its
place.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gristmill.data.decisions import Labels
from gristmill.data.duplicates.cuts import Spans, add_cuts
from gristmill.data.steps import CODE_KINDS


@dataclass(frozen=True, slots=True)
class Floor:
    """The shortest that goes. A text without white space has enough words from 4 * `characters` on."""

    characters: int
    words: int

    def holds(self, text: str) -> bool:
        if len(text) < self.characters:
            return False
        return len(text) >= 4 * self.characters or len(text.split()) >= self.words


What = Literal["lines", "paragraphs"]
LEAST: dict[str, Floor] = {"lines": Floor(40, 6), "paragraphs": Floor(80, 12)}
_BREAK = {"lines": re.compile("\n"), "paragraphs": re.compile(r"\n(?:[^\S\n]*\n)+")}
_RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<i8")])
_MOST_FILES = 256
_A_RECORD = 80  # bytes of memory for each record of a file: itself, and what sorting takes
_AT_ONCE = 1 << 15


def drop_repeated(
    labels: Labels,
    scratch: Path,
    what: What,
    least: Floor | None = None,
    memory_bytes: int = 1 << 28,
) -> None:
    """Cut from the kept documents the lines (or paragraphs) that came before in reading order, also in themselves.

    Two are equal when they are without the white space around them; `least` (LEAST[what]) is the floor. Cuts are
    added to those that a document has, and what an earlier cut touches is left out. A document of which nothing
    is left is dropped whole, as "repeated_text". `scratch`: where files lie meanwhile.
    """
    floor = least or LEAST[what]
    directory = scratch / "repeated"
    shutil.rmtree(directory, ignore_errors=True)  # of a killed process
    directory.mkdir(parents=True)
    try:
        # Each one has a break and `characters` of text at least, or less only where the floor is 0.
        most = int(labels.size[labels.kept].sum()) // max(1, floor.characters) + 1
        files = min(_MOST_FILES, -(-most * _A_RECORD // memory_bytes))
        count = _write(labels, what, floor, directory, files)
        if not count:
            return
        marks = np.lib.format.open_memmap(
            directory / "marks.npy", mode="w+", dtype=np.bool_, shape=(count,)
        )
        for number in range(files):
            marks[_repeats(np.fromfile(directory / f"{number}.bin", _RECORD))] = True
        _cut(labels, what, floor, marks)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def pieces(text: str, what: What) -> Iterator[tuple[str, int, int]]:
    """(line or paragraph without white space around it, span of characters that goes with it).

    The span takes the break behind it along; of the last one without a break, that before it.
    """
    start, before = 0, 0
    for found in _BREAK[what].finditer(text):
        yield text[start : found.start()].strip(), start, found.end()
        start, before = found.end(), found.start()
    if start < len(text):
        end = len(text)
        while what == "paragraphs" and end > start and text[end - 1] == "\n":
            end -= 1  # the end of the file stays
        yield text[start:end].strip(), before, end


def _texts(labels: Labels) -> Iterator[tuple[int, str]]:
    kept = np.flatnonzero(labels.kept)
    for where, table in labels.rows(kept, "text", "kind"):
        texts, kinds = table["text"].to_pylist(), table["kind"].to_pylist()
        for at, text, kind in zip(kept[where].tolist(), texts, kinds, strict=True):
            if kind not in CODE_KINDS:
                yield at, text


def _found(
    labels: Labels, what: What, floor: Floor
) -> Iterator[tuple[int, str, list[tuple[str, int, int]]]]:
    """(document, its text, what of it counts, with spans of its UTF-8 bytes)."""
    for at, text in _texts(labels):
        found, place, place_bytes = [], 0, 0
        cuts = labels.cuts.get(at, [])
        for piece, start, end in pieces(text, what):
            if not floor.holds(piece):
                continue
            low = place_bytes + _bytes(text, place, start)
            place, place_bytes = end, low + _bytes(text, start, end)
            if not any(low < other and first < place_bytes for first, other in cuts):
                found.append((piece, low, place_bytes))
        yield at, text, found


def _bytes(text: str, start: int, end: int) -> int:
    """How many bytes further `end` lies than `start`, which may lie behind it."""
    if text.isascii():  # which is known without looking
        return end - start
    return len(text[start:end].encode()) - len(text[end:start].encode())


def _write(labels: Labels, what: What, floor: Floor, directory: Path, files: int) -> int:
    """The records in `files` files by their hash, each in the order of the numbers; how many there are."""
    count = 0
    waiting = bytearray()
    with ExitStack() as stack:
        out = [stack.enter_context(open(directory / f"{n}.bin", "wb")) for n in range(files)]

        def flush(first: int) -> None:
            records = np.empty(len(waiting) // 16, _RECORD)
            keys = np.frombuffer(bytes(waiting), "<u8").reshape(-1, 2)
            records["high"], records["low"] = keys[:, 0], keys[:, 1]
            records["number"] = np.arange(first, first + len(records))
            for number in range(files):
                out[number].write(records[records["high"] % files == number].tobytes())
            waiting.clear()

        for _, _, found in _found(labels, what, floor):
            for piece, _, _ in found:
                waiting += hashlib.blake2b(piece.encode(), digest_size=16).digest()
            count += len(found)
            if len(waiting) >= 16 * _AT_ONCE:
                flush(count - len(waiting) // 16)
        flush(count - len(waiting) // 16)
    return count


def _repeats(records: np.ndarray) -> np.ndarray:
    """The numbers of the records that have an earlier one of equal hash."""
    order = np.lexsort((records["low"], records["high"]))  # stable: the first number first
    high, low = records["high"][order], records["low"][order]
    again = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    return records["number"][order[1:][again]]


def _cut(labels: Labels, what: What, floor: Floor, marks: np.ndarray) -> None:
    done = 0
    for at, text, found in _found(labels, what, floor):
        spans: Spans = [
            (low, high)
            for (_, low, high), again in zip(found, marks[done : done + len(found)], strict=True)
            if again
        ]
        done += len(found)
        if spans:
            add_cuts(labels, at, text, spans)
