"""From compute to a task's score in two steps: the loss of its gold answers, then accuracy from that loss.

Accuracy alone cannot be extrapolated while it is at chance; the loss of the right answer can, and accuracy follows it
along a curve that small models already show (Llama 3; OLMo ladder, arXiv 2412.04403; Gadre et al. 2024, 2403.08540).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gristmill.errors import RequestError
from gristmill.scaling.fit import SAMPLES, spread
from gristmill.scaling.minimize import minimize


@dataclass(frozen=True)
class TaskLoss:
    """Step one: loss of the gold answers over compute, floor + (scale/C)^exponent."""

    floor: float
    scale: float
    exponent: float

    def at(self, flops: float) -> float:
        return self.floor + (self.scale / flops) ** self.exponent


@dataclass(frozen=True)
class Link:
    """Step two: accuracy = chance + (top - chance)/(1 + exp(steepness·(loss - middle)))."""

    chance: float
    top: float
    steepness: float
    middle: float

    def at(self, loss: float) -> float:
        rise = 1 / (1 + math.exp(min(700.0, self.steepness * (loss - self.middle))))
        return self.chance + (self.top - self.chance) * rise


@dataclass(frozen=True)
class TwoStep:
    """Both steps; sampled: both of each bootstrap sample."""

    loss: TaskLoss
    link: Link
    sampled: list[tuple[TaskLoss, Link]]

    def accuracy(self, flops: float) -> float:
        return self.link.at(self.loss.at(flops))

    def interval(self, flops: float) -> tuple[float, float]:
        return spread([link.at(loss.at(flops)) for loss, link in self.sampled])


def fit_two_step(
    flops: Sequence[float] | np.ndarray,
    task_loss: Sequence[float] | np.ndarray,
    accuracy: Sequence[float] | np.ndarray,
    *,
    chance: float,
    top: float = 1.0,
    samples: int = SAMPLES,
    seed: int = 0,
) -> TwoStep:
    """chance: accuracy of guessing. top: of a perfect model (less where labels are wrong).

    Raises RequestError for fewer than five models: the curve has two unknowns, the loss three.
    """
    compute, loss, score = (np.asarray(c, dtype=np.float64) for c in (flops, task_loss, accuracy))
    if len(compute) < 5:
        raise RequestError(f"{len(compute)} models do not show how a task grows; it takes five")
    if not ((score >= 0) & (score <= 1)).all():
        raise RequestError("accuracy is a share from 0 to 1")
    generator = np.random.default_rng([seed, 0xD0D0])
    weights = np.ones((1 + samples, len(compute)))
    for row in range(1, 1 + samples):
        while True:
            drawn = generator.multinomial(len(compute), np.full(len(compute), 1 / len(compute)))
            if (drawn > 0).sum() >= min(4, len(compute)):
                break
        weights[row] = drawn
    losses = _task_losses(compute, loss, weights)
    links = _links(loss, score, weights, chance, top)
    return TwoStep(losses[0], links[0], list(zip(losses[1:], links[1:], strict=True)))


def _task_losses(compute: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> list[TaskLoss]:
    middle = np.log(compute).mean()
    x = np.log(compute) - middle

    def objective(at: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        floor, height, slope = (np.exp(np.clip(c, -50, 50))[:, None] for c in at.T)
        fall = height * np.exp(-np.clip(slope * x, -50, 50))
        rest = (floor + fall) / loss - 1
        pull = 2 * weights[which] * rest / loss
        gradient = (pull * floor, pull * fall, -pull * fall * slope * x)
        return (weights[which] * rest**2).sum(1), np.stack([g.sum(1) for g in gradient], 1)

    low = loss.min()
    starts = [
        (math.log(low * share), math.log(max(1e-3, loss.mean() - low * share)), math.log(slope))
        for share in (0.05, 0.5, 0.9)
        for slope in (0.03, 0.1, 0.3)
    ]
    found = _from_each(objective, np.array(starts), len(weights))
    laws = []
    for floor, height, slope in np.exp(np.clip(found, -50, 50)):
        scale = math.exp(min(700.0, middle + math.log(height) / slope))
        laws.append(TaskLoss(float(floor), scale, float(slope)))
    return laws


def _links(
    loss: np.ndarray, score: np.ndarray, weights: np.ndarray, chance: float, top: float
) -> list[Link]:
    def objective(at: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steepness, middle = np.exp(np.clip(at[:, :1], -20, 20)), at[:, 1:]
        rise = 1 / (1 + np.exp(np.clip(steepness * (loss - middle), -500, 500)))
        rest = chance + (top - chance) * rise - score
        pull = -2 * weights[which] * rest * (top - chance) * rise * (1 - rise)
        gradient = (pull * steepness * (loss - middle), -pull * steepness)
        return (weights[which] * rest**2).sum(1), np.stack([g.sum(1) for g in gradient], 1)

    starts = [
        (math.log(steep), middle)
        for steep in (1.0, 4.0, 16.0)
        for middle in np.quantile(loss, (0.1, 0.5, 0.9))
    ]
    found = _from_each(objective, np.array(starts), len(weights))
    return [
        Link(chance, top, math.exp(min(20.0, max(-20.0, steep))), float(middle))
        for steep, middle in found
    ]


def _from_each(objective, starts: np.ndarray, rows: int) -> np.ndarray:
    """The best place of row 0 of the weights from all starts, then of every row from there."""
    places, values = minimize(lambda x, which: objective(x, which * 0), starts)
    best = places[int(np.argmin(values))]
    places, _ = minimize(objective, np.tile(best, (rows, 1)))
    places[0] = best
    return places
