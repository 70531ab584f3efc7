"""The best low-rank bigram model of a token stream: counted, factorized, refined.

A Transformer whose blocks are the identity computes `rms_norm(embedding[current]) @ head.T`, which is a
bigram model of rank hidden_size. Finding it by counting costs one pass over the tokens and a truncated SVD,
where training would spend its first several hundred steps on little else.

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

from gristmill.model import generator_for

_PRIOR = 8.0
_ROW_POWER, _COLUMN_POWER = 0.5, 0.35
_OVERSAMPLE, _POWER_ITERATIONS = 16, 2
_ROWS_PER_PASS = 1024


def count_bigrams(tokens: np.ndarray, vocab_size: int) -> Tensor:
    """[current, next] counts as float32 (exact below 2^24 occurrences of one pair)."""
    counts = np.zeros(vocab_size * vocab_size, dtype=np.float32)
    for start in range(0, len(tokens) - 1, 1 << 22):
        piece = tokens[start : start + (1 << 22) + 1].astype(np.int64)
        pairs, times = np.unique(piece[:-1] * vocab_size + piece[1:], return_counts=True)
        counts[pairs] += times
    return torch.from_numpy(counts).view(vocab_size, vocab_size)


@torch.no_grad()
def factorize(counts: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """(embedding, head), both [V, rank], with embedding @ head.T ≈ log P(next | current) up to a constant a row.

    Every embedding row has norm sqrt(rank). Two columns are spent on that and on the unigrams: column 0 is
    constant, and the head's column 0 adds log P(next); column 1 tops up each row to the common norm.
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
    generator = generator_for(seed, "bigram factors")
    basis = torch.randn(vocab_size, inner + _OVERSAMPLE, generator=generator)
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(pmi @ basis).Q
        basis = torch.linalg.qr(pmi.T @ basis).Q
    u, s, vh = torch.linalg.svd(pmi @ basis, full_matrices=False)
    root = s[:inner].sqrt()
    left = u[:, :inner] * root / row_weight[:, None]
    right = (basis @ vh.T)[:, :inner] * root / column_weight[:, None]

    missing = (0, inner - left.shape[1])  # a vocabulary smaller than the rank has no more factors
    left, right = F.pad(left, missing), F.pad(right, missing)
    scale = left.pow(2).mean().sqrt()
    left, right = left / scale, right * scale
    squared = left.pow(2).sum(1)
    radius = torch.quantile(squared, 0.999)
    left = left * (radius / squared).clamp(max=1).sqrt()[:, None]
    slack = (radius - left.pow(2).sum(1)).clamp(min=0).sqrt()
    bias = float(rank) ** 0.5
    norm = (bias**2 + radius).sqrt() / rank**0.5
    log_next = p_next.log()
    unigram = (log_next - log_next.mean())[:, None] / bias
    embedding = torch.cat([torch.full((vocab_size, 1), bias), slack[:, None], left], dim=1)
    head = torch.cat([unigram, torch.zeros(vocab_size, 1), right], dim=1)
    return embedding / norm, head * norm


def refine(
    embedding: Tensor,
    head: Tensor,
    counts: Tensor,
    *,
    width: int,
    other_energy: float,
    iterations: int,
    lr: float,
    seed: int,
) -> float:
    """Adam, in place, on the cross-entropy of the whole table; returns it in nats a token.

    embedding, head: [V, rank], part of a residual stream of `width` channels whose other channels hold
    `other_energy` of squared norm, which RMSNorm divides by as well. Each iteration sees the most frequent rows
    and a random sample of the others, weighted up.
    """
    total = counts.sum()
    order = torch.argsort(counts.sum(1), descending=True, stable=True)
    often, rare = order[:_ROWS_PER_PASS], order[_ROWS_PER_PASS:]
    generator = generator_for(seed, "bigram refinement")
    embedding.requires_grad_()
    head.requires_grad_()
    adam = torch.optim.Adam([embedding, head], lr=lr, betas=(0.9, 0.95), fused=True)
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
                x = embedding[rows]
                energy = x.pow(2).sum(1, keepdim=True) + other_energy
                logits = (x * torch.rsqrt(energy / width)) @ head.T
                part = -weight * (counts[rows] / total * F.log_softmax(logits, -1)).sum()
                part.backward()
            loss += part.item()
        adam.step()
        adam.zero_grad(set_to_none=True)
    embedding.requires_grad_(False)
    head.requires_grad_(False)
    return loss
