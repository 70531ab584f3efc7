"""The bigram table: exact counts, and a factorization that reaches the entropy it can reach."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.train.bigram import count_bigrams, factorize, refine

VOCAB = 96


def markov(length: int, vocab: int = VOCAB, seed: int = 0) -> np.ndarray:
    """A stream in which each token is followed by few others."""
    draw = np.random.default_rng(seed)
    table = draw.dirichlet(np.full(vocab, 0.1), size=vocab)
    edges = np.cumsum(table, axis=1)
    tokens, points = [0], draw.random(length - 1)
    for point in points:
        tokens.append(min(vocab - 1, int(np.searchsorted(edges[tokens[-1]], point))))
    return np.array(tokens, dtype=np.uint16)


def conditional_entropy(counts: np.ndarray, table: np.ndarray) -> float:
    """Cross-entropy in nats a token of P(next | current) `table` on the pairs counted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts > 0, counts * np.log(table), 0)
    return -terms.sum() / counts.sum()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=60))
def test_counts_are_those_of_counting(tokens):
    found = count_bigrams(np.array(tokens, dtype=np.uint16), 10)
    wanted = Counter(pairwise(tokens))
    assert {(a, b): int(found[a, b]) for a, b in found.nonzero().tolist()} == wanted


def test_counting_goes_on_across_its_pieces():
    """Longer than one piece of 2^22: the pair that lies on the border is counted, and once."""
    tokens = np.arange((1 << 22) + 7) % 3
    counts = count_bigrams(tokens.astype(np.uint16), 3)
    assert counts.sum() == len(tokens) - 1
    assert sorted(counts.flatten().tolist())[:6] == [0.0] * 6


def reached(rank: int, iterations: int) -> tuple[float, np.ndarray]:
    counts = count_bigrams(markov(30_000), VOCAB)
    embedding, head = factorize(counts, rank, seed=0)
    loss = refine(
        embedding,
        head,
        counts,
        width=rank,
        other_energy=0.0,
        iterations=iterations,
        lr=0.02,
        seed=0,
    )
    return loss, counts.numpy()


def test_every_embedding_row_has_the_common_norm():
    embedding, _ = factorize(count_bigrams(markov(30_000), VOCAB), 64, seed=0)
    assert torch.allclose(embedding.norm(dim=1), torch.full((VOCAB,), 8.0), atol=1e-3)


def test_with_full_rank_the_table_reaches_the_smoothed_bigram():
    """Nothing beats the raw conditional entropy of the counts; the smoothed table (Dirichlet prior of 8
    unigrams) is what is factorized, so the result lies between the two, or little above the second."""
    loss, counts = reached(128, iterations=24)
    unigram = counts.sum(0) / counts.sum()
    raw = conditional_entropy(counts, counts / counts.sum(1, keepdims=True).clip(1))
    smoothed = (counts + 8 * unigram) / (counts.sum(1, keepdims=True) + 8)
    limit = conditional_entropy(counts, smoothed)
    alone = conditional_entropy(counts, np.broadcast_to(unigram, counts.shape))
    assert raw < limit < alone - 1  # the stream does have bigrams to learn
    assert raw <= loss < limit + 0.05


def test_refinement_and_rank_each_lower_the_loss():
    coarse, refined, wide = reached(12, 1)[0], reached(12, 24)[0], reached(48, 24)[0]
    assert wide < refined - 0.05
    assert refined < coarse - 0.05


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_bits(seed):
    counts = count_bigrams(markov(5000), VOCAB)
    for a, b in zip(factorize(counts, 32, seed), factorize(counts, 32, seed), strict=True):
        assert torch.equal(a, b)
