"""From next-token logits to the next token. The order of operations is vLLM's.

    grammar and allowed ids · bad words · min_tokens, bias · repetition, frequency, presence penalties
    · (greedy: the likeliest) · temperature · min-p · top-k · top-p · draw

Each row is a function of its own logits, parameters, history and position alone: cuts and draws are made row by row.

The draw is an exponential race: of the tokens that are left, the one with the largest p / e, where e is Exp(1)
noise that depends on (seed, position, token). Two models that draw with the same noise mostly draw the same token,
which is what speculation lives on. Shapes: B rows, V vocabulary, K tokens that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gristmill.engine.philox import exponentials
from gristmill.kernels import ROW, has_native, sample_native
from gristmill.lm import SamplingParams, TokenLogprob

GREEDY_BELOW = 1e-5  # a temperature under this is 0 (as in vLLM)
_BINS, _BINS_PER_NAT = 4096, 128.0  # in which top-p looks for its edge
_STRIPES = 64  # top-k looks at their largest first
_NEVER = float("-inf")


@dataclass(frozen=True)
class History:
    """What a row's processing and draw depend on: its parameters, prompt and output so far."""

    params: SamplingParams
    prompt: Sequence[int]
    output: Sequence[int]
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    bad_words: tuple[tuple[int, ...], ...] = ()  # as tokens

    @property
    def position(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def greedy(self) -> bool:
        return self.params.temperature < GREEDY_BELOW


def sample(
    logits_BV: Tensor, rows: Sequence[History], masks: Tensor | None = None
) -> tuple[list[int], list[float]]:
    """The next token of every row, and its log-probability in what it was drawn from.

    masks: int32 [B, ⌈V/32⌉], a set bit for an allowed token. A row where nothing is left gives token 0 with
    log-probability -inf.
    """
    given = logits_BV.float()
    logits = process(given, rows, masks)
    if all(row.greedy for row in rows):
        tokens, logprobs = _likeliest(logits), [0.0] * len(rows)
    elif has_native and logits.is_cpu:
        tokens, logprobs = sample_native(logits, _native_rows(rows))
    else:
        tokens, logprobs = sample_torch(logits, rows)
    if logits is not given:  # something was banned, perhaps everything
        chosen = logits[range(len(rows)), tokens].tolist()
        logprobs = [_NEVER if c == _NEVER else p for c, p in zip(chosen, logprobs, strict=True)]
    return tokens, logprobs


def sample_torch(logits: Tensor, rows: Sequence[History]) -> tuple[list[int], list[float]]:
    """What follows `process`, row by row."""
    tokens, logprobs = _likeliest(logits), [0.0] * len(rows)
    for i, row in enumerate(rows):
        if not row.greedy:
            ids, kept = left(logits[i], row.params)
            tokens[i], logprobs[i] = draw(ids, kept, row.seed, row.position)
    return tokens, logprobs


def _likeliest(logits_BV: Tensor) -> list[int]:
    """The first of equals, that is the lowest id. On the CPU numpy is five times as fast as torch."""
    if logits_BV.is_cpu:
        return logits_BV.numpy(force=True).argmax(axis=-1).tolist()
    return logits_BV.argmax(dim=-1).tolist()


def _native_rows(rows: Sequence[History]) -> np.ndarray:
    entries = [
        (p.temperature, p.min_p, p.top_p, p.top_k or 0, row.seed, row.position)
        for row in rows
        for p in (row.params,)
    ]
    return np.array(entries, ROW)


def process(logits_BV: Tensor, rows: Sequence[History], masks: Tensor | None = None) -> Tensor:
    """All that also changes greedy decoding. A copy is made only where something changes."""
    out = logits_BV
    changed = [i for i, row in enumerate(rows) if _changes(row)]
    if masks is not None:
        # Padding beyond the vocabulary gets zeros, so it is never allowed.
        octets = masks.numpy(force=True).view(np.uint8)
        bits = np.unpackbits(octets, axis=1, count=logits_BV.shape[1], bitorder="little")
        out = out.masked_fill(torch.from_numpy(bits == 0).to(out.device), _NEVER)
    elif changed:
        out = out.clone()
    for i in changed:
        _process_row(out[i], rows[i])
    return out


def _changes(row: History) -> bool:
    p = row.params
    return bool(
        p.allowed_token_ids
        or row.bad_words
        or len(row.output) < p.min_tokens
        or p.logit_bias
        or p.repetition_penalty != 1
        or (row.output and (p.frequency_penalty or p.presence_penalty))
    )


def _process_row(logits_V: Tensor, row: History) -> None:
    """In place."""
    p, size = row.params, len(logits_V)
    if p.allowed_token_ids is not None:
        kept = _ids(p.allowed_token_ids, size, logits_V)
        values = logits_V[kept]
        logits_V.fill_(_NEVER)
        logits_V[kept] = values
    for *before, last in row.bad_words:
        if list(row.output[len(row.output) - len(before) :]) == before:
            logits_V[last] = _NEVER
    if len(row.output) < p.min_tokens and row.stop_ids:
        logits_V[_ids(sorted(row.stop_ids), size, logits_V)] = _NEVER
    if p.logit_bias:
        added = torch.tensor(list(p.logit_bias.values()), device=logits_V.device)
        logits_V[_ids(list(p.logit_bias), size, logits_V)] += added
    if p.repetition_penalty != 1:  # Keskar et al. 2019
        seen = _ids(sorted({*row.prompt, *row.output}), size, logits_V)
        old, r = logits_V[seen], p.repetition_penalty
        logits_V[seen] = torch.where(old > 0, old / r, old * r)
    if row.output and (p.frequency_penalty or p.presence_penalty):
        ids, counts = torch.unique(torch.tensor(row.output), return_counts=True)
        ids, counts = ids.to(logits_V.device), counts.to(logits_V.device)
        logits_V[ids] -= p.frequency_penalty * counts
        logits_V[ids] -= p.presence_penalty


def _ids(ids: Sequence[int], size: int, like: Tensor) -> Tensor:
    return torch.tensor([i for i in ids if i < size], dtype=torch.long, device=like.device)


def left(logits_V: Tensor, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """What temperature, min-p, top-k and top-p leave: ids [K] and their logits, float32.

    Ties at the k-th value are all kept; of ties at the edge of top-p the lower ids.
    """
    scaled_V = logits_V.cpu() / params.temperature
    logits = scaled_V.numpy()
    possible = logits > _NEVER
    if params.min_p > 0:
        probs = scaled_V.softmax(-1).numpy()
        possible &= probs >= params.min_p * probs.max()
    ids = np.arange(len(logits))
    if not possible.all():
        ids, logits = ids[possible], logits[possible]
    if params.top_k is not None and params.top_k < len(ids):
        kept = np.flatnonzero(logits >= _kth_largest(logits, params.top_k))
        ids, logits = ids[kept], logits[kept]
    if params.top_p < 1 and len(ids):
        kept = _top_p(logits, params.top_p)
        ids, logits = ids[kept], logits[kept]
    return ids, logits


def _kth_largest(values: np.ndarray, k: int) -> np.float32:
    """The k-th largest of the stripes' largest is at most the k-th of all: what lies below need not be sorted."""
    width = len(values) // _STRIPES
    if k <= width:
        peaks = values[: _STRIPES * width].reshape(_STRIPES, width).max(axis=0)
        values = values[values >= np.partition(peaks, width - k)[width - k]]
    return np.partition(values, len(values) - k)[len(values) - k]


def _top_p(values: np.ndarray, top_p: float) -> np.ndarray:
    """Indices, ascending, of the likeliest before which less than `top_p` of the mass lies (Holtzman et al. 2020).

    Masses are added up by bins of like values; only the bin that the edge falls in is sorted.
    """
    shifted = values.astype(np.float64) - values.max()
    weights = np.exp(shifted)
    bins = np.minimum(shifted * -_BINS_PER_NAT, _BINS - 1.0).astype(np.int64)
    mass = np.cumsum(np.bincount(bins, weights, _BINS))
    wanted = top_p * mass[-1]
    edge = min(int(np.searchsorted(mass, wanted)), _BINS - 1)
    inside = np.flatnonzero(bins == edge)
    inside = inside[np.argsort(-values[inside], kind="stable")]  # of equals the lower first
    before = np.cumsum(weights[inside]) - weights[inside] + (mass[edge - 1] if edge else 0.0)
    kept = bins < edge
    kept[inside[before < wanted]] = True
    return np.flatnonzero(kept)


def draw(ids: np.ndarray, logits: np.ndarray, seed: int, position: int) -> tuple[int, float]:
    """The winner of the race among ids [K] with these logits, and the log of its share. Ties go to the lowest id."""
    if not len(ids):
        return 0, _NEVER
    shifted = logits.astype(np.float64) - logits.max()
    weights = np.exp(shifted)
    winner = int(np.argmax(weights / exponentials(seed, position, ids)))
    return int(ids[winner]), float(shifted[winner] - np.log(weights.sum()))


def token_logprob(
    logits_V: Tensor, token: int, alternatives: int, sampled: float | None = None
) -> TokenLogprob:
    """What the model itself says of a token, and of the likeliest ones (ties: the lower id first)."""
    logprobs_V = logits_V.float().log_softmax(-1)
    own = logprobs_V[token]
    rank = 1 + int((logprobs_V > own).sum())
    top: tuple[tuple[int, float], ...] = ()
    if alternatives:
        values, ids = logprobs_V.topk(min(alternatives, len(logprobs_V)))
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        top = tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
    return TokenLogprob(token, float(own), top, rank, sampled)
