"""From log-likelihoods to scores, by lm-eval's conventions (lm_eval/api/task.py, api/metrics.py, 0.4.13).

Multiple choice: `acc` takes the choice of the largest Σ logp, `acc_norm` divides by the choice's characters,
`acc_bytes` by its UTF-8 bytes, `acc_mutual_info` subtracts the choice's log-likelihood without the question.
Ties go to the first choice.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from gristmill.errors import RequestError


def best(scores: Sequence[float]) -> int:
    """The index of the largest score, the first one of equals."""
    return int(np.argmax(scores))


def by_characters(logprobs: Sequence[float], choices: Sequence[str]) -> list[float]:
    return [value / max(1, len(choice)) for value, choice in zip(logprobs, choices, strict=True)]


def by_bytes(logprobs: Sequence[float], choices: Sequence[str]) -> list[float]:
    return [
        value / max(1, len(choice.encode()))
        for value, choice in zip(logprobs, choices, strict=True)
    ]


def mutual_information(logprobs: Sequence[float], unconditional: Sequence[float]) -> list[float]:
    """log p(choice | question) - log p(choice): how much the question speaks for the choice."""
    return [value - alone for value, alone in zip(logprobs, unconditional, strict=True)]


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error s/√n with n - 1 degrees of freedom; nan where n is too small."""
    count = len(values)
    if not count:
        return math.nan, math.nan
    mean = math.fsum(values) / count
    if count == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(variance / count)


def clustered_mean_and_stderr(
    values: Sequence[float], clusters: Sequence[Hashable]
) -> tuple[float, float]:
    """Mean, and its standard error where items of one cluster hang together (Miller 2024, 2411.00640).

    √(Σ_c (Σ_{i in c} (s_i - mean))²) / n; nan with fewer than two clusters.
    """
    mean, _ = mean_and_stderr(values)
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    if len(sums) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum(part**2 for part in sums.values())) / len(values)


def brier(logprobs: Sequence[Sequence[float]], answers: Sequence[int]) -> float:
    """Mean over items of Σ_k (p_k - [k = answer])², p the softmax of an item's log-likelihoods: 0 to 2."""
    total = []
    for row, answer in zip(logprobs, answers, strict=True):
        values = np.asarray(row, np.float64)
        p = np.exp(values - values.max())
        p /= p.sum()
        p[answer] -= 1
        total.append(float((p**2).sum()))
    return math.fsum(total) / len(total)


def check_answer(answer: int, choices: Sequence[str], where: str) -> None:
    """Refuse an item whose answer is not one of its choices, naming it."""
    if not 0 <= answer < len(choices):
        raise RequestError(
            f"{where}: the answer is choice {answer}, but there are {len(choices)} choices "
            f"(numbered from 0)"
        )
