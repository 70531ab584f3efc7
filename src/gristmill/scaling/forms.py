"""What is fitted: each law as the logarithm of its loss over unknowns that a minimizer likes, with its derivatives.

Unknowns are logarithms, and those of A and B are taken at the middle of the data (a - alpha·mean ln N): so they do not
move with the exponents, which otherwise makes the valley too narrow to walk along.

Shapes: S candidates, P unknowns, R runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gristmill.scaling.laws import Chinchilla, Kaplan, Repeated
from gristmill.scaling.runs import Runs


class Form(Protocol):
    """One law over one set of runs."""

    @property
    def runs(self) -> Runs: ...

    @property
    def unknowns(self) -> tuple[str, ...]: ...

    @property
    def constants(self) -> tuple[str, ...]: ...

    def log_loss(self, x_SP: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """(ln L [S, R], its derivative by each unknown, each [S, R])"""
        ...

    def law(self, x_P: np.ndarray) -> Any: ...


@dataclass(frozen=True)
class ChinchillaForm:
    runs: Runs
    unknowns = ("a", "b", "e", "alpha", "beta")
    constants = ("E", "A", "B", "alpha", "beta")

    @property
    def middle(self) -> tuple[float, float]:
        return float(np.log(self.runs.params).mean()), float(np.log(self.runs.tokens).mean())

    def log_loss(self, x_SP: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        a, b, e, alpha, beta = (column[:, None] for column in x_SP.T)
        n, d = (
            np.log(v) - m
            for v, m in zip((self.runs.params, self.runs.tokens), self.middle, strict=True)
        )
        terms = np.stack(np.broadcast_arrays(a - alpha * n, b - beta * d, e + 0 * n))
        top = terms.max(0)
        shares = np.exp(terms - top)
        whole = shares.sum(0)
        shares /= whole
        by_a, by_b, by_e = shares
        return top + np.log(whole), [by_a, by_b, by_e, -by_a * n, -by_b * d]

    def law(self, x_P: np.ndarray) -> Chinchilla:
        a, b, e, alpha, beta = map(float, x_P)
        n, d = self.middle
        return Chinchilla(math.exp(e), math.exp(a + alpha * n), math.exp(b + beta * d), alpha, beta)

    def start(self, law: Chinchilla) -> np.ndarray:
        n, d = self.middle
        tiny = 1e-12  # where least squares found no floor
        return np.array(
            [
                math.log(max(law.A, tiny)) - law.alpha * n,
                math.log(max(law.B, tiny)) - law.beta * d,
                math.log(max(law.E, tiny)),
                law.alpha,
                law.beta,
            ]
        )

    def grid(self, full: bool = False) -> np.ndarray:
        """Starts of Hoffmann's appendix: 4,500; else 288 of the same range, which find the same optimum."""
        if full:
            axes = [range(0, 26, 5)] * 2 + [(-1, -0.5, 0, 0.5, 1)] + [(0, 0.5, 1, 1.5, 2)] * 2
        else:
            axes = [(0, 8, 16, 25)] * 2 + [(-1, 0, 1), (0, 0.5, 1), (0.25, 1)]
        at = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 5).astype(np.float64)
        n, d = self.middle
        at[:, 0] -= at[:, 3] * n
        at[:, 1] -= at[:, 4] * d
        return at


@dataclass(frozen=True)
class KaplanForm:
    runs: Runs
    unknowns = ("size", "data", "ln alpha_N", "ln alpha_D")
    constants = ("Nc", "Dc", "alpha_N", "alpha_D")

    @property
    def middle(self) -> tuple[float, float]:
        return float(np.log(self.runs.params).mean()), float(np.log(self.runs.tokens).mean())

    def log_loss(self, x_SP: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """ln L = logsumexp of the two terms over alpha_D, times alpha_D."""
        size, data, ln_n, ln_d = (column[:, None] for column in x_SP.T)
        alpha_n, alpha_d = np.exp(ln_n), np.exp(ln_d)
        middle_n, middle_d = self.middle
        n, d = np.log(self.runs.params) - middle_n, np.log(self.runs.tokens) - middle_d
        of_size, of_data = (size - n * alpha_n) / alpha_d, (data - d * alpha_d) / alpha_d
        whole = np.logaddexp(of_size, of_data)
        share_n, share_d = np.exp(of_size - whole), np.exp(of_data - whole)
        by_alpha_d = whole - share_n * of_size - share_d * (of_data + d)
        return alpha_d * whole, [
            share_n,
            share_d,
            -share_n * n * alpha_n,
            alpha_d * by_alpha_d,
        ]

    def law(self, x_P: np.ndarray) -> Kaplan:
        size, data, ln_n, ln_d = map(float, x_P)
        alpha_n, alpha_d = math.exp(ln_n), math.exp(ln_d)
        n, d = self.middle
        return Kaplan(math.exp(size / alpha_n + n), math.exp(data / alpha_d + d), alpha_n, alpha_d)

    def grid(self) -> np.ndarray:
        y = float(np.log(self.runs.loss).mean())
        axes = [(y - 0.3, y), (y - 0.3, y), (-3.5, -2.5, -1.5), (-3.5, -2.5, -1.5)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 4)


@dataclass(frozen=True)
class RepeatedForm:
    """What repeating is worth, once the law of new data (`base`) is known."""

    runs: Runs
    base: Chinchilla
    unknowns = ("ln reuse", "ln excess")
    constants = ("reuse", "excess")

    def log_loss(self, x_SP: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        base, runs = self.base, self.runs
        enough = np.minimum(runs.params, base.params_for(runs.unique))
        params, by_excess = _worth(runs.params, enough, np.exp(x_SP[:, 1:]))
        tokens, by_reuse = _worth(runs.tokens, runs.unique, np.exp(x_SP[:, :1]))
        loss = base.loss(params, tokens)
        slope_d = -base.beta * base.B / tokens ** (base.beta + 1) / loss
        slope_n = -base.alpha * base.A / params ** (base.alpha + 1) / loss
        return np.log(loss), [slope_d * by_reuse, slope_n * by_excess]

    def law(self, x_P: np.ndarray) -> Repeated:
        return Repeated(self.base, math.exp(float(x_P[0])), math.exp(float(x_P[1])))

    def grid(self) -> np.ndarray:
        axes = [(0.0, 1.0, 2.0, 3.0, 4.0)] * 2
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)


def _worth(amount: np.ndarray, distinct: np.ndarray, half: np.ndarray) -> tuple[Any, Any]:
    """(effective amount, its derivative by ln half)"""
    repeats = amount / distinct - 1
    gone = np.exp(-repeats / half)
    return (
        distinct * (1 + half * (1 - gone)),
        distinct * (half * (1 - gone) - repeats * gone),
    )
