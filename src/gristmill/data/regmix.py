"""Weights of a mixture by regression on small runs (RegMix: Liu et al. 2024, arXiv 2407.01492).

Many small proxies are trained on random mixtures, their loss on what one wants to be good at is regressed on the
weights, and the mixture with the lowest predicted loss is proposed. Here the proxy is a callable, the regression is
chosen by leave-one-out error, and the proposal comes with an interval from a residual bootstrap.

Where a source is nearly absent the loss rises like a wall, which no simple form follows, and which says little of
where the valley is: a run counts the less, the further its loss is above the lowest (see `_trust`).

Shapes: mixtures are float64 [runs, sources], rows sum to 1; losses are float64 [runs].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gristmill.errors import RequestError
from gristmill.stage import Progress, quiet

_RIDGE = 1e-8  # of the mean square of a feature: keeps forms solvable where mixtures hardly differ
_BOOTSTRAPS = 200
_CANDIDATES, _ZOOMS = 4096, 12
_INTERVAL = (5.0, 95.0)  # percent


def _linear(w: np.ndarray) -> np.ndarray:
    """Σ b_i w_i. Needs no constant: weights sum to 1."""
    return w


def _quadratic(w: np.ndarray) -> np.ndarray:
    """Σ b_i w_i + Σ b_ij w_i w_j: Scheffé's polynomial, the full quadratic form on a simplex."""
    pairs = [w[:, i] * w[:, j] for i, j in combinations(range(w.shape[1]), 2)]
    return np.column_stack([w, *pairs])


def _logarithmic(w: np.ndarray) -> np.ndarray:
    """Σ b_i w_i + Σ c_i log(w_i + 0.01): the first tokens of a source teach most, and a hundredth part of it a lot."""
    return np.column_stack([w, np.log(w + 0.01)])


FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": _linear,
    "quadratic": _quadratic,
    "logarithmic": _logarithmic,
}


@dataclass(frozen=True)
class Proposal:
    """weights: of the lowest predicted loss. low, high: bounds of each, 90% of bootstraps lie within.

    form: of FORMS, the one with the smallest leave-one-out error; errors: those of all, root mean squares in units
    of the loss, infinite for a form with more coefficients than runs allow. spread: the standard deviation of the
    losses: a form that is not well below it has learned nothing. All of them count runs as the fit does.
    loss: predicted for the weights, loss_low to loss_high likewise. best_seen: the lowest loss that was measured.
    """

    weights: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    form: str
    errors: dict[str, float]
    spread: float
    loss: float
    loss_low: float
    loss_high: float
    best_seen: float


def sample_mixtures(
    sizes: Mapping[str, float], count: int, seed: int, strengths: tuple[float, float] = (0.1, 5.0)
) -> np.ndarray:
    """float64 [count, sources]: mixtures to try, drawn around the sources' own proportions.

    Dirichlet, with the proportions times the number of sources times a strength, drawn log-uniformly for each
    mixture from `strengths`: weak ones lie at corners, strong ones near the proportions. They are a function of
    (sizes, seed) and row number: more of them begin with the same ones.
    """
    sizes_ = np.array(list(sizes.values()), float)
    if len(sizes_) < 2 or not (np.isfinite(sizes_).all() and (sizes_ > 0).all()):
        raise RequestError("a mixture needs two sources or more, each with a size above 0")
    base = sizes_ / sizes_.sum() * len(sizes_)
    low, high = np.log(strengths)
    rows = []
    for row in range(count):
        generator = np.random.default_rng([seed, row])
        gammas = generator.standard_gamma(base * np.exp(generator.uniform(low, high)))
        total = gammas.sum()
        rows.append(gammas / total if total > 0 else base / base.sum())
    return np.array(rows).reshape(count, len(sizes_))


def measure(
    mixtures: np.ndarray,
    sources: Sequence[str],
    proxy: Callable[[dict[str, float]], float],
    progress: Progress = quiet,
) -> np.ndarray:
    """float64 [runs]: the loss that `proxy` reaches with each mixture. Raises RequestError for no number."""
    losses = []
    for number, row in enumerate(mixtures):
        progress(number, len(mixtures), "proxies")
        loss = float(proxy(dict(zip(sources, row.tolist(), strict=True))))
        if not np.isfinite(loss):
            raise RequestError(f"the proxy of mixture {number} has loss {loss}; leave it out")
        losses.append(loss)
    progress(len(mixtures), len(mixtures), "proxies")
    return np.array(losses)


