"""A warm start: embedding and head begin as the best low-rank bigram model of the training tokens.

Blocks start as the identity (initialize zeroes what writes into the residual stream), so a fresh network
computes `rms_norm(embedding[current]) @ head.T`: exactly a bigram model of rank hidden_size. Finding that
model by counting costs one pass over the tokens and a truncated SVD, instead of the first several hundred
steps of training, which learn little else. The network stays an ordinary one: only its initial values differ.

The target is the pointwise mutual information with a Dirichlet prior, PMI(c, n) = log P(n|c) / P(n) where
P(n|c) = (count(c, n) + prior·P(n)) / (count(c) + prior), so that what was never seen costs little after rare
tokens and much after frequent ones. Its rows and columns are weighted by powers of their frequency, which
approximates the weights that cross-entropy gives them; Adam on the exact cross-entropy of the table refines it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gristmill.errors import RequestError
from gristmill.model import Transformer, generator_for

MAX_VOCAB = 16_384  # the table is dense: 1 GiB of float32 at this size
_PRIOR = 8.0
_ROW_POWER, _COLUMN_POWER = 0.5, 0.35
_OVERSAMPLE, _POWER_ITERATIONS = 16, 2
_ROWS_PER_PASS = 1024


@torch.no_grad()
def warm_start(
    network: Transformer, tokens: np.ndarray, seed: int, iterations: int, lr: float = 0.02
) -> float:
    """Fill embedding and head of an untied `network` from the bigrams of `tokens` (1-D, any integer type).

    Returns the cross-entropy of the refined table in nats per token, over all bigrams counted.
    Raises RequestError for tied embeddings (a symmetric table cannot hold "b follows a") and past MAX_VOCAB.
    """
    config = network.config
    if config.tie_embeddings:
        raise RequestError(
            "the bigram warm start needs tie_embeddings = false: one matrix cannot say both what a "
            "token is and what follows it"
        )
    if config.vocab_size > MAX_VOCAB:
        raise RequestError(
            f"the bigram warm start holds a dense vocabulary² table: at most {MAX_VOCAB} tokens, not "
            f'{config.vocab_size}; set pretrain.warm_start = "none"'
        )
    counts = count_bigrams(tokens, config.vocab_size)
    embedding, head = factorize(counts, config.hidden_size, seed)
    loss = refine(embedding, head, counts, iterations, lr, seed)
    network.model.embed_tokens.weight.copy_(embedding)
    network.head_weight.copy_(head)
    return loss


def count_bigrams(tokens: np.ndarray, vocab_size: int) -> Tensor:
    """[current, next] counts as float32 (exact below 2^24 occurrences of one pair)."""
    counts = np.zeros(vocab_size * vocab_size, dtype=np.float32)
    for start in range(0, len(tokens) - 1, 1 << 22):
        piece = tokens[start : start + (1 << 22) + 1].astype(np.int64)
        pairs, times = np.unique(piece[:-1] * vocab_size + piece[1:], return_counts=True)
        counts[pairs] += times
    return torch.from_numpy(counts).view(vocab_size, vocab_size)


def factorize(counts: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """(embedding, head), both [V, rank], with rms_norm(embedding) @ head.T ≈ log P(next | current).

    Two columns are spent on structure: a constant one, through which the head adds log P(next), and a
    slack one that gives every row the same norm, so that RMSNorm does not rescale what was factorized.
    """
    vocab_size = len(counts)
    rows = counts.sum(1)
    p_next = counts.sum(0) + 0.5
    p_next /= p_next.sum()
    p_current = (rows + 0.5) / (rows + 0.5).sum()
    pmi = counts + _PRIOR * p_next
    pmi.div_((rows + _PRIOR)[:, None]).div_(p_next).log_()
    pmi.sub_((pmi @ p_next)[:, None])  # softmax does not see a constant per row
    row_weight, column_weight = p_current**_ROW_POWER, p_next**_COLUMN_POWER
    pmi.mul_(row_weight[:, None]).mul_(column_weight)

    # Randomized SVD (Halko, Martinsson & Tropp 2011).
    inner = rank - 2
    generator = generator_for(seed, "bigram warm start")
    basis = torch.randn(vocab_size, inner + _OVERSAMPLE, generator=generator)
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(pmi @ basis).Q
        basis = torch.linalg.qr(pmi.T @ basis).Q
    u, s, vh = torch.linalg.svd(pmi @ basis, full_matrices=False)
    root = s[:inner].sqrt()
    left = u[:, :inner] * root / row_weight[:, None]
    right = (basis @ vh.T)[:, :inner] * root / column_weight[:, None]

    scale = left.pow(2).mean().sqrt()
    left, right = left / scale, right * scale
    squared = left.pow(2).sum(1)
    radius = torch.quantile(squared, 0.999)
    left = left * (radius / squared).clamp(max=1).sqrt()[:, None]
    slack = (radius - left.pow(2).sum(1)).clamp(min=0).sqrt()
    bias = float(rank) ** 0.5
    norm = (bias**2 + radius).sqrt() / rank**0.5
    log_next = p_next.log()
    embedding = torch.cat([torch.full((vocab_size, 1), bias), slack[:, None], left], dim=1) / norm
    head = torch.cat(
        [
            (log_next - log_next.mean())[:, None] / bias,
            torch.zeros(vocab_size, 1),
            right,
        ],
        dim=1,
    )
    return embedding, head * norm


def refine(
    embedding: Tensor, head: Tensor, counts: Tensor, iterations: int, lr: float, seed: int
) -> float:
    """Adam, in place, on the cross-entropy of the whole table; returns it in nats per token.

    Each iteration sees the most frequent rows and a random sample of the others, weighted up.
    """
    rank = embedding.shape[1]
    total = counts.sum()
    order = torch.argsort(counts.sum(1), descending=True, stable=True)
    often, rare = order[:_ROWS_PER_PASS], order[_ROWS_PER_PASS:]
    generator = generator_for(seed, "bigram refinement")
    parameters = [embedding.requires_grad_(), head.requires_grad_()]
    adam = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.95), fused=True)
    loss = 0.0
    for iteration in range(iterations):
        rise, fall = (iteration + 1) / 3, (iterations - iteration) / (0.7 * iterations)
        adam.param_groups[0]["lr"] = lr * min(1.0, rise, fall)
        passes = [(often, 1.0)]
        if len(rare):
            sample = rare[torch.randperm(len(rare), generator=generator)[:_ROWS_PER_PASS]]
            passes.append((sample, len(rare) / len(sample)))
        loss = 0.0
        for rows, weight in passes:
            with torch.enable_grad():
                logits = F.rms_norm(embedding[rows], (rank,)) @ head.T
                part = -weight * (counts[rows] / total * F.log_softmax(logits, -1)).sum()
                part.backward()
            loss += part.item()
        adam.step()
        adam.zero_grad(set_to_none=True)
    embedding.requires_grad_(False), head.requires_grad_(False)
    return loss
