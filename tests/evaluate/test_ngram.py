from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from gristmill.errors import WorkError
from gristmill.evaluate import ngram_bits, ngram_logprobs

SEPARATOR = 0


def kneser_ney(train: list[list[int]], vocab_size: int, order: int):
    """Modified Kneser-Ney from its definition (Chen & Goodman 1999, eq. 26-33), with dictionaries."""
    counts: list[Counter] = [Counter() for _ in range(order + 1)]
    for document in train:
        padded = [SEPARATOR] * (order - 2) + document
        for i in range(order - 1, len(padded)):
            counts[order][tuple(padded[i - order + 1 : i + 1])] += 1
    for k in range(order - 1, 0, -1):
        for gram in counts[k + 1]:
            counts[k][gram[1:]] += 1
    discounts = {}
    for k in range(1, order + 1):
        n = Counter(counts[k].values())
        discounts[k] = (0, 0.5, 1.0, 1.5)
        if n[1] and n[2] and n[3]:
            y = n[1] / (n[1] + 2 * n[2])
            d = [0.0] + [c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)]
            if all(0 <= d[c] <= c for c in (1, 2, 3)):
                discounts[k] = tuple(d)
    following: dict = defaultdict(dict)
    for k in range(1, order + 1):
        for gram, count in counts[k].items():
            following[gram[:-1]][gram[-1]] = count

    def probability(token: int, history: tuple[int, ...]) -> float:
        lower = 1 / vocab_size if not history else probability(token, history[1:])
        after = following.get(history)
        if not after:
            return lower
        d = discounts[len(history) + 1]
        total = sum(after.values())
        kept = max(0.0, after[token] - d[min(after[token], 3)]) if token in after else 0.0
        freed = sum(d[min(count, 3)] for count in after.values())
        return (kept + freed * lower) / total

    return probability


def documents(rng: np.random.Generator, count: int, vocab_size: int) -> list[list[int]]:
    """Text with structure: each token is often a fixed function of the one before it."""
    made = []
    for _ in range(count):
        tokens = [SEPARATOR]
        for _ in range(int(rng.integers(1, 40))):
            follow = (tokens[-1] * 7 + 3) % (vocab_size - 1) + 1
            tokens.append(follow if rng.random() < 0.6 else int(rng.integers(1, vocab_size)))
        made.append(tokens)
    return made


@pytest.mark.parametrize(("order", "vocab_size"), [(5, 30), (3, 12), (2, 50)])
def test_equals_the_definition_written_with_dictionaries(order: int, vocab_size: int) -> None:
    rng = np.random.default_rng(order)
    train, heldout = documents(rng, 60, vocab_size), documents(rng, 12, vocab_size + 5)
    found = ngram_logprobs(
        [np.array(d, np.uint16) for d in train],
        [np.array(d, np.uint16) for d in heldout],
        vocab_size + 5,
        order,
    )
    expected = kneser_ney(train, vocab_size + 5, order)
    for document, logprobs in zip(heldout, found, strict=True):
        padded = [SEPARATOR] * (order - 2) + document
        wanted = [
            math.log(expected(padded[i], tuple(padded[i - order + 1 : i])))
            for i in range(order - 1, len(padded))
        ]
        np.testing.assert_allclose(logprobs, wanted, rtol=1e-12)


@pytest.mark.parametrize(
    "context", [[0], [0, 3], [0, 11, 4, 9, 2], [0, 64, 63, 62, 61, 60], [0, 1, 1, 1, 1, 1, 1]]
)
def test_probabilities_sum_to_one_after_known_and_unknown_contexts(context: list[int]) -> None:
    vocab_size = 70
    train = [np.array(d) for d in documents(np.random.default_rng(1), 80, 55)]
    continued = [np.array([*context, token]) for token in range(vocab_size)]
    logprobs = [row[-1] for row in ngram_logprobs(train, continued, vocab_size)]
    assert sum(math.exp(value) for value in logprobs) == pytest.approx(1, abs=1e-12)


def test_what_was_seen_is_cheap_and_each_held_out_document_is_scored_on_its_own() -> None:
    train = [np.array(d, np.uint16) for d in documents(np.random.default_rng(2), 50, 40)]
    known, unknown = train[7], np.array([0, 39, 1, 38, 2, 37, 3], np.uint16)
    assert ngram_bits(train, [known], 40) / (len(known) - 1) < 3
    assert ngram_bits(train, [unknown], 40) / (len(unknown) - 1) > math.log2(40)
    together = ngram_logprobs(train, [known, unknown, np.array([0])], 40)
    assert [len(row) for row in together] == [len(known) - 1, len(unknown) - 1, 0]
    np.testing.assert_array_equal(together[1], ngram_logprobs(train, [unknown], 40)[0])


def test_ids_beyond_16_bits_and_no_training_text() -> None:
    big = [np.array([0, 99_000, 70_000, 99_000, 70_000], np.uint32)]
    assert ngram_bits(big, big, 100_000) / 4 < 8
    assert ngram_logprobs(big, [], 100_000) == []
    with pytest.raises(WorkError, match="no training tokens"):
        ngram_bits([np.array([0])], big, 100_000)
