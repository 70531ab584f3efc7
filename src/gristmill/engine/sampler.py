"""From next-token logits to the next token. The order of operations is vLLM's.

    grammar and allowed ids · bad words · min_tokens, bias · repetition, frequency, presence penalties
    · (greedy: the likeliest) · temperature · min-p · top-k · top-p · draw

Each row is a function of its own logits, parameters, history and position alone: cuts and draws are made row by row.

The draw is an exponential race: of the tokens that are left, the one with the largest log p - log e, where e is
Exp(1) noise that depends on (seed, position, token). Two models that draw with the same noise mostly draw the same
token, which is what speculation lives on. Shapes: B rows, V vocabulary, K tokens that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gristmill.engine.philox import exponentials
from gristmill.lm import SamplingParams, TokenLogprob

GREEDY_BELOW = 1e-5  # a temperature under this is 0 (as in vLLM)
_LIKELIEST = 1024  # top-p looks at so many before it sorts a whole row
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

    masks: int32 [B, ⌈V/32⌉], a set bit for an allowed token. Raises nothing for a row where nothing is allowed: it
    gives token 0 with probability 0.
    """
    logits = process(logits_BV.float(), rows, masks)
    tokens = logits.argmax(dim=-1).tolist()  # the first of equals, that is the lowest id
    logprobs = [0.0] * len(rows)
    for i, row in enumerate(rows):
        if not row.greedy:
            ids, kept = left(logits[i], row.params)
            tokens[i], logprobs[i] = draw(ids, kept, row.seed, row.position)
    return tokens, logprobs


def process(logits_BV: Tensor, rows: Sequence[History], masks: Tensor | None = None) -> Tensor:
    """All that also changes greedy decoding. A copy is made only where something changes."""
    out = logits_BV
    if masks is not None:
        bits = torch.arange(32, dtype=torch.int32)
        allowed = (masks[:, :, None] >> bits & 1).bool().flatten(1)[:, : logits_BV.shape[1]]
        if allowed.shape[1] < logits_BV.shape[1]:
            more = logits_BV.shape[1] - allowed.shape[1]
            allowed = torch.nn.functional.pad(allowed, (0, more))
        out = out.masked_fill(~allowed.to(out.device), _NEVER)
    elif any(_changes(row) for row in rows):
        out = out.clone()
    for i, row in enumerate(rows):
        if _changes(row):
            _process_row(out[i], row)
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
    for id, bias in p.logit_bias.items():
        logits_V[id] += bias
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
    logits_V = logits_V.cpu() / params.temperature
    if params.min_p > 0:
        probs = logits_V.softmax(-1)
        logits_V = logits_V.masked_fill(probs < params.min_p * probs.max(), _NEVER)
    size = len(logits_V)
    ids: np.ndarray | None = None
    if params.top_k is not None and params.top_k < size:
        least = logits_V.topk(params.top_k).values[-1]
        ids = (logits_V >= least).nonzero()[:, 0].numpy()
    logits = logits_V.numpy()
    if params.top_p < 1:
        ids = _top_p(logits, ids, params.top_p)
    if ids is None:
        ids = np.arange(size)
    kept = logits[ids]
    finite = kept > _NEVER
    return (ids, kept) if finite.all() else (ids[finite], kept[finite])


def _top_p(logits: np.ndarray, among: np.ndarray | None, top_p: float) -> np.ndarray:
    """The likeliest tokens before which less than `top_p` of the probability lies (Holtzman et al. 2020)."""
    values = logits if among is None else logits[among]
    weights = np.exp(values.astype(np.float64) - values.max())
    total = weights.sum()
    few: np.ndarray | None = None
    if len(values) > 2 * _LIKELIEST:
        few = np.argpartition(-values, _LIKELIEST)[:_LIKELIEST]
        # The rest may hold ties with the least of them: usable only if the edge lies above it.
        above = values[few] > values[few].min()
        few = few[above] if weights[few[above]].sum() >= top_p * total else None
    at = np.arange(len(values)) if few is None else few
    at = at[np.lexsort((at, -values[at]))]
    before = np.cumsum(weights[at]) - weights[at]
    kept = at[: max(1, int((before < top_p * total).sum()))]
    return np.sort(kept if among is None else among[kept])


def draw(ids: np.ndarray, logits: np.ndarray, seed: int, position: int) -> tuple[int, float]:
    """The winner of the race among ids [K] with these logits, and the log of its share. Ties go to the lowest id."""
    if not len(ids):
        return 0, _NEVER
    shifted = logits.astype(np.float64) - logits.max()
    winner = int(np.argmax(shifted - np.log(exponentials(seed, position, ids))))
    return int(ids[winner]), float(shifted[winner] - np.log(np.exp(shifted).sum()))


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
