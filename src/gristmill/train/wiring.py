"""A warm start: the network begins as a bigram model with working induction heads, and trains on from there.

What a small model learns first is known: which token follows which, and, when the last tokens were seen before
in this text, to repeat what followed them (Olsson et al. 2022, "In-context learning and induction heads").
Both can be written down. Embedding and head begin as the best low-rank bigram table (bigram.py); layer 0 begins
with three heads that copy the codes of the tokens 1, 2 and 3 back, layer 1 with two that look for a place where
the last three, or the last two, stood before, and add to the logit of what followed there. The network stays an
ordinary one: only its initial values differ, and training may change every one of them.

The residual stream of D channels is divided at the start; half of it, or less in wide networks, is for codes:

    0 …             bigram factors; channel 0 is constant
    own             a unit code of the token itself, as far from all other codes as they can be spread
    back            the shortened code of the token 1 back, 2 back, 3 back: one span for each head of layer 0
    predicted       the code of a predicted token, written by layer 1, read by the head

How far apart the codes lie decides how exactly a token can be copied: with random ones a copy comes out as
another token whose code is near (`machinery` as `maistryery`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.model import Block, ModelConfig, Transformer, generator_for
from gristmill.model.attention import Attention
from gristmill.train.bigram import count_bigrams, factorize, refine

MAX_VOCAB = 16_384  # the table is dense: 1 GiB of float32 at this size
# Rotary pairs (by frequency, fastest first) that tell distances apart, and their weights: the score of a
# head aimed at distance 1 then falls off on both sides and has no second peak within a context.
_FAST_PAIRS = (1.0, 1.0, 1.0, 0.8, 0.6, 0.5)
_SHARPNESS_PREVIOUS = 1.5  # q and k norms of layer 0
_SHARPNESS_INDUCTION = 1.2  # of layer 1
# nats that a certain match adds to the logit of what followed: of three tokens, of two
_GAINS = (4.0, 4.0)
_HEAD_SCALE = 2.0
_SPREAD_STEPS, _SPREAD_SAMPLE = 48, 1024


@dataclass(frozen=True)
class _Channels:
    """Which channels of the residual stream hold what at the start."""

    rank: int
    own: Tensor
    back: tuple[Tensor, ...]
    predicted: Tensor

    @classmethod
    def of(cls, config: ModelConfig) -> _Channels:
        reach = min(3, config.num_heads)
        slow = config.head_dim // 4 * 2  # channels of a head that a context's length hardly turns
        short = min(config.hidden_size // (6 * reach), slow // reach)
        long = min((config.hidden_size // 2 - reach * short) // 2, config.head_dim)
        sizes = [long, *[short] * reach, long]
        starts = np.cumsum([config.hidden_size - sum(sizes), *sizes])
        own, *back, predicted = map(torch.arange, starts[:-1], starts[1:])
        return cls(int(starts[0]), own, tuple(back), predicted)


def check(config: ModelConfig) -> None:
    """Raises RequestError where the shape has no room for the heads."""
    problem = ""
    if config.tie_embeddings:
        problem = (
            "tie_embeddings = false: one matrix cannot say both what a token is and what follows it"
        )
    elif not config.qk_norm:
        problem = "qk_norm = true: the heads are aimed by direction"
    elif config.num_layers < 2 or config.num_heads < 2:
        problem = "at least two layers and two heads"
    elif config.head_dim < 32 or config.hidden_size < 64:
        problem = "head_dim of at least 32 and hidden_size of at least 64"
    elif config.vocab_size > MAX_VOCAB:
        problem = f"at most {MAX_VOCAB} tokens (it counts a dense vocabulary² table)"
    if problem:
        raise RequestError(
            f'pretrain.warm_start = "induction" needs {problem}; or set pretrain.warm_start = "none"'
        )


@torch.no_grad()
def warm_start(
    network: Transformer, tokens: np.ndarray, seed: int, iterations: int, lr: float = 0.02
) -> float:
    """Wire a freshly initialized `network` from `tokens` (1-D, any integer type).

    Returns the cross-entropy of the bigram table in nats a token. Raises RequestError as `check` does.
    """
    config = network.config
    check(config)
    width, at = config.hidden_size, _Channels.of(config)
    long, short, reach = len(at.own), len(at.back[0]), len(at.back)
    counts = count_bigrams(tokens, config.vocab_size)
    embedding, head = factorize(counts, at.rank, seed)
    loss = refine(
        embedding,
        head,
        counts,
        width=width,
        other_energy=float(long + reach * short),  # of the codes: one a channel, as elsewhere
        iterations=iterations,
        lr=lr,
        seed=seed,
    )
    generator = generator_for(seed, "token codes")
    codes = spread_codes(config.vocab_size, long, generator)
    shorten = torch.linalg.qr(torch.randn(long, short, generator=generator)).Q.T
    table = network.model.embed_tokens.weight
    table.zero_()
    table[:, : at.rank], table[:, at.own] = embedding, codes * long**0.5
    network.head.weight.zero_()
    # AdamW moves every entry alike, so the head's codes are larger than unit ones to be moved less for their size.
    network.head.weight[:, : at.rank] = head
    network.head.weight[:, at.predicted] = codes * _HEAD_SCALE

    # RMSNorm multiplies what a layer reads by these, since the stream's squared norm is known.
    scale_0 = (width / (at.rank + long)) ** 0.5
    scale_1 = (width / (at.rank + long + reach * short)) ** 0.5
    first, second = (
        cast(Attention, cast(Block, layer).self_attn) for layer in network.model.layers[:2]
    )
    for number, target in enumerate(at.back):
        _look_back(first, number, distance=number + 1)
        _copy(first, number, at.own, shorten, target, 1 / scale_0)
    _sharpen(first, _SHARPNESS_PREVIOUS)
    same = torch.eye(short)
    recent = [(at.own, shorten), *[(span, same) for span in at.back[:-1]]]
    for number, gain in enumerate(_GAINS[: reach - 1]):
        _match(second, number, recent[: reach - number], [(span, same) for span in at.back])
        _copy(
            second,
            number,
            at.own,
            torch.eye(long),
            at.predicted,
            gain / (scale_1**2 * long**0.5 * _HEAD_SCALE),
        )
    _sharpen(second, _SHARPNESS_INDUCTION)
    return loss


@torch.no_grad()
def spread_codes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """`count` unit vectors [count, size] with no two near each other: random ones that push their nearest
    neighbours away, a sample of all at a time."""
    codes = F.normalize(torch.randn(count, size, generator=generator), dim=1)
    for step in range(_SPREAD_STEPS):
        sample = torch.randperm(count, generator=generator)[:_SPREAD_SAMPLE]
        others = codes[sample]
        sharpness = 8 * 3 ** (step / _SPREAD_STEPS)
        weights = torch.exp(sharpness * (codes @ others.T - 1))
        weights[sample, torch.arange(len(sample))] = 0
        push = weights @ others
        push -= (push * codes).sum(1, keepdim=True) * codes
        norm = push.norm(dim=1, keepdim=True)
        rate = 0.3 * (1 - step / _SPREAD_STEPS)
        codes = F.normalize(codes - rate * push / norm.maximum(norm.mean()), dim=1)
    return codes


def _look_back(attention: Attention, head: int, distance: int) -> None:
    """Aim a head at the token `distance` back: constant q and k whose rotary score peaks there."""
    config = attention.config
    half = config.head_dim // 2
    q, k = torch.zeros(config.head_dim), torch.zeros(config.head_dim)
    for pair, weight in enumerate(_FAST_PAIRS):
        angle = distance * config.rope_theta ** (-2 * pair / config.head_dim)
        k[pair] = weight
        q[pair], q[pair + half] = weight * math.cos(angle), -weight * math.sin(angle)
    for projection, row, vector in (
        (attention.q_proj.weight, _query_rows(config, head), q),
        (attention.k_proj.weight, _key_rows(config, head), k),
    ):
        projection[row] = 0
        projection[row, 0] = vector  # channel 0 is the same for every token


def _match(
    attention: Attention,
    head: int,
    queries: Sequence[tuple[Tensor, Tensor]],
    keys: Sequence[tuple[Tensor, Tensor]],
) -> None:
    """Aim a head at positions whose key codes are its query codes, one by one; a code is (channels, map [n, channels]).

    They are laid on the slowest rotary pairs, which a context's length hardly turns.
    """
    config = attention.config
    half, quarter = config.head_dim // 2, config.head_dim // 4
    slow = torch.cat([torch.arange(half - quarter, half) + offset for offset in (0, half)])
    for weight, row, codes in (
        (attention.q_proj.weight, _query_rows(config, head), queries),
        (attention.k_proj.weight, _key_rows(config, head), keys),
    ):
        weight[row] = 0
        for number, (source, shape) in enumerate(codes):
            lanes = slow[number * len(shape) : (number + 1) * len(shape)]
            weight[(row.start + lanes)[:, None], source] = shape


def _copy(
    attention: Attention, head: int, source: Tensor, shape: Tensor, target: Tensor, scale: float
) -> None:
    """Let a head write `shape` [target, source] of the `source` channels of what it attends to into `target`."""
    config = attention.config
    rows = _key_rows(config, head)
    lanes = torch.arange(len(target))
    attention.v_proj.weight[rows] = 0
    attention.v_proj.weight[(rows.start + lanes)[:, None], source] = shape
    attention.o_proj.weight[target, head * config.head_dim + lanes] = scale


def _sharpen(attention: Attention, sharpness: float) -> None:
    attention.q_norm.weight.fill_(sharpness)
    attention.k_norm.weight.fill_(sharpness)


def _query_rows(config: ModelConfig, head: int) -> slice:
    return slice(head * config.head_dim, (head + 1) * config.head_dim)


def _key_rows(config: ModelConfig, head: int) -> slice:
    kv_head = head // (config.num_heads // config.num_kv_heads)
    return slice(kv_head * config.head_dim, (kv_head + 1) * config.head_dim)
