"""A warm start: the network begins as a bigram model with working induction heads, and trains on from there.

What a small model learns first is known: which token follows which, and, when the last two tokens were seen
before in this text, to repeat what followed them (Olsson et al. 2022, "In-context learning and induction heads").
Both can be written down. Embedding and head begin as the best low-rank bigram table (bigram.py); layer 0 begins
with two heads that copy the codes of the previous tokens, layer 1 with one that looks those codes up. The network
stays an ordinary one: only its initial values differ, and training may change every one of them.

The residual stream of D channels is divided at the start, with c = D/8:

    0 … D/2         bigram factors; channel 0 is constant
    D/2 …           c channels: a random unit code of the token itself
    D/2 + c …       c channels: the previous token's code, written by layer 0, head 0
    D/2 + 2c …      c channels: the code of the one before, written by layer 0, head 1
    D/2 + 3c …      c channels: the code of a predicted token, written by layer 1, head 0, read by the head
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.model import ModelConfig, Transformer, generator_for
from gristmill.model.transformer import Attention, Block
from gristmill.train.bigram import count_bigrams, factorize, refine

MAX_VOCAB = 16_384  # the table is dense: 1 GiB of float32 at this size
# Rotary pairs (by frequency, fastest first) that tell distances apart, and their weights: the score of a
# head aimed at distance 1 then falls off on both sides and has no second peak within a context.
_FAST_PAIRS = (1.0, 1.0, 1.0, 0.8, 0.6, 0.5)
_SHARPNESS_PREVIOUS = 1.5  # q and k norms of layer 0
_SHARPNESS_INDUCTION = 1.2  # of layer 1
_GAIN = 4.0  # nats that a certain match adds to the logit of what followed it


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
    elif config.head_dim < 32 or config.hidden_size < 64 or config.hidden_size % 8:
        problem = "head_dim of at least 32 and hidden_size of at least 64, a multiple of 8"
    elif config.hidden_size // 8 > config.head_dim:
        problem = "head_dim of at least hidden_size / 8"
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
    width, code = config.hidden_size, config.hidden_size // 8
    rank = width - 4 * code
    energy = float(
        code
    )  # squared norm of a code in the residual stream: that of c ordinary channels
    counts = count_bigrams(tokens, config.vocab_size)
    embedding, head = factorize(counts, rank, seed)
    loss = refine(
        embedding,
        head,
        counts,
        width=width,
        other_energy=3 * energy,
        iterations=iterations,
        lr=lr,
        seed=seed,
    )
    generator = generator_for(seed, "token codes")
    codes = F.normalize(torch.randn(config.vocab_size, code, generator=generator), dim=1)
    own, previous, before, predicted = (
        torch.arange(rank + i * code, rank + (i + 1) * code) for i in range(4)
    )
    table = network.model.embed_tokens.weight
    table.zero_()
    table[:, :rank], table[:, own] = embedding, codes * energy**0.5
    network.head_weight.zero_()
    network.head_weight[:, :rank], network.head_weight[:, predicted] = head, codes

    # RMSNorm multiplies what a layer reads by these, since the stream's squared norm is known.
    scale_0 = (width / (rank + energy)) ** 0.5
    scale_1 = (width / (rank + 3 * energy)) ** 0.5
    first, second = (cast(Block, layer).self_attn for layer in network.model.layers[:2])
    for head_index, (distance, target) in enumerate(((1, previous), (2, before))):
        _look_back(first, head_index, distance)
        _copy(first, head_index, own, target, 1 / scale_0)
    _sharpen(first, _SHARPNESS_PREVIOUS)
    _match(second, 0, queries=(own, previous), keys=(previous, before), generator=generator)
    _copy(second, 0, own, predicted, _GAIN / (scale_1**2 * energy**0.5))
    _sharpen(second, _SHARPNESS_INDUCTION)
    return loss


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
    *,
    queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> None:
    """Aim a head at positions whose `keys` channels hold the codes that are in its own `queries` channels.

    The codes are laid on the slowest rotary pairs, which a context's length hardly turns: the first on the
    pairs' first halves, the second on their second halves.
    """
    config = attention.config
    half = config.head_dim // 2
    code = len(queries[0])
    slots = min(code, half // 2)
    slow = torch.arange(half - slots, half)
    projection = torch.linalg.qr(torch.randn(code, code, generator=generator)).Q[:, :slots].T
    for weight, row, sources in (
        (attention.q_proj.weight, _query_rows(config, head), queries),
        (attention.k_proj.weight, _key_rows(config, head), keys),
    ):
        weight[row] = 0
        for place, source in zip((slow, slow + half), sources, strict=True):
            weight[(row.start + place)[:, None], source] = projection


def _copy(attention: Attention, head: int, source: Tensor, target: Tensor, scale: float) -> None:
    """Let a head write the `source` channels of what it attends to into its `target` channels."""
    config = attention.config
    rows = _key_rows(config, head)
    lanes = torch.arange(len(source))
    attention.v_proj.weight[rows] = 0
    attention.v_proj.weight[rows.start + lanes, source] = 1.0
    attention.o_proj.weight[target, head * config.head_dim + lanes] = scale


def _sharpen(attention: Attention, sharpness: float) -> None:
    attention.q_norm.weight.fill_(sharpness)
    attention.k_norm.weight.fill_(sharpness)


def _query_rows(config: ModelConfig, head: int) -> slice:
    return slice(head * config.head_dim, (head + 1) * config.head_dim)


def _key_rows(config: ModelConfig, head: int) -> slice:
    kv_head = head // (config.num_heads // config.num_kv_heads)
    return slice(kv_head * config.head_dim, (kv_head + 1) * config.head_dim)
