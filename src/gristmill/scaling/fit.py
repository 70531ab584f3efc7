"""Fitting a law to runs: Huber's loss on ln L from many starts, bootstrap, and a test on the largest runs.

    min Σ Huber_δ(ln L - law), δ = 1e-3: the sum, not the mean, whose small values stop a minimizer early (that is what
    happened to Hoffmann's approach 3; Besiroglu et al. 2024, arXiv 2404.10102).

Shapes: S candidates or samples, P unknowns, R runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from gristmill.errors import RequestError
from gristmill.scaling.forms import ChinchillaForm, Form, KaplanForm, RepeatedForm
from gristmill.scaling.laws import Chinchilla, PowerLaw
from gristmill.scaling.minimize import minimize
from gristmill.scaling.runs import Runs

DELTA = 1e-3  # of Huber's loss: beyond a residual of 0.1%, its absolute value counts
LEVEL = 0.95  # of intervals
SAMPLES = 1000  # of a bootstrap
SPARE = 2  # runs beyond the unknowns that an interval takes: without, every sample is fitted exactly and says "certain"
# How many of the best starts go on, for how many steps, until what gain: most of them end in the same valley.
_ROUNDS = ((10_000, 30, 1e-4), (64, 200, 1e-7), (8, 1000, 1e-13))
LEAST_SIZES, LEAST_DECADES = 5, 1.5  # below them five constants cannot be told apart


@dataclass(frozen=True)
class Fit:
    """A law fitted to runs. residuals: ln L - ln law [R]. sampled: the law of each bootstrap sample.

    value: the objective, a sum over the runs. fixed: unknowns that were given.
    """

    law: Any
    constants: tuple[str, ...]
    value: float
    residuals: np.ndarray
    runs: Runs
    sampled: list[Any] = field(default_factory=list)
    fixed: tuple[str, ...] = ()

    def interval(self, of: Callable[[Any], float]) -> tuple[float, float]:
        """Where LEVEL of the samples lie, of any number that follows from a law."""
        return spread([of(law) for law in self.sampled])

    def intervals(self) -> dict[str, tuple[float, float]]:
        return {name: self.interval(lambda law, n=name: getattr(law, n)) for name in self.constants}


def spread(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The middle LEVEL of bootstrap values; (nan, nan) of none."""
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(np.asarray(values), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def huber(form: Form, weights_SR: np.ndarray, free: np.ndarray) -> Any:
    """The objective for `minimize`: weights are of each run in each sample; unknowns not in `free` stay."""
    target = np.log(form.runs.loss)

    def objective(x_SP: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(over="ignore", invalid="ignore"):
            predicted, partials = form.log_loss(x_SP)
            residual = predicted - target
            size = np.abs(residual)
            weights = weights_SR[which]
            each = np.where(size <= DELTA, residual**2 / 2, DELTA * (size - DELTA / 2))
            slope = weights * np.clip(residual, -DELTA, DELTA)
            gradient = np.stack([(slope * partial).sum(1) for partial in partials], 1)
            value = (weights * each).sum(1)
        return np.where(np.isfinite(value), value, np.inf), np.nan_to_num(gradient) * free

    return objective


def solve(form: Form, starts: np.ndarray, free: np.ndarray | None = None) -> tuple[Any, float]:
    """(unknowns [P], value) of the lowest minimum that any start leads to, polished."""
    free = np.ones(starts.shape[1]) if free is None else free
    places, values = starts, np.zeros(len(starts))
    for keep, steps, tolerance in _ROUNDS:
        places = places[np.argsort(values)[:keep]]
        weights = np.ones((len(places), len(form.runs)))
        places, values = minimize(huber(form, weights, free), places, steps, tolerance)
    at = int(np.argmin(values))
    return places[at], float(values[at])


def finish(
    form: Form, found: np.ndarray, value: float, samples: int, seed: int, free: np.ndarray
) -> Fit:
    """The fit with its bootstrap: runs drawn again with replacement, the law fitted anew from where it was.

    No samples where there are too few runs to tell an interval.
    """
    runs = form.runs
    predicted, _ = form.log_loss(found[None])
    sampled: list[Any] = []
    unknown = int(free.sum())
    if samples and len(runs) >= unknown + SPARE:
        weights = resample(runs, samples, seed, unknown + 1)
        objective = huber(form, weights, free)
        places, _ = minimize(objective, np.tile(found, (samples, 1)), tolerance=1e-8)
        sampled = [form.law(place) for place in places]
    fixed = tuple(name for name, is_free in zip(form.unknowns, free, strict=True) if not is_free)
    return Fit(
        form.law(found),
        form.constants,
        value,
        np.log(runs.loss) - predicted[0],
        runs,
        sampled,
        fixed,
    )


def resample(runs: Runs, samples: int, seed: int, least: int) -> np.ndarray:
    """How often each run is drawn [samples, R]; samples with fewer than `least` different runs are drawn again."""
    generator = np.random.default_rng([seed, 0x5CA1])
    count = len(runs)
    least = min(least, count)
    weights = np.zeros((samples, count))
    waiting = np.arange(samples)
    while len(waiting):
        weights[waiting] = generator.multinomial(count, np.full(count, 1 / count), len(waiting))
        waiting = waiting[(weights[waiting] > 0).sum(1) < least]
    return weights


def check_enough(runs: Runs, least: int = 5, least_decades: float = LEAST_DECADES) -> None:
    """Raises RequestError where five constants cannot be told apart (reference: 5 sizes, 1.5 decades of C)."""
    sizes = distinct(runs.params)
    decades = math.log10(runs.flops.max() / runs.flops.min())
    if len(runs) <= least or sizes < LEAST_SIZES or decades < least_decades:
        raise RequestError(
            f"{len(runs)} runs of {sizes} sizes over {decades:.1f} decades of compute do not tell five constants "
            f"apart: it takes {LEAST_SIZES} sizes, {least_decades} decades and more runs than constants. Train more, "
            "or fix the exponents: --exponents 0.3478,0.3658 are the replication's"
        )


def distinct(values: np.ndarray) -> int:
    """How many values differ by more than 2%."""
    logs = np.sort(np.log(values))
    return 1 + int((np.diff(logs) > 0.02).sum())


def fit_chinchilla(
    runs: Runs,
    *,
    exponents: tuple[float, float] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    full_grid: bool = False,
    least_decades: float = LEAST_DECADES,
) -> Fit:
    """Approach 3. exponents: alpha and beta that are given instead of fitted. least_decades: of compute, else refused.

    Raises RequestError where the runs are too few or too alike for what is asked.
    """
    form = ChinchillaForm(runs)
    free = np.ones(5)
    if exponents is None:
        check_enough(runs, least_decades=least_decades)
        starts = np.concatenate((form.grid(full_grid), [form.start(variable_projection(runs))]))
    else:
        if len(runs) < 3:
            raise RequestError(f"{len(runs)} runs do not tell E, A and B apart: it takes 3")
        free[3:] = 0
        law, _ = linear_part(runs, *exponents)
        starts = form.start(law)[None]
    found, value = solve(form, starts, free)
    return finish(form, found, value, samples, seed, free)


def fit_kaplan(runs: Runs, *, samples: int = SAMPLES, seed: int = 0) -> Fit:
    """Kaplan's joint law, which has no floor. N should be without embeddings."""
    check_enough(runs, least=4)
    form, free = KaplanForm(runs), np.ones(4)
    found, value = solve(form, form.grid())
    return finish(form, found, value, samples, seed, free)


def fit_repeated(base: Chinchilla, runs: Runs, *, samples: int = SAMPLES, seed: int = 0) -> Fit:
    """R*_D and R*_N from runs that repeat data, on the law of runs that do not."""
    if not (runs.tokens > 1.5 * runs.unique).any():
        raise RequestError("no run repeats its data: give runs with tokens beyond unique_tokens")
    form, free = RepeatedForm(runs, base), np.ones(2)
    found, value = solve(form, form.grid())
    return finish(form, found, value, samples, seed, free)


def linear_part(runs: Runs, alpha: float, beta: float) -> tuple[Chinchilla, float]:
    """(the law of these exponents with the least squared relative error, that sum): E, A and B are not negative."""
    columns = np.stack(
        (np.ones(len(runs)), runs.params**-alpha, runs.tokens**-beta), 1
    ) / runs.loss.reshape(-1, 1)
    scale = columns.max(0)
    best, least = np.zeros(3), math.inf
    for size in (3, 2, 1):  # the solution is that of some subset of columns, of all where it can be
        for chosen in combinations(range(3), size):
            part = (columns / scale)[:, chosen]
            weights = np.linalg.lstsq(part, np.ones(len(runs)), rcond=None)[0]
            rest = float(((part @ weights - 1) ** 2).sum())
            if (weights >= 0).all() and rest < least:
                best, least = np.zeros(3), rest
                best[list(chosen)] = weights
        if size == 3 and least < math.inf:
            break
    E, A, B = best / scale
    return Chinchilla(float(E), float(A), float(B), float(alpha), float(beta)), least


def variable_projection(runs: Runs, halvings: int = 60) -> Chinchilla:
    """Least squares on relative errors, the linear part solved exactly inside a search over (alpha, beta)
    (Czech et al. 2026, arXiv 2603.22339). The cross-check of approach 3, and a start for it.
    """
    axis = np.linspace(0.05, 1.2, 12)
    at = min(((a, b) for a in axis for b in axis), key=lambda p: linear_part(runs, *p)[1])
    least, step = linear_part(runs, *at)[1], 0.1
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    while step > 2.0**-halvings * 0.1 and least > 0:
        for i, j in around:
            tried = (at[0] + i * step, at[1] + j * step)
            found = linear_part(runs, *tried)[1] if min(tried) > 1e-3 else math.inf
            if found < least:
                at, least = tried, found
                break
        else:
            step /= 2
    return linear_part(runs, *at)[0]


def fit_power(x: Any, y: Any, *, samples: int = SAMPLES, seed: int = 0) -> tuple[PowerLaw, list]:
    """(y = (scale/x)^exponent by least squares in logarithms, the law of each bootstrap sample).

    Kaplan's L(N) of runs with data to spare, L(D) of large models, L(C_min) of a front.
    """
    if len(x) < 2 or distinct(np.asarray(x)) < 2:
        raise RequestError("a power law takes points at two places at least")
    logs, values = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))

    def law(weights: np.ndarray) -> PowerLaw:
        slope, offset = weighted_line(logs, values, weights)
        return PowerLaw(math.exp(min(700.0, -offset / slope)) if slope else math.inf, -slope)

    generator = np.random.default_rng([seed, 0x90E2])
    sampled = []
    while len(sampled) < samples and len(logs) > 2:
        weights = generator.multinomial(len(logs), np.full(len(logs), 1 / len(logs)))
        if np.ptp(logs[weights > 0]) > 0.02:
            sampled.append(law(weights.astype(float)))
    return law(np.ones(len(logs))), sampled


def weighted_line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """(slope, offset) of least squares."""
    total = weights.sum()
    mid_x, mid_y = (weights * x).sum() / total, (weights * y).sum() / total
    slope = (weights * (x - mid_x) * (y - mid_y)).sum() / (weights * (x - mid_x) ** 2).sum()
    return float(slope), float(mid_y - slope * mid_x)
