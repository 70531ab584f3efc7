"""Spans of UTF-8 bytes to take out of a document, added to those that it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gristmill.data.decisions import Labels

Spans = list[tuple[int, int]]


def united(spans: Iterable[tuple[int, int]]) -> Spans:
    """Sorted, and those that overlap or touch made one."""
    out: Spans = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def add_cuts(labels: Labels, at: int, length: int, spans: Sequence[tuple[int, int]]) -> None:
    """Take `spans` out of the document `at`, whose text has `length` bytes; its `size` is what is left."""
    labels.cuts[at] = united([*labels.cuts.get(at, []), *spans])
    labels.size[at] = length - sum(end - start for start, end in labels.cuts[at])
