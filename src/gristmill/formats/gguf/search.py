"""The search behind the K-types: the scale (and minimum) of each small group of weights.

Rounding to a grid that spans the group exactly is rarely best. ggml tries a few grids, solves the weighted
least squares for each (given the codes, the best scale and minimum have a closed form) and keeps the best:
`make_qkx2_quants` and `make_qx_quants` of `ggml-quants.c`, without an importance matrix.

Groups lie in columns here, [size, m]: a sum over a group adds one row after another, in the order of the C
loop, so the float32 results and hence the files are the same, byte for byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Found:
    """What a search chose for m groups: scale and minimum (positive: subtracted) [m], and how it rounded.

    The codes are recomputed when asked for: rounding against stored scales supersedes nearly all of them.
    """

    scale: np.ndarray
    minimum: np.ndarray
    _x: np.ndarray  # [size, m]
    _inverse: np.ndarray  # [m]: the grid whose codes won
    _shift: np.ndarray  # [m]
    _bounds: tuple[int, int]
    _zero: np.ndarray  # bool [m]: groups without a grid, whose codes are 0

    def codes(self, mask: np.ndarray) -> np.ndarray:
        """float32 [count, size], from 0 up, of the groups in `mask`."""
        low, high = self._bounds
        q = np.rint(self._inverse[mask] * (self._x[:, mask] - self._shift[mask])).clip(low, high)
        return np.where(self._zero[mask], np.float32(0), q - np.float32(low)).T


def _sum(rows: np.ndarray) -> np.ndarray:
    return np.add.reduce(rows, axis=0)


def search_scale_and_minimum(x: np.ndarray, top: int, first: float, steps: int) -> Found:
    """Codes 0..top for x float32 [m, size], value = scale · code − minimum.

    Grids tried: top + first + 0.1·t steps over the group's range, t = 0..steps. Large elements weigh more:
    rms of the group + |x|.
    """
    x = np.ascontiguousarray(x.T)
    size = np.float32(len(x))
    w = np.sqrt(_sum(x * x) / size) + np.abs(x)
    sum_w, sum_x = _sum(w), _sum(w * x)
    high = x.max(axis=0)
    low = np.minimum(x.min(axis=0), np.float32(0))
    n = np.float32(top)
    inverse = n / (high - low)
    zero = ~np.isfinite(inverse)  # all elements equal, or closer than a float32 can say
    inverse[zero] = 1
    scale = np.float32(1) / inverse
    shift = low
    t = np.empty_like(x)
    codes = np.empty_like(x)

    def round_to(inverse: np.ndarray, low: np.ndarray) -> None:
        np.subtract(x, low, out=codes)
        np.multiply(inverse, codes, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, 0, n, out=codes)

    def error(scale: np.ndarray, low: np.ndarray) -> np.ndarray:
        np.multiply(scale, codes, out=t)
        np.add(t, low, out=t)
        np.subtract(t, x, out=t)
        np.multiply(t, t, out=t)
        np.multiply(w, t, out=t)
        return _sum(t)

    round_to(inverse, low)
    best = error(scale, low)
    for step in range(steps + 1):
        # The grid starts at the minimum found so far, not at the group's own: so does ggml's.
        trial = (np.float32(first) + np.float32(0.1) * np.float32(step) + n) / (high - low)
        round_to(trial, low)
        np.multiply(w, codes, out=t)
        sum_l = _sum(t)
        sum_xl = _sum(t * x)
        np.multiply(t, codes, out=t)
        sum_l2 = _sum(t)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = new_low > 0  # the stored minimum cannot be positive: fit through zero
        new_scale = np.where(above, sum_xl / sum_l2, new_scale)
        new_low = np.where(above, np.float32(0), new_low)
        new_error = error(new_scale, new_low)
        better = (determinant > 0) & (new_error < best)
        inverse = np.where(better, trial, inverse)
        shift = np.where(better, low, shift)
        best = np.where(better, new_error, best)
        scale = np.where(better, new_scale, scale)
        low = np.where(better, new_low, low)
    scale[zero] = 0
    return Found(scale, -low, x, inverse, shift, (0, top), zero)


def search_scale(x: np.ndarray, half: int) -> Found:
    """Signed codes −half..half−1 for x float32 [m, size], value = scale · code; each weighs x².

    Grids tried: the extreme element at −(half + 0.1·t), t = −9..9, the plain one (t = 0) first.
    """
    x = np.ascontiguousarray(x.T)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    zero = np.abs(extreme) < np.float32(1e-15)  # ggml's threshold
    extreme = np.where(zero, np.float32(1), extreme)
    n = np.float32(half)
    w = x * x
    wx = w * x
    codes = np.empty_like(x)
    t = np.empty_like(x)
    inverse = scale = best = np.zeros_like(extreme)
    for step in [0, *(s for s in range(-9, 10) if s)]:
        trial = -(n + np.float32(0.1) * np.float32(step)) / extreme
        np.multiply(trial, x, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, -n, n - 1, out=codes)
        np.multiply(wx, codes, out=t)
        sum_xl = _sum(t)
        np.multiply(w, codes, out=t)
        np.multiply(t, codes, out=t)
        sum_l2 = _sum(t)
        improved = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        better = improved if step else np.ones_like(improved)
        new_scale = np.where(sum_l2 > 0, sum_xl / sum_l2, np.float32(0))
        inverse = np.where(better, trial, inverse)
        scale = np.where(better, new_scale, scale)
        best = np.where(better, new_scale * sum_xl, best)
    scale[zero] = 0
    return Found(
        scale, np.zeros_like(scale), x, inverse, np.zeros_like(scale), (-half, half - 1), zero
    )
