"""Many small minimizations at once: BFGS, with the weak Wolfe line search that stays sound on kinks.

The objectives here have few parameters and are nearly an absolute value, so what costs is the number of starts: a grid
of hundreds, or a thousand bootstrap samples. All of them take their steps together. With so few parameters the whole
inverse Hessian is kept, which L-BFGS with enough memory equals.

Shapes: S starts, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_DECREASE, _CURVATURE = 1e-4, 0.5
_HALVINGS = 40  # of one line search

Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def minimize(
    objective: Objective, start_SP: np.ndarray, steps: int = 300, tolerance: float = 1e-11
) -> tuple[np.ndarray, np.ndarray]:
    """(places [S, P], values [S]) of a minimum near each start.

    objective(x [s, P], which [s]) -> (values [s], gradients [s, P]) of the starts `which`. A start is done when a step
    lowers its value by less than `tolerance` of it twice in a row, or none can be found (Lewis & Overton 2013,
    "Nonsmooth optimization via quasi-Newton methods").
    """
    x = np.array(start_SP, dtype=np.float64)
    starts, size = x.shape
    active = np.arange(starts)
    value, gradient = objective(x, active)
    inverse = np.tile(np.eye(size), (starts, 1, 1))
    stalled = np.zeros(starts, dtype=int)
    fresh = np.ones(starts, dtype=bool)  # no curvature is known yet
    for _ in range(steps):
        active = np.flatnonzero((stalled < 2) & np.isfinite(value))
        if not len(active):
            break
        direction = -np.einsum("spq,sq->sp", inverse[active], gradient[active])
        slope = np.einsum("sp,sp->s", direction, gradient[active])
        uphill = slope >= 0
        direction[uphill] = -gradient[active[uphill]]
        slope[uphill] = -np.einsum("sp,sp->s", gradient[active[uphill]], gradient[active[uphill]])
        inverse[active[uphill]] = np.eye(size)
        first = fresh[active]  # a step of length one at most, while the scale is unknown
        length = np.linalg.norm(direction[first], axis=1) + 1e-300
        direction[first] /= length[:, None]
        slope[first] /= length
        moved, lower, new_gradient = _search(
            objective, x[active], value[active], slope, direction, active
        )
        step, change = moved - x[active], new_gradient - gradient[active]
        gain = value[active] - lower
        small = gain <= tolerance * np.abs(value[active])
        stalled[active] = np.where(small, stalled[active] + 1, 0)
        bent = np.einsum("sp,sp->s", step, change)
        usable = bent > 1e-300
        rows, s, y, rho = active[usable], step[usable], change[usable], 1 / bent[usable]
        scale = bent[usable] / np.einsum("sp,sp->s", y, y)
        new = fresh[rows]
        inverse[rows[new]] = np.eye(size) * scale[new, None, None]
        left = np.eye(size) - rho[:, None, None] * s[:, :, None] * y[:, None, :]
        inverse[rows] = left @ inverse[rows] @ left.transpose(0, 2, 1)
        inverse[rows] += rho[:, None, None] * s[:, :, None] * s[:, None, :]
        fresh[rows] = False
        x[active], value[active], gradient[active] = moved, lower, new_gradient
    return x, value


def _search(
    objective: Objective,
    x: np.ndarray,
    value: np.ndarray,
    slope: np.ndarray,
    direction: np.ndarray,
    which: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each start goes, its value and gradient there: bisection for sufficient decrease and weak curvature."""
    count = len(x)
    step, low, high = np.ones(count), np.zeros(count), np.full(count, np.inf)
    best, best_value = x.copy(), value.copy()
    _, best_gradient = objective(x, which)
    open_ = np.arange(count)
    for _ in range(_HALVINGS):
        tried = x[open_] + step[open_, None] * direction[open_]
        found, gradient = objective(tried, which[open_])
        enough = found <= value[open_] + _DECREASE * step[open_] * slope[open_]
        flat = np.einsum("sp,sp->s", gradient, direction[open_]) >= _CURVATURE * slope[open_]
        better = enough & (found < best_value[open_])
        rows = open_[better]
        best[rows], best_value[rows] = tried[better], found[better]
        best_gradient[rows] = gradient[better]
        high[open_[~enough]] = step[open_[~enough]]
        low[open_[enough]] = step[open_[enough]]
        open_ = open_[~(enough & flat)]
        if not len(open_):
            break
        bounded = np.isfinite(high[open_])
        step[open_] = np.where(bounded, (low[open_] + high[open_]) / 2, 2 * step[open_])
    return best, best_value, best_gradient
