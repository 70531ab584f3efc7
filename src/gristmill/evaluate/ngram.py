"""An interpolated 5-gram model with modified Kneser-Ney smoothing: the baseline that counting alone reaches.

Chen & Goodman 1999, as in lmplz: the highest order counts occurrences, every lower order counts the distinct
tokens that precede an n-gram, three discounts an order come from the counts of counts, and the unigram is
interpolated with the uniform distribution, so every token of the vocabulary has a probability above zero.

Exact and in numpy only. Train and held-out tokens are laid end to end and every position gets, for each
order, the label of the n-gram that ends there (labels come from sorting packed pairs, nothing is hashed
away). All counts are then `bincount`s over labels: an n-gram unseen in training is a label that counts zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gristmill.errors import WorkError

# Discounts where a corpus is too small to estimate them (lmplz --discount_fallback).
_FALLBACK = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Order:
    """One order's statistics: by n-gram label `count`; by history label the rest."""

    count: np.ndarray  # [n-grams]
    total: np.ndarray  # [histories] sum of counts of the n-grams that begin with it
    reserved: np.ndarray  # [histories] sum of their discounts: the mass given to the lower order
    discounts: tuple[float, float, float]


def ngram_logprobs(
    train: Sequence[np.ndarray], heldout: Sequence[np.ndarray], vocab_size: int, order: int = 5
) -> list[np.ndarray]:
    """Natural-log probability of every token of each held-out document but its first, float64 [len - 1].

    A document is a 1-D array of ids whose first one (the document separator) is given, never predicted.
    Histories do not reach over the start of a document: they are filled up with its first token.
    Takes about 5 s and 0.4 GB for 3M training tokens. Raises WorkError where there is nothing to count.
    """
    if not any(len(document) > 1 for document in train):
        raise WorkError("the n-gram baseline has no training tokens; the train split is empty")
    tokens, target, boundary = _lay_out([*train, *heldout], order, len(train))
    counted = target & (np.arange(tokens.size) < boundary)
    scored = target & (np.arange(tokens.size) >= boundary)
    labels, suffixes, sizes = _label(tokens, order)

    counts: list[np.ndarray] = [np.empty(0)] * order
    counts[order - 1] = np.bincount(labels[order - 1][counted], minlength=sizes[order - 1])
    for k in range(
        order - 1, 0, -1
    ):  # distinct left neighbours: types of order k+1 seen in training
        seen = counts[k] > 0
        counts[k - 1] = np.bincount(suffixes[k][seen], minlength=sizes[k - 1])

    where = np.flatnonzero(scored)
    unigram = _order_statistics(counts[0], np.zeros(sizes[0], np.int64), 1)
    probability = (
        _discounted(unigram, labels[0][where]) + unigram.reserved[0] / vocab_size
    ) / unigram.total[0]
    for k in range(1, order):
        history_of = np.zeros(sizes[k], np.int64)
        history_of[labels[k][1:]] = labels[k - 1][:-1]
        statistics = _order_statistics(counts[k], history_of, sizes[k - 1])
        gram, history = labels[k][where], labels[k - 1][where - 1]
        total = statistics.total[history]
        known = total > 0
        mixed = _discounted(statistics, gram) + statistics.reserved[history] * probability
        probability = np.where(known, mixed / np.where(known, total, 1), probability)
    lengths = [max(0, len(document) - 1) for document in heldout]
    if not lengths:
        return []
    return np.split(np.log(probability), np.cumsum(lengths)[:-1])


def ngram_bits(
    train: Sequence[np.ndarray], heldout: Sequence[np.ndarray], vocab_size: int, order: int = 5
) -> float:
    """Bits that the n-gram model needs for the held-out documents."""
    return -math.fsum(
        float(part.sum()) for part in ngram_logprobs(train, heldout, vocab_size, order)
    ) / math.log(2)


def _lay_out(
    documents: Sequence[np.ndarray], order: int, num_train: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Documents end to end, each preceded by `order - 2` more of its first token.

    Returns (tokens int64, which positions are predicted, position where held-out text begins).
    """
    pad = order - 2
    lengths = np.array([len(document) + pad if len(document) else 0 for document in documents])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.empty(int(starts[-1]), np.int64)
    target = np.zeros(tokens.size, bool)
    for document, start, length in zip(documents, starts.tolist(), lengths.tolist(), strict=False):
        if length:
            tokens[start : start + pad] = document[0]
            tokens[start + pad : start + length] = document
            target[start + pad + 1 : start + length] = True
    return tokens, target, int(starts[num_train])


def _label(tokens: np.ndarray, order: int) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """For each order: the label at every position, each label's suffix label, and how many labels.

    labels[k][i] names tokens[i-k .. i]; it is the pair (token i-k, label of the rest). The first k
    positions of the stream, which no document reaches, get their own labels by reading token 0 there.
    """
    _, unigram = np.unique(tokens, return_inverse=True)
    labels, suffixes = [unigram], [np.empty(0, np.int64)]
    sizes = [int(unigram.max()) + 1]
    width = sizes[0]
    for k in range(1, order):
        left = np.concatenate([np.full(k, unigram[0]), unigram[:-k]])
        keys, label = np.unique(labels[-1] * width + left, return_inverse=True)
        labels.append(label)
        suffixes.append(keys // width)
        sizes.append(keys.size)
    return labels, suffixes, sizes


def _order_statistics(count: np.ndarray, history_of: np.ndarray, histories: int) -> _Order:
    ones, twos, threes, fours = (int((count == n).sum()) for n in (1, 2, 3, 4))
    discounts = _FALLBACK
    if ones and twos and threes:
        y = ones / (ones + 2 * twos)
        estimate = (
            1 - 2 * y * twos / ones,
            2 - 3 * y * threes / twos,
            3 - 4 * y * fours / threes,
        )
        if all(0 <= d <= n for d, n in zip(estimate, (1, 2, 3), strict=True)):
            discounts = estimate
    discount = np.asarray([0.0, *discounts])[np.minimum(count, 3)]
    return _Order(
        count=count,
        total=np.bincount(history_of, weights=count, minlength=histories),
        reserved=np.bincount(history_of, weights=discount, minlength=histories),
        discounts=discounts,
    )


def _discounted(statistics: _Order, gram: np.ndarray) -> np.ndarray:
    count = statistics.count[gram]
    return count - np.asarray([0.0, *statistics.discounts])[np.minimum(count, 3)]
