"""How the best size grows with compute, three ways (Hoffmann et al. 2022, section 3).

1 (envelope): the runs that nothing cheaper beats. 2 (IsoFLOP): a parabola in ln N through the runs of each budget, and
its bottom. 3: from the parametric law. They need not agree: 2 is biased where the valley is steeper on one side, 1 can
only choose among the sizes that were trained, and 3 is as good as its law.

Only final losses count: one read in the middle of a schedule is too high for its compute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from gristmill.errors import RequestError
from gristmill.scaling.fit import SAMPLES, Fit, fit_power, spread, weighted_line
from gristmill.scaling.laws import PowerLaw
from gristmill.scaling.runs import Runs

SAME_BUDGET = 0.10  # runs within this share of each other's compute are one profile
WIDE = 4.0  # a profile that reaches further than this from its bottom bends the parabola's
_LEAST_FRONT = 4


@dataclass(frozen=True)
class Profile:
    """The runs of one budget and the parabola through them: L = bottom + bend·(ln N - ln best)²."""

    flops: float
    params: np.ndarray
    loss: np.ndarray
    best: float = math.nan
    bottom: float = math.nan
    bend: float = math.nan
    problem: str = ""

    @property
    def reach(self) -> float:
        """How far its runs lie from the bottom, as a factor."""
        return float(max(self.params.max() / self.best, self.best / self.params.min()))


@dataclass(frozen=True)
class Growth:
    """N* = at·(C/flops)^exponent, with bootstrap samples of both. front: the (C, N*, L) that it goes through."""

    name: str
    exponent: float
    flops: float
    at: float
    sampled: list[tuple[float, float]] = field(default_factory=list)
    front: list[tuple[float, float, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def params(self, flops: float) -> float:
        return self.at * (flops / self.flops) ** self.exponent

    @property
    def interval(self) -> tuple[float, float]:
        return spread([exponent for exponent, _ in self.sampled])

    def params_interval(self, flops: float) -> tuple[float, float]:
        return spread([at * (flops / self.flops) ** e for e, at in self.sampled])


def envelope(runs: Runs, *, samples: int = SAMPLES, seed: int = 0) -> Growth:
    """Approach 1. Raises RequestError where fewer than four runs are on the front."""
    on_front = _front(runs)
    if len(on_front) < _LEAST_FRONT or np.ptp(np.log(runs.flops[on_front])) < 0.5:
        raise RequestError(
            f"{len(on_front)} runs are on the front of loss against compute; approach 1 takes {_LEAST_FRONT}"
        )

    def growth(indices: np.ndarray) -> tuple[float, float] | None:
        part = runs.only(indices)
        chosen = _front(part)
        if len(chosen) < 3 or np.ptp(np.log(part.flops[chosen])) < 0.5:
            return None
        return _line(part.flops[chosen], part.params[chosen], middle)

    middle = float(np.exp(np.log(runs.flops[on_front]).mean()))
    exponent, at = _line(runs.flops[on_front], runs.params[on_front], middle)
    generator = np.random.default_rng([seed, 0xF407])
    drawn = (growth(np.unique(generator.integers(0, len(runs), len(runs)))) for _ in range(samples))
    front = sorted(
        zip(*(c[on_front].tolist() for c in (runs.flops, runs.params, runs.loss)), strict=True)
    )
    return Growth("envelope", exponent, middle, at, [d for d in drawn if d], front)


def _front(runs: Runs) -> np.ndarray:
    """Indices of the best run of each budget, where no cheaper run is as good."""
    chosen, best = [], math.inf
    for group in _budgets(runs):
        at = group[np.argmin(runs.loss[group])]
        if runs.loss[at] < best:
            best = runs.loss[at]
            chosen.append(at)
    return np.array(chosen, dtype=int)


def _budgets(runs: Runs) -> list[np.ndarray]:
    """Indices of the runs of each budget, cheapest first."""
    order = np.argsort(runs.flops)
    groups: list[list[int]] = []
    for at in order:
        if groups and runs.flops[at] <= runs.flops[groups[-1][0]] * (1 + SAME_BUDGET):
            groups[-1].append(int(at))
        else:
            groups.append([int(at)])
    return [np.array(group) for group in groups]


def profiles(runs: Runs) -> list[Profile]:
    """A parabola for each budget with three sizes or more; `problem` says why one has no bottom."""
    found = []
    for group in _budgets(runs):
        if len(set(runs.params[group])) >= 3:
            flops = float(np.exp(np.log(runs.flops[group]).mean()))
            found.append(_parabola(flops, runs.params[group], runs.loss[group]))
    return found


def _parabola(flops: float, params: np.ndarray, loss: np.ndarray) -> Profile:
    logs = np.log(params)
    middle = logs.mean()
    bend, slope, offset = np.polyfit(logs - middle, loss, 2)
    if bend <= 0:
        return Profile(flops, params, loss, problem="its losses do not bend upwards")
    vertex = -slope / (2 * bend)
    best = math.exp(vertex + middle)
    if not params.min() <= best <= params.max():
        return Profile(flops, params, loss, problem="its bottom lies outside the sizes trained")
    return Profile(flops, params, loss, best, float(offset - slope**2 / (4 * bend)), float(bend))


def isoflop(runs: Runs, *, samples: int = SAMPLES, seed: int = 0) -> Growth:
    """Approach 2. Raises RequestError where fewer than two budgets have a bottom.

    The bootstrap draws each profile's residuals from its parabola again: drawing runs would leave parabolas without
    three points.
    """
    tried = profiles(runs)
    sound = [profile for profile in tried if not profile.problem]
    warnings = [f"{p.flops:.2e} FLOPs: {p.problem}" for p in tried if p.problem]
    wide = [profile.reach for profile in sound if profile.reach > WIDE * 1.05]
    if wide:
        warnings.append(
            f"{len(wide)} of {len(sound)} profiles reach up to {max(wide):.1f} times from their bottom; beyond "
            f"{WIDE:g} a parabola's bottom moves (5% too high at 16 in Hoffmann's law)"
        )
    if len(sound) < 2:
        why = f": {warnings[0]}" if warnings else ""
        raise RequestError(
            f"{len(sound)} budgets have a profile with a bottom; approach 2 takes two, of three sizes or more{why}"
        )
    budgets = np.array([profile.flops for profile in sound])
    middle = float(np.exp(np.log(budgets).mean()))
    exponent, at = _line(budgets, np.array([profile.best for profile in sound]), middle)
    generator = np.random.default_rng([seed, 0x150F])
    sampled = []
    for _ in range(samples):
        again = [_shaken(profile, generator) for profile in sound]
        kept = [profile for profile in again if not profile.problem]
        if len(kept) >= 2:
            flops = np.array([profile.flops for profile in kept])
            sampled.append(_line(flops, np.array([profile.best for profile in kept]), middle))
    front = [(p.flops, p.best, p.bottom) for p in sound]
    return Growth("isoflop", exponent, middle, at, sampled, front, warnings)


def _shaken(profile: Profile, generator: np.random.Generator) -> Profile:
    smooth = profile.bottom + profile.bend * np.log(profile.params / profile.best) ** 2
    count = len(profile.loss)
    # Three constants took their share of the residuals.
    residuals = (profile.loss - smooth) * math.sqrt(count / max(1, count - 3))
    signs = generator.choice((-1.0, 1.0), count)
    drawn = generator.choice(residuals, count) * signs
    return _parabola(profile.flops, profile.params, smooth + drawn)


def parametric(fit: Fit) -> Growth:
    """Approach 3, of a Chinchilla law."""
    middle = float(np.exp(np.log(fit.runs.flops).mean()))
    sampled = [(law.exponent, law.optimum(middle).params) for law in fit.sampled]
    return Growth("parametric", fit.law.exponent, middle, fit.law.optimum(middle).params, sampled)


def _line(flops: np.ndarray, params: np.ndarray, middle: float) -> tuple[float, float]:
    """(exponent, N at `middle`)"""
    slope, offset = weighted_line(np.log(flops / middle), np.log(params), np.ones(len(flops)))
    return slope, math.exp(offset)


def compute_law(growth: Growth) -> PowerLaw:
    """Kaplan's L(C_min) along a front of approach 1 or 2: a power law without a floor."""
    return fit_power([f for f, _, _ in growth.front], [y for _, _, y in growth.front], samples=0)[0]
