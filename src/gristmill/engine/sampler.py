"""From next-token logits to the next token: penalties, temperature, min-p, top-k, top-p, draw.

The order is vLLM's. Each row is a function of its own logits, parameters, history and position;
rows are worked on together only because that is faster. Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gristmill.lm import SamplingParams

GREEDY_BELOW = 1e-5  # a temperature under this is 0 (as in vLLM)


@dataclass(frozen=True)
class History:
    """What a row's penalties and draw depend on: its parameters, prompt and output so far."""

    params: SamplingParams
    prompt: Sequence[int]
    output: Sequence[int]


def sample(logits_BV: Tensor, rows: Sequence[History]) -> list[int]:
    """The next token of every row."""
    logits = apply_penalties(logits_BV.float(), rows)
    tokens = logits.argmax(dim=-1).tolist()  # the first of equals, that is the lowest id
    drawn = [i for i, row in enumerate(rows) if row.params.temperature >= GREEDY_BELOW]
    if drawn:
        kept = filter_logits(logits[drawn], [rows[i].params for i in drawn])
        uniforms = [
            uniform(rows[i].params.seed, len(rows[i].prompt) + len(rows[i].output)) for i in drawn
        ]
        for i, token in zip(drawn, draw(kept, uniforms), strict=True):
            tokens[i] = token
    return tokens


def apply_penalties(logits_BV: Tensor, rows: Sequence[History]) -> Tensor:
    """Repetition (Keskar et al. 2019; prompt and output), then frequency and presence (output)."""
    copied = False
    for i, row in enumerate(rows):
        p = row.params
        repetition = p.repetition_penalty != 1.0
        additive = (p.frequency_penalty != 0.0 or p.presence_penalty != 0.0) and len(row.output) > 0
        if not (repetition or additive):
            continue
        if not copied:
            logits_BV, copied = logits_BV.clone(), True
        logits_V = logits_BV[i]
        if repetition:
            seen = torch.tensor(sorted({*row.prompt, *row.output}), device=logits_V.device)
            old = logits_V[seen]
            r = p.repetition_penalty
            logits_V[seen] = torch.where(old > 0, old / r, old * r)
        if additive:
            ids, counts = torch.unique(torch.tensor(row.output), return_counts=True)
            ids, counts = ids.to(logits_V.device), counts.to(logits_V.device)
            logits_V[ids] -= p.frequency_penalty * counts + p.presence_penalty
    return logits_BV


def filter_logits(logits_BV: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Divide by the temperature, then set what min-p, top-k and top-p cut to -inf.

    A row that does not use a cut loses nothing by it when its neighbours do. Ties at the k-th value
    are all kept; ties at the edge of top-p keep the lower ids.
    """

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits_BV.device)[:, None]

    cut = float("-inf")
    logits = logits_BV / column([p.temperature for p in params])
    if any(p.min_p > 0 for p in params):
        probs = logits.softmax(dim=-1)
        least = probs.amax(dim=-1, keepdim=True) * column([p.min_p for p in params])
        logits = logits.masked_fill(probs < least, cut)
    size = logits.shape[-1]
    limited_k = any(p.top_k is not None and p.top_k < size for p in params)
    limited_p = any(p.top_p < 1 for p in params)
    if limited_k or limited_p:
        ranked, order = logits.sort(dim=-1, descending=True, stable=True)
        if limited_k:
            k = column([min(p.top_k or size, size) for p in params], torch.long)
            too_small = ranked < ranked.gather(1, k - 1)
            ranked = ranked.masked_fill(too_small, cut)
        if limited_p:
            # From the least likely up, as transformers does: drop while the running sum is <= 1 -
            # p.
            rising = ranked.flip(-1).softmax(dim=-1).cumsum(dim=-1)
            tail = (rising <= 1 - column([p.top_p for p in params])).flip(-1)
            tail[:, 0] = False
            ranked = ranked.masked_fill(tail, cut)
        logits = torch.empty_like(logits).scatter_(1, order, ranked)
    return logits


def draw(logits_BV: Tensor, uniforms: Sequence[float]) -> list[int]:
    """The token where each row's cumulative probability first exceeds its number in [0, 1)."""
    cumulative = logits_BV.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    u = torch.tensor(uniforms, dtype=torch.float64, device=logits_BV.device)[:, None]
    return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0].tolist()


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but (seed, position); 52 bits, so that scaling it
    by a sum never rounds up to that sum."""
    digest = hashlib.blake2b(f"{seed}|{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 12) / 2**52
