"""Logistic regression on sparse rows by L-BFGS, and Platt's calibration by Newton's method. Deterministic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Rows:
    """Sparse rows of equal values: row i has 1/sqrt(length) at each of its buckets, so every row's norm is 1."""

    def __init__(self, rows: Sequence[NDArray[np.uint32]]) -> None:
        lengths = np.array([len(row) for row in rows], np.int64)
        self.buckets = np.concatenate([np.empty(0, np.uint32), *rows]).astype(np.int32)
        self.lengths = lengths
        self.norms = 1 / np.sqrt(np.maximum(lengths, 1))
        self.row_of = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)

    def with_buckets(self, buckets: NDArray[np.int64]) -> Rows:
        """The same rows with other numbers for their buckets."""
        other = Rows([])
        other.buckets = buckets.astype(np.int32)
        other.lengths, other.norms, other.row_of = self.lengths, self.norms, self.row_of
        return other

    def times(self, weight: Floats) -> Floats:
        """The dot product of every row with `weight`."""
        sums = np.bincount(self.row_of, weight[self.buckets], len(self.lengths))
        return sums * self.norms

    def transposed_times(self, values: Floats, size: int) -> Floats:
        """The sum of all rows, each times its value."""
        sums = np.bincount(self.buckets, (values * self.norms)[self.row_of], size)
        return sums.astype(np.float64, copy=False)


def _dot(a: Floats, b: Floats) -> float:
    """Not BLAS, whose sums depend on the number of its threads."""
    return float(np.multiply(a, b).sum())


def sigmoid(z: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(0.5 * z))


def fit_logistic(rows: Rows, labels: Floats, size: int, c: float) -> tuple[Floats, float]:
    """(weight, bias) that minimize sum of log-losses + |weight|^2 / (2 c); classes weigh the same in sum.

    This is scikit-learn's LogisticRegression(C=c, class_weight="balanced").
    """
    good = labels.sum()
    share = np.where(labels == 1, 0.5 / good, 0.5 / (len(labels) - good)) * len(labels)

    def loss(point: Floats) -> tuple[float, Floats]:
        weight, bias = point[:-1], point[-1]
        z = rows.times(weight) + bias
        losses = np.logaddexp(0, z) - labels * z
        slope = share * (sigmoid(z) - labels)
        value = _dot(share, losses) + _dot(weight, weight) / (2 * c)
        gradient = np.empty_like(point)
        gradient[:-1] = rows.transposed_times(slope, size) + weight / c
        gradient[-1] = slope.sum()
        return value, gradient

    point = minimize(loss, np.zeros(size + 1), tolerance=1e-6 * len(labels))
    return point[:-1], float(point[-1])


def minimize(
    loss: Callable[[Floats], tuple[float, Floats]],
    start: Floats,
    tolerance: float,
    steps: int = 200,
    memory: int = 10,
) -> Floats:
    """The minimum of a smooth convex function by L-BFGS (Nocedal and Wright, algorithm 7.5), halving the
    step until the loss falls enough; ends when no gradient component is above `tolerance`."""
    x = start
    value, gradient = loss(x)
    history: list[tuple[Floats, Floats, float]] = []
    for _ in range(steps):
        if np.abs(gradient).max() <= tolerance:
            break
        direction = -_two_loops(gradient, history)
        fall = _dot(gradient, direction)
        step = 1.0 if history else min(1.0, 1 / float(np.abs(gradient).sum()))
        while True:
            new_x = x + step * direction
            new_value, new_gradient = loss(new_x)
            if new_value <= value + 1e-4 * step * fall:
                break
            step /= 2
            if step < 1e-12:
                return x  # at the limit of floating point
        moved, turned = new_x - x, new_gradient - gradient
        curve = _dot(moved, turned)
        if curve > 0:
            history = [*history, (moved, turned, curve)][-memory:]
        x, value, gradient = new_x, new_value, new_gradient
    return x


def _two_loops(gradient: Floats, history: list[tuple[Floats, Floats, float]]) -> Floats:
    q = gradient.copy()
    alphas: list[float] = []
    for moved, turned, curve in reversed(history):
        alphas.append(_dot(moved, q) / curve)
        q -= alphas[-1] * turned
    if history:
        _, turned, curve = history[-1]
        q *= curve / _dot(turned, turned)
    for (moved, turned, curve), alpha in zip(history, reversed(alphas), strict=True):
        q += (alpha - _dot(turned, q) / curve) * moved
    return q


def fit_platt(scores: Floats, labels: Floats) -> tuple[float, float]:
    """(slope, offset) such that sigmoid(slope * score + offset) is the share of good ones at that score.

    Targets are pulled in from 0 and 1 as Platt (1999) does, so that separable scores stay finite.
    """
    good = labels.sum()
    bad = len(labels) - good
    target = np.where(labels == 1, (good + 1) / (good + 2), 1 / (bad + 2))

    def loss(point: Floats) -> tuple[float, Floats]:
        z = point[0] * scores + point[1]
        off = sigmoid(z) - target
        return float((np.logaddexp(0, z) - target * z).sum()), np.array(
            [_dot(off, scores), off.sum()]
        )

    slope, offset = minimize(loss, np.array([1.0, 0.0]), tolerance=1e-9 * len(labels))
    return float(slope), float(offset)
