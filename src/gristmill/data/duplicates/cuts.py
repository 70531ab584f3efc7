"""Spans of UTF-8 bytes to take out of a document, added to those that it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

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


def add_cuts(labels: Labels, at: int, text: str, spans: Sequence[tuple[int, int]]) -> None:
    """Take `spans` out of the document `at`, whose text is `text`; its `size` is what is left.

    Where nothing is left, the document is dropped whole, as "repeated_text".
    """
    cuts = united([*labels.cuts.get(at, []), *spans])
    left = without(text, cuts)
    if left.strip():
        labels.cuts[at], labels.size[at] = cuts, len(left.encode())
    else:
        labels.cuts.pop(at, None)
        labels.size[at] = len(text.encode())
        labels.drop(np.array([at]), "repeated_text")


def without(text: str, cuts: Sequence[tuple[int, int]]) -> str:
    """`text` without the spans of its UTF-8 bytes, which are sorted and do not overlap."""
    data = text.encode()
    kept, done = [], 0
    for start, end in cuts:
        kept.append(data[done:start])
        done = end
    return b"".join([*kept, data[done:]]).decode()
