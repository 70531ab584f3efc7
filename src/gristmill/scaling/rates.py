"""Laws of the learning rate and the batch: where the best one lies at each scale, and how flat it is there.

The place alone says too little: an optimum that is flat forgives a wrong rate, and its place is then poorly known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gristmill.errors import RequestError
from gristmill.scaling.fit import SAMPLES, fit_power, spread
from gristmill.scaling.laws import PowerLaw
from gristmill.scaling.runs import Runs


@dataclass(frozen=True)
class BestRate:
    """Of one size: loss = least + bend·(ln rate - ln best)². doubled: what a rate twice as high costs, in nats."""

    scale: float
    best: float
    least: float
    bend: float

    @property
    def doubled(self) -> float:
        return self.bend * math.log(2) ** 2


@dataclass(frozen=True)
class RateLaw:
    """best rate = (scale/x)^exponent over N, C or D; a negative exponent grows (the batch does)."""

    law: PowerLaw
    sampled: list[PowerLaw]
    at: list[BestRate]

    @property
    def interval(self) -> tuple[float, float]:
        """Of the exponent."""
        return spread([law.exponent for law in self.sampled])


def best_rate(
    scale: float, rates: Sequence[float] | np.ndarray, losses: Sequence[float] | np.ndarray
) -> BestRate:
    """The bottom of the parabola in ln rate through the best point and its neighbours, all where they are few.

    Raises RequestError where the bottom lies outside the rates tried.
    """
    x, y = np.log(np.asarray(rates, float)), np.asarray(losses, float)
    order = np.argsort(x)
    x, y = x[order], y[order]
    if len(x) < 3:
        raise RequestError(f"{len(x)} rates have no bottom between them; try three at {scale:.3g}")
    at = int(np.clip(np.argmin(y), 1, len(x) - 2))
    near = slice(max(0, at - 2), at + 3)  # rates far from the best fail in their own ways
    bend, slope, offset = np.polyfit(x[near] - x[at], y[near], 2)
    place = x[at] - slope / (2 * bend) if bend > 0 else math.nan
    if not x[0] <= place <= x[-1]:
        end = "higher" if y[-1] < y[0] else "lower"
        raise RequestError(
            f"at {scale:.3g} the best rate lies outside those tried ({math.exp(x[0]):.3g} to {math.exp(x[-1]):.3g}): "
            f"try {end} ones"
        )
    return BestRate(scale, math.exp(place), float(offset - slope**2 / (4 * bend)), float(bend))


def rate_law(found: Sequence[BestRate], *, samples: int = SAMPLES, seed: int = 0) -> RateLaw:
    """How the best rate (or batch) moves with scale. Raises RequestError for fewer than two scales."""
    law, sampled = fit_power(
        [one.scale for one in found], [one.best for one in found], samples=samples, seed=seed
    )
    return RateLaw(law, sampled, list(found))


def rates_of(runs: Runs) -> list[BestRate]:
    """Of each shape and length in a sweep that was trained at three rates or more: factors on the usual rates."""
    found = []
    for size, tokens in sorted(set(zip(runs.params.tolist(), runs.tokens.tolist(), strict=True))):
        same = (runs.params == size) & (runs.tokens == tokens)
        if same.sum() >= 3:
            found.append(best_rate(size, runs.lr[same].tolist(), runs.loss[same].tolist()))
    return found
