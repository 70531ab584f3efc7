"""One step's work: tokens of several requests end to end, and where each one's keys and values lie.

Prefill, a chunk of it, decoding and the verification of drafts are all this: (request, first position, count).
Letters: N tokens of the step, R requests, B blocks of the longest table, W wanted rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """Tokens `tokens` of one request, the first at position `start`.

    table: its cache blocks; those of positions before `start` are filled. length: tokens that the whole request
    has (LongRoPE's frequencies depend on it). wanted: how many of the last tokens' hidden states are wanted.
    """

    tokens: Sequence[int]
    start: int
    table: Sequence[int]
    length: int
    wanted: int
    adapter: str | None = None


@dataclass(frozen=True)
class RaggedBatch:
    """All integers are int32 and C-contiguous, so that native code reads them where they are.

    A token sees the positions up to its own of its own request: position p is slot
    `table[p // block_size] * block_size + p % block_size`.
    """

    tokens_N: np.ndarray
    positions_N: np.ndarray
    slots_N: np.ndarray  # where each token's keys and values go
    starts: np.ndarray  # [R + 1]: request r has the tokens starts[r] to starts[r + 1]
    tables_RB: np.ndarray  # padded with 0
    lengths_R: np.ndarray
    wanted_W: np.ndarray  # indices of tokens whose hidden states are wanted, ascending
    adapters: tuple[str | None, ...]  # of each request


def ragged(spans: Sequence[Span], block_size: int) -> RaggedBatch:
    """Lay the spans end to end."""
    counts = np.array([len(span.tokens) for span in spans], dtype=np.int32)
    starts = np.zeros(len(spans) + 1, dtype=np.int32)
    np.cumsum(counts, out=starts[1:])
    tokens = np.fromiter((t for s in spans for t in s.tokens), dtype=np.int32, count=starts[-1])
    owner = np.repeat(np.arange(len(spans)), counts)
    first = np.array([span.start for span in spans], dtype=np.int32)
    positions = np.arange(starts[-1], dtype=np.int32) - starts[owner] + first[owner]
    tables = np.zeros((len(spans), max(len(span.table) for span in spans)), dtype=np.int32)
    for row, span in enumerate(spans):
        tables[row, : len(span.table)] = span.table
        assert len(span.table) * block_size >= span.start + len(span.tokens), "a table is too short"
    slots = tables[owner, positions // block_size] * block_size + positions % block_size
    wanted = [np.arange(end - s.wanted, end) for s, end in zip(spans, starts[1:], strict=True)]
    return RaggedBatch(
        tokens,
        positions.astype(np.int32),
        slots.astype(np.int32),
        starts,
        tables,
        np.array([span.length for span in spans], dtype=np.int32),
        np.concatenate(wanted).astype(np.int32),
        tuple(span.adapter for span in spans),
    )
