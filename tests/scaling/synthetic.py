"""Runs made of a known law."""

from __future__ import annotations

import numpy as np

from gristmill.scaling import Chinchilla, Runs, make_runs


def isoflop_runs(
    law: Chinchilla,
    budgets,
    *,
    sizes: int = 7,
    reach: float = 4.0,
    noise: float = 0.0,
    seed: int = 0,
) -> Runs:
    """At each budget `sizes` sizes from 1/reach to reach times the best; ln L with so much Gaussian noise."""
    params, tokens = [], []
    for flops in budgets:
        best = law.optimum(flops).params
        for factor in np.geomspace(1 / reach, reach, sizes):
            params.append(best * factor)
            tokens.append(flops / 6 / (best * factor))
    n, d = np.array(params), np.array(tokens)
    jitter = np.random.default_rng(seed).standard_normal(len(n))
    return make_runs(n, d, law.loss(n, d) * np.exp(noise * jitter))
