"""Bits per byte: what a model needs, on average, to say the next byte of text that it has not seen.

Every token of a document but its first (the separator, which is given) is scored exactly once, and its bits
are divided by the UTF-8 bytes of the document: the number does not depend on the tokenizer.

The window rule: a document of at most `context` + 1 tokens is one window. A longer one is read in windows of
`context` tokens, each half a window further; the first window scores all its tokens, a later one those of
its second half, so past the document's start a token is predicted from at least context/2 tokens before it.
(lm-eval's rolling windows are disjoint: they predict a window's first token from one token of context.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gristmill.evaluate.likelihood import batches, masked_logprobs
from gristmill.evaluate.shards import Document
from gristmill.model import Transformer


@dataclass(frozen=True)
class Bits:
    """`bits` spent on `tokens` tokens that spell `bytes` bytes."""

    bits: float
    bytes: int
    tokens: int

    @property
    def per_byte(self) -> float:
        return self.bits / self.bytes if self.bytes else math.nan

    def __add__(self, other: Bits) -> Bits:
        return Bits(self.bits + other.bits, self.bytes + other.bytes, self.tokens + other.tokens)


@dataclass(frozen=True)
class _Window:
    """Inputs tokens[start:end-1], targets tokens[start+1:end]; those before `scored_from` are context."""

    document: int
    start: int
    end: int
    scored_from: int


def bits_per_byte(
    network: Transformer,
    documents: Sequence[Document],
    *,
    context: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Bits]:
    """Bits of held-out documents by group, summed in float64; `total(...)` adds the groups.

    `context`: tokens that a window holds, by default (and at most) the model's max_seq_len.
    """
    limit = network.config.max_seq_len
    context = min(context or limit, limit)
    device = next(network.parameters()).device
    windows = [
        window
        for number, document in enumerate(documents)
        for window in _windows(number, len(document.tokens), context)
    ]
    nats = np.zeros(len(documents), np.float64)
    with torch.inference_mode():
        for batch in batches(windows, lambda window: window.end - window.start - 1):
            width = max(window.end - window.start - 1 for window in batch)
            tokens = torch.zeros((len(batch), width), dtype=torch.long)
            targets = torch.full((len(batch), width), -1, dtype=torch.long)
            for row, window in enumerate(batch):
                ids = documents[window.document].tokens[window.start : window.end]
                ids = torch.from_numpy(ids.astype(np.int64))
                tokens[row, : len(ids) - 1] = ids[:-1]
                first = window.scored_from - window.start - 1
                targets[row, first : len(ids) - 1] = ids[first + 1 :]
            hidden = network.hidden(tokens.to(device), dtype=dtype)
            logprobs = masked_logprobs(network, hidden, targets.to(device))
            for row, window in enumerate(batch):
                nats[window.document] -= logprobs[row].sum().item()
    groups: dict[str, Bits] = {}
    for document, cost in zip(documents, nats.tolist(), strict=True):
        here = Bits(cost / math.log(2), document.size, max(0, len(document.tokens) - 1))
        groups[document.group] = groups.get(document.group, Bits(0.0, 0, 0)) + here
    return dict(sorted(groups.items()))


def total(groups: dict[str, Bits]) -> Bits:
    return sum(groups.values(), Bits(0.0, 0, 0))


def _windows(document: int, length: int, context: int) -> list[_Window]:
    """Windows that score each of tokens 1 .. length-1 once; a window holds at most `context` inputs."""
    windows: list[_Window] = []
    scored, start = 1, 0
    while scored < length:
        end = min(length, start + context + 1)
        windows.append(_Window(document, start, end, scored))
        scored, start = end, end - 1 - context // 2
    return windows