def propose(
    mixtures: np.ndarray, losses: np.ndarray, sources: Sequence[str], seed: int = 0
) -> Proposal:
    """The mixture of the lowest predicted loss, from measured ones. Raises RequestError for too few."""
    w, y = np.asarray(mixtures, float), np.asarray(losses, float)
    if w.shape != (len(y), len(sources)) or not np.allclose(w.sum(1), 1, atol=1e-6):
        raise RequestError("mixtures must have a row for each loss and weights that sum to 1")
    trust = _trust(y)
    errors = {name: leave_one_out(form(w), y, trust) for name, form in FORMS.items()}
    form = min(errors, key=lambda name: errors[name])
    if not np.isfinite(errors[form]):
        raise RequestError(
            f"{len(y)} mixtures are too few for {len(sources)} sources; measure more"
        )
    features = FORMS[form]
    design = features(w)
    solve, leverage = _solver(design, trust)
    coefficients = solve @ y
    # A run's error is as much larger as it counts less; those of all are comparable after this.
    left_out = (y - design @ coefficients) / (1 - leverage) * np.sqrt(trust)
    generator = np.random.default_rng([seed, len(y)])
    near = np.concatenate([w, generator.dirichlet(np.ones(len(sources)), _CANDIDATES)])
    best = _lowest(features, coefficients, near, generator)
    found, predicted = [], []
    for _ in range(_BOOTSTRAPS):
        noise = left_out[generator.integers(0, len(y), len(y))] / np.sqrt(trust)
        again = solve @ (design @ coefficients + noise)
        found.append(_lowest(features, again, near, generator))
        predicted.append(float((features(best[None]) @ again)[0]))
    low, high = np.percentile(found, _INTERVAL, axis=0)
    loss_low, loss_high = np.percentile(predicted, _INTERVAL)

    def named(values: np.ndarray) -> dict[str, float]:
        return dict(zip(sources, values.tolist(), strict=True))

    return Proposal(
        weights=named(best),
        low=named(np.minimum(low, best)),
        high=named(np.maximum(high, best)),
        form=form,
        errors=errors,
        spread=_mean_square(y - np.average(y, weights=trust), trust),
        loss=float((features(best[None]) @ coefficients)[0]),
        loss_low=float(loss_low),
        loss_high=float(loss_high),
        best_seen=float(y.min()),
    )


def leave_one_out(design: np.ndarray, y: np.ndarray, trust: np.ndarray) -> float:
    """Root mean square error of predicting each value from all others, without fitting again: the residual over
    one minus its leverage (Allen 1974). trust: how much each counts, in the fit and in the mean. Infinite where a
    value is fitted by itself alone."""
    if len(y) <= design.shape[1]:
        return float("inf")
    solve, leverage = _solver(design, trust)
    if leverage.max() > 1 - 1e-6:
        return float("inf")
    return _mean_square((y - design @ (solve @ y)) / (1 - leverage), trust)


def _mean_square(errors: np.ndarray, trust: np.ndarray) -> float:
    return float(np.sqrt(np.average(errors**2, weights=trust)))


def _trust(y: np.ndarray) -> np.ndarray:
    """1 for the lowest loss, 1/2 for the median, and falling with the square of the distance from the lowest."""
    above = y - y.min()
    return 1 / (1 + (above / max(np.median(above), 1e-12)) ** 2)


def _solver(design: np.ndarray, trust: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The matrix that turns values into coefficients, and the leverage of each value."""
    weighted = design.T * trust
    gram = weighted @ design
    ridge = _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    solve = np.linalg.solve(gram + ridge, weighted)
    return solve, np.einsum("ij,ji->i", design, solve)


def _lowest(
    features: Callable[[np.ndarray], np.ndarray],
    coefficients: np.ndarray,
    near: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """The weights of the lowest prediction: the best of many, then of others ever closer to the best so far."""
    best = near[(features(near) @ coefficients).argmin()]
    step = 0.5
    for _ in range(_ZOOMS):
        around = generator.dirichlet(np.full(len(best), 0.5), 256)
        tried = np.concatenate([best[None], best + step * (around - best)])
        best = tried[(features(tried) @ coefficients).argmin()]
        step *= 0.6
    return best
