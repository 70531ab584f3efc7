"""Log-probabilities of given continuations, batched: several continuations share their context's work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gristmill.engine import target_logprobs
from gristmill.errors import RequestError
from gristmill.model import KVCache, Transformer

T = TypeVar("T")

_BATCH_TOKENS = 4096  # padded tokens of a forward pass


@dataclass(frozen=True)
class Likelihood:
    """Natural-log probability of a continuation, and how many tokens it has."""

    logprob: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.logprob / self.tokens if self.tokens else 0.0


def batches(items: Sequence[T], length: Callable[[T], int]) -> Iterator[list[T]]:
    """Items of similar length together, as many as fit `_BATCH_TOKENS` padded tokens."""
    batch: list[T] = []
    for item in sorted(items, key=length, reverse=True):  # the first of a batch is its longest
        if batch and length(batch[0]) * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def masked_logprobs(network: Transformer, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
    """log p(target) at every place in float64, and 0 where the target is -1. [B, T]"""
    wanted = targets_BT >= 0
    out = torch.zeros(targets_BT.shape, dtype=torch.float64, device=targets_BT.device)
    out[wanted] = target_logprobs(network, hidden_BTD[wanted], targets_BT[wanted]).double()
    return out


def likelihoods(
    network: Transformer,
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    dtype: torch.dtype = torch.float32,
) -> list[list[Likelihood]]:
    """Score `continuations[i]` (token ids, several) each after `contexts[i]` (at least one token).

    A context runs once and its keys and values serve all its continuations. Raises RequestError where a
    context and continuation do not fit the model.
    """
    limit = network.config.max_seq_len
    for number, (context, options) in enumerate(zip(contexts, continuations, strict=True)):
        needed = len(context) + max(map(len, options), default=0)
        if needed > limit:
            raise RequestError(
                f"item {number} has {needed} tokens with its longest continuation, and the model's "
                f"context is {limit}"
            )
        if not context:
            raise RequestError(
                f"item {number} has an empty context; begin it with a separator token"
            )
    results: list[list[Likelihood]] = [[] for _ in contexts]
    todo = [number for number, options in enumerate(continuations) if options]

    def size(number: int) -> int:
        options = continuations[number]
        return max(len(contexts[number]), len(options) * max(map(len, options)))

    with torch.inference_mode():
        for batch in batches(todo, size):
            rows = _score_batch(
                network, [contexts[n] for n in batch], [continuations[n] for n in batch], dtype
            )
            for number, scores in zip(batch, rows, strict=True):
                results[number] = scores
    return results


def _score_batch(
    network: Transformer,
    contexts: list[Sequence[int]],
    continuations: list[Sequence[Sequence[int]]],
    dtype: torch.dtype,
) -> list[list[Likelihood]]:
    device = next(network.parameters()).device
    options = [option for row in continuations for option in row]
    owner = torch.tensor([row for row, group in enumerate(continuations) for _ in group])
    longest = max(1, max(map(len, options)))
    tokens, lengths = _padded(contexts)
    cache = KVCache(network.config, len(contexts), tokens.shape[1] + longest, dtype, device)
    hidden = network.hidden(tokens.to(device), cache=cache, dtype=dtype)
    last = hidden[torch.arange(len(contexts)), (lengths - 1).to(device)]  # [rows, D]

    targets, option_lengths = _padded(options, fill=-1, width=longest)
    cache.select(owner)
    hidden = last[owner.to(device)][:, None]
    if longest > 1:
        inputs = targets[:, :-1].clamp(min=0)
        positions = lengths[owner][:, None] + torch.arange(longest - 1)
        later = network.hidden(
            inputs.to(device), cache=cache, positions_BT=positions.to(device), dtype=dtype
        )
        hidden = torch.cat([hidden, later], dim=1)
    sums = masked_logprobs(network, hidden, targets.to(device)).sum(1).tolist()
    scored = iter(
        Likelihood(total, count) for total, count in zip(sums, option_lengths.tolist(), strict=True)
    )
    return [[next(scored) for _ in group] for group in continuations]


def _padded(
    rows: Sequence[Sequence[int]], fill: int = 0, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rows padded on the right, [rows, width], and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    out = torch.full((len(rows), width or int(lengths.max())), fill, dtype=torch.long)
    for number, row in enumerate(rows):
        out[number, : len(row)] = torch.as_tensor(row, dtype=torch.long)
    return out, lengths
