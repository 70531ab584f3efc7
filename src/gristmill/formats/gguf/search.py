"""The search behind the K-types: the scale (and minimum) of each small group of weights.

Rounding to a grid that spans the group exactly is rarely best. ggml tries a few grids, solves the weighted
least squares for each (given the codes, the best scale and minimum have a closed form) and keeps the best:
`make_qkx2_quants`, `make_qkx3_quants` (the same with weights from outside), `make_qx_quants` and `make_qp_quants`
of `ggml-quants.c`.

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


def sum_rows(rows: np.ndarray) -> np.ndarray:
    """[size, m] -> [m], one row after another as the C loop adds; numpy would add a single column in pairs."""
    if rows.shape[1] == 1:
        return np.add.accumulate(rows, axis=0)[-1]
    return np.add.reduce(rows, axis=0)


def _by_size(x: np.ndarray) -> np.ndarray:
    return np.sqrt(sum_rows(x * x) / np.float32(len(x))) + np.abs(x)


def search_scale_and_minimum(
    x: np.ndarray, top: int, first: float, delta: float, steps: int, weight: np.ndarray | None
) -> Found:
    """Codes 0..top for x float32 [m, size], value = scale · code − minimum.

    Grids tried: top + first + delta·t steps over the group's range, t = 0..steps. Without a weight [m, size],
    large elements weigh more: rms of the group + |x|.
    """
    x = np.ascontiguousarray(x.T)
    w = _by_size(x) if weight is None else np.ascontiguousarray(weight.T)
    sum_w, sum_x = sum_rows(w), sum_rows(w * x)
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
        return sum_rows(t)

    round_to(inverse, low)
    best = error(scale, low)
    for step in range(steps + 1):
        # The grid starts at the minimum found so far, not at the group's own: so does ggml's.
        trial = (np.float32(first) + np.float32(delta) * np.float32(step) + n) / (high - low)
        round_to(trial, low)
        np.multiply(w, codes, out=t)
        sum_l = sum_rows(t)
        sum_xl = sum_rows(t * x)
        np.multiply(t, codes, out=t)
        sum_l2 = sum_rows(t)
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


def search_scale(x: np.ndarray, half: int, weight: np.ndarray | None = None) -> Found:
    """Signed codes −half..half−1 for x float32 [m, size], value = scale · code; weight [m, size], by default x².

    Grids tried: the extreme element at −(half + 0.1·t), t = −9..9, the plain one (t = 0) first.
    """
    x = np.ascontiguousarray(x.T)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    zero = np.abs(extreme) < np.float32(1e-15)  # ggml's threshold
    extreme = np.where(zero, np.float32(1), extreme)
    n = np.float32(half)
    w = x * x if weight is None else np.ascontiguousarray(weight.T)
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
        sum_xl = sum_rows(t)
        np.multiply(w, codes, out=t)
        np.multiply(t, codes, out=t)
        sum_l2 = sum_rows(t)
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


def search_positive(x: np.ndarray, top: int, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The second level under weights: x ≈ scale · code for x float32 [m, size]; scale [m], codes uint8 [m, size].

    A few grids, then each code in turn is moved where that helps the fit of all.
    """
    x, w = np.ascontiguousarray(x.T), np.ascontiguousarray(weight.T)
    largest = np.maximum(x.max(axis=0), np.float32(0))
    zero = largest < np.float32(1e-15)  # ggml's threshold
    largest = np.where(zero, np.float32(1), largest)
    n = np.float32(top)

    def rounded(inverse: np.ndarray) -> np.ndarray:
        return np.minimum(np.rint(inverse * x), n)

    def error(inverse: np.ndarray, codes: np.ndarray) -> np.ndarray:
        off = x - np.float32(1) / inverse * codes
        return sum_rows(w * off * off)

    inverse = n / largest
    best = error(inverse, _as_bytes(rounded(inverse)))
    for step in (-4, -3, -2, -1, 1, 2, 3, 4):
        trial = (np.float32(0.1) * np.float32(step) + n) / largest
        found = error(trial, rounded(trial))
        better = found < best
        best = np.where(better, found, best)
        inverse = np.where(better, trial, inverse)
    codes = rounded(inverse)
    sum_xl, sum_l2 = sum_rows(w * x * codes), sum_rows(w * codes * codes)
    codes = _as_bytes(codes)
    for _ in range(5):
        moved = False
        for i in range(len(x)):
            others_xl = sum_xl - w[i] * x[i] * codes[i]
            others_l2 = sum_l2 - w[i] * codes[i] * codes[i]
            new = np.minimum(np.rint(x[i] * others_l2 / others_xl), n)
            new_xl = others_xl + w[i] * x[i] * new
            new_l2 = others_l2 + w[i] * new * new
            better = (others_xl > 0) & (others_l2 > 0) & (new != codes[i])
            better &= new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
            codes[i] = np.where(better, _as_bytes(np.where(better, new, 0)), codes[i])
            sum_xl = np.where(better, new_xl, sum_xl)
            sum_l2 = np.where(better, new_l2, sum_l2)
            moved = moved or bool(better.any())
        if not moved:
            break
    scale = np.where((sum_l2 > 0) & ~zero, sum_xl / sum_l2, np.float32(0))
    return scale, np.where(zero, np.float32(0), codes).astype(np.uint8).T


def _as_bytes(codes: np.ndarray) -> np.ndarray:
    """Codes of negative numbers wrap in ggml's bytes, and what it computes from them follows."""
    return codes.astype(np.int32).astype(np.uint8).astype(np.float32)
