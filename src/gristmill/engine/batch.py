"""Requests in flight: prompts are prefilled together, then every row gains a token a step.

Rows leave as they finish and waiting requests take their place. The key-value cache is dense, one
row a request; it grows with the longest row. A row's tokens do not depend on its neighbours:
padding is never seen, and the sampler's draws are keyed by (seed, position).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gristmill.engine.sampler import History, sample
from gristmill.engine.text import TextStream
from gristmill.lm import Chunk, Completion, FinishReason, SamplingParams, TokenLogprob
from gristmill.model import KVCache, Transformer

PASS_TOKENS = 8192  # padded tokens in one pass over prompts
CACHE_STEP = 128  # the cache's capacity is a multiple of this many slots


@dataclass(eq=False)
class Generation:
    """One request under way."""

    prompt: list[int]
    params: SamplingParams
    text: TextStream
    stop_ids: frozenset[int]
    output: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    cancelled: bool = False  # may be set from any thread; the row leaves at the next step

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def history(self) -> History:
        return History(self.params, self.prompt, self.output)

    def append(self, token: int, logprob: TokenLogprob | None, context: int) -> Chunk:
        """Take the sampled token; return the text it makes certain, and the end if it is one."""
        self.output.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        reason: FinishReason | None = None
        piece = ""
        if token in self.stop_ids:
            reason = "stop"
        else:
            piece = self.text.push(token)
            if not self.text.stopped and (
                len(self.output) >= self.params.max_tokens or self.length >= context
            ):
                reason = "length"
        if reason is not None:
            piece += self.text.finish()
        if self.text.stopped:
            reason = "stop"
        return Chunk(piece, None if reason is None else self._completion(reason))

    def _completion(self, reason: FinishReason) -> Completion:
        logprobs = None if self.params.logprobs is None else tuple(self.logprobs)
        return Completion(
            self.text.text, tuple(self.output), reason, len(self.prompt), logprobs=logprobs
        )


class Batch:
    """The running rows and their cache. Not thread-safe: one thread adds and steps.

    Ids from `vocab_size` on, which pad some models' embeddings and were never trained, are not sampled.
    """

    def __init__(self, network: Transformer, vocab_size: int, max_rows: int = 64) -> None:
        self._network = network
        self._vocab_size = vocab_size
        self._switch = network.config.frequency_switch
        self._max_rows = max_rows
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._cache: KVCache | None = None

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, generation: Generation) -> None:
        self._waiting.append(generation)

    @torch.inference_mode()
    def step(self) -> list[tuple[Generation, Chunk]]:
        """Prefill waiting prompts, or else decode one token of every row. Returns what each got."""
        self._waiting = deque(g for g in self._waiting if not g.cancelled)
        self._keep([not g.cancelled for g in self._running])
        self._start_outgrown_anew()
        free = self._max_rows - len(self._running)
        # Admit in groups: when many wait, prefilling them one by one as rows leave would be slow.
        if self._waiting and free >= min(len(self._waiting), max(1, self._max_rows // 4)):
            admitted = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
            lengths = [g.length for g in admitted]
            groups = groups_by_length(range(len(admitted)), lengths, self._switch)
            return [e for group in groups for e in self._prefill([admitted[i] for i in group])]
        if self._running:
            return self._decode()
        return []

    def _start_outgrown_anew(self) -> None:
        """Rows whose next token passes the length at which frequencies change: what was cached is for the old ones."""
        if self._switch is None:
            return
        grown = [g for g in self._running if g.length == self._switch + 1]
        if grown:
            self._keep([g not in grown for g in self._running])
            self._waiting.extendleft(grown)

    def _prefill(self, group: list[Generation]) -> list[tuple[Generation, Chunk]]:
        lengths = [g.length for g in group]
        tokens_BT = padded([g.prompt + g.output for g in group]).to(self._device)
        cache = self._new_cache(len(group), max(lengths) + 1)
        hidden = self._network.hidden(tokens_BT, cache=cache)
        last_BD = hidden[torch.arange(len(group)), torch.tensor(lengths) - 1]
        if self._cache is None or not self._running:
            self._cache = cache
        else:
            capacity = max(cache.capacity, self._cache.capacity)
            _grow(cache, capacity)
            _grow(self._cache, capacity)
            self._cache.keys = torch.cat((self._cache.keys, cache.keys), dim=1)
            self._cache.values = torch.cat((self._cache.values, cache.values), dim=1)
        self._running += group
        return self._emit(group, last_BD)

    def _decode(self) -> list[tuple[Generation, Chunk]]:
        assert self._cache is not None
        rows = self._running
        last_B1 = torch.tensor([[g.output[-1]] for g in rows], device=self._device)
        positions_B1 = torch.tensor([[g.length - 1] for g in rows], device=self._device)
        needed = max(g.length for g in rows)
        if needed > self._cache.capacity:
            _grow(self._cache, self._capacity_for(max(needed, self._cache.capacity * 3 // 2)))
        hidden = self._network.hidden(last_B1, cache=self._cache, positions_BT=positions_B1)
        return self._emit(rows, hidden[:, 0])

    def _emit(self, rows: list[Generation], hidden_BD: Tensor) -> list[tuple[Generation, Chunk]]:
        """Sample for `rows`, and let those that ended leave."""
        logits_BV = self._network.logits(hidden_BD)
        possible_BV = logits_BV
        if self._vocab_size < logits_BV.shape[1]:
            possible_BV = logits_BV.clone()
            possible_BV[:, self._vocab_size :] = float("-inf")
        tokens = sample(possible_BV, [g.history for g in rows])
        events = []
        for g, token, logits_V in zip(rows, tokens, logits_BV, strict=True):
            logprob = None
            if g.params.logprobs is not None:
                logprob = _logprob(logits_V, token, g.params.logprobs)
            events.append((g, g.append(token, logprob, self._network.config.max_seq_len)))
        ended = {id(g) for g, chunk in events if chunk.completion is not None}
        self._keep([id(g) not in ended for g in self._running])
        return events

    def _keep(self, keep: list[bool]) -> None:
        if all(keep):
            return
        rows = [i for i, kept in enumerate(keep) if kept]
        self._running = [self._running[i] for i in rows]
        if rows and self._cache is not None:
            self._cache.select(rows)
        else:
            self._cache = None

    @property
    def _device(self) -> torch.device:
        return self._network.head_weight.device

    def _capacity_for(self, slots: int) -> int:
        rounded = -(-slots // CACHE_STEP) * CACHE_STEP
        return max(slots, min(rounded, self._network.config.max_seq_len))

    def _new_cache(self, rows: int, slots: int) -> KVCache:
        weight = self._network.model.embed_tokens.weight
        capacity = self._capacity_for(slots)
        return KVCache(self._network.config, rows, capacity, weight.dtype, weight.device)


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """LongTensor [B, longest], zeros to the right of each row."""
    table = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return torch.from_numpy(table)


def groups_by_length(
    items: Sequence[int], lengths: Sequence[int], switch: int | None
) -> list[list[int]]:
    """Indices of similar length together, each group within PASS_TOKENS when padded (or alone).

    `switch` is the network's `frequency_switch`: padding must not lift a shorter row over it.
    """
    groups: list[list[int]] = []
    for i in sorted(items, key=lambda i: lengths[i]):
        fits = groups and (len(groups[-1]) + 1) * lengths[i] <= PASS_TOKENS
        if fits and (not switch or lengths[i] <= switch or lengths[groups[-1][0]] > switch):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _grow(cache: KVCache, capacity: int) -> None:
    more = capacity - cache.capacity
    if more > 0:
        cache.keys = F.pad(cache.keys, (0, 0, 0, more))
        cache.values = F.pad(cache.values, (0, 0, 0, more))


def _logprob(logits_V: Tensor, token: int, alternatives: int) -> TokenLogprob:
    logprobs_V = logits_V.log_softmax(dim=-1)
    values, ids = logprobs_V.topk(min(alternatives, logprobs_V.shape[0]))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs_V[token]), top)
