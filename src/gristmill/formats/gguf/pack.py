"""Numbers to blocks: one function a type, from float32 [n, block_size] to [n] structured blocks.

Here are the types whose rounding is a closed form; the searches are in `search.py`, their packing here. With weights
[n, block_size] (`weigh`) all of WEIGHTED are searched, so that columns that matter more are rounded more finely.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gristmill.formats.gguf.search import (
    search_positive,
    search_scale,
    search_scale_and_minimum,
    sum_rows,
)
from gristmill.formats.gguf.types import GGMLType
from gristmill.formats.gguf.unpack import scales_and_minima

# First and further grids of a search under weights, and their number: finer than without.
_WEIGHTED_GRIDS = (-0.9, 0.05, 36)


def _blocks(type: GGMLType, **fields: np.ndarray) -> np.ndarray:
    first = next(iter(fields.values()))
    out = np.empty(len(first), type.layout)
    for name, values in fields.items():
        out[name] = values
    return out


def _nibbles(q: np.ndarray) -> np.ndarray:
    """uint8 [..., 2k] below 16 -> [..., k]: the first half in the low nibbles."""
    k = q.shape[-1] // 2
    return q[..., :k] | q[..., k:] << np.uint8(4)


def _join_planes(planes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [n, planes, k] -> [n, k]: plane j at bit `bits`·j. The inverse of unpack's `_bit_planes`."""
    shifts = np.arange(planes.shape[1], dtype=np.uint8) * np.uint8(bits)
    return np.bitwise_or.reduce(planes << shifts[:, None], axis=1)


def _inverse(d: np.ndarray) -> np.ndarray:
    """1/d, and 0 where d is 0 or so small that its inverse is not a float32."""
    inverse = np.divide(np.float32(1), d)
    return np.where(np.isinf(inverse), np.float32(0), inverse)


def _f32(x: np.ndarray) -> np.ndarray:
    return _blocks(GGMLType.F32, x=x[:, 0])


def _f16(x: np.ndarray) -> np.ndarray:
    return _blocks(GGMLType.F16, x=x[:, 0])


def _bf16(x: np.ndarray) -> np.ndarray:
    """The upper half of the float32, rounded to nearest even; a NaN stays one, and becomes quiet."""
    bits = x[:, 0].view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(
        16
    )
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return _blocks(GGMLType.BF16, x=np.where(np.isnan(x[:, 0]), quiet, rounded))


def _signed(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """d float32 [n] and codes uint8 [n, 32]: the extreme element, sign included, becomes code 0.

    So one side of zero reaches a step further than the other. The inverse is of d before it becomes a
    float16, as in ggml.
    """
    half = 1 << (bits - 1)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d = extreme / np.float32(-half)
    q = x * _inverse(d) + np.float32(half + 0.5)
    return d[:, 0], np.minimum(q, np.float32(2 * half - 1)).astype(np.uint8)


def _unsigned(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """d and minimum float32 [n], codes uint8 [n, 32] from 0 at the minimum to the top at the maximum."""
    top = np.float32((1 << bits) - 1)
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / top
    q = (x - low) * _inverse(d) + np.float32(0.5)
    return d[:, 0], low[:, 0], np.minimum(q, top).astype(np.uint8)


def _searched_signed(x: np.ndarray, bits: int, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_signed`, the scale fitted under weights."""
    found = search_scale(x, 1 << (bits - 1), w)
    return found.scale, found.codes(np.ones(len(x), bool)).astype(np.uint8)


def _searched_unsigned(
    x: np.ndarray, bits: int, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_unsigned`, scale and minimum fitted under weights."""
    found = search_scale_and_minimum(x, (1 << bits) - 1, *_WEIGHTED_GRIDS, w)
    return found.scale, -found.minimum, found.codes(np.ones(len(x), bool)).astype(np.uint8)


def _q4_0(x: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
    d, q = _signed(x, 4) if w is None else _searched_signed(x, 4, w)
    return _blocks(GGMLType.Q4_0, d=d, qs=_nibbles(q))


def _q4_1(x: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
    d, m, q = _unsigned(x, 4) if w is None else _searched_unsigned(x, 4, w)
    return _blocks(GGMLType.Q4_1, d=d, m=m, qs=_nibbles(q))


def _fifth_bits(q: np.ndarray) -> np.ndarray:
    return np.packbits(q >> np.uint8(4), axis=1, bitorder="little")


def _q5_0(x: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
    d, q = _signed(x, 5) if w is None else _searched_signed(x, 5, w)
    return _blocks(GGMLType.Q5_0, d=d, qh=_fifth_bits(q), qs=_nibbles(q & np.uint8(15)))


def _q5_1(x: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
    d, m, q = _unsigned(x, 5) if w is None else _searched_unsigned(x, 5, w)
    return _blocks(GGMLType.Q5_1, d=d, m=m, qh=_fifth_bits(q), qs=_nibbles(q & np.uint8(15)))


def _q8_0(x: np.ndarray) -> np.ndarray:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    whole = np.trunc(scaled)
    # Half away from zero. Adding 0.5 first would round 0.49999997 up: the remainder is exact instead.
    q = whole + np.trunc((scaled - whole) * np.float32(2))
    return _blocks(GGMLType.Q8_0, d=d[:, 0], qs=q.astype(np.int8))


def _with_minima(
    type: GGMLType, x: np.ndarray, top: int, first: float, steps: int, w: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of Q4_K or Q5_K with d, dmin and scales filled in, and the codes uint8 [n, 8, 32] still to pack.

    Two levels: the search gives each sub-block of 32 a scale and a minimum; these are rounded to six bits
    of a float16 each; then every element is rounded once more against what will be read back.
    """
    small = x.reshape(-1, 32)
    if w is None:
        found = search_scale_and_minimum(small, top, first, 0.1, steps, None)
    else:
        found = search_scale_and_minimum(small, top, *_WEIGHTED_GRIDS, w.reshape(-1, 32))
    scale, minimum = found.scale.reshape(-1, 8), found.minimum.reshape(-1, 8)
    if w is None:
        (d, ls), (dmin, lm) = _six_bits(scale), _six_bits(minimum)
    else:
        sums = sum_rows(np.ascontiguousarray(w.reshape(-1, 32).T)).reshape(-1, 8)
        (d, ls), (dmin, lm) = search_positive(scale, 63, sums), search_positive(minimum, 63, sums)
    packed = np.empty((len(x), 12), np.uint8)
    packed[:, :4] = ls[:, :4] | (ls[:, 4:] >> 4) << 6
    packed[:, 4:8] = lm[:, :4] | (lm[:, 4:] >> 4) << 6
    packed[:, 8:] = (ls[:, 4:] & 15) | (lm[:, 4:] & 15) << 4
    out = _blocks(type, d=d, dmin=dmin, scales=packed)

    ls, lm = scales_and_minima(packed)  # those that wrapped are not what they were
    d = (out["d"].astype(np.float32)[:, None] * ls)[:, :, None]
    dm = (out["dmin"].astype(np.float32)[:, None] * lm)[:, :, None]
    codes = np.rint((x.reshape(-1, 8, 32) + dm) / np.where(d == 0, np.float32(1), d))
    codes = codes.clip(0, top)
    flat = (d == 0).reshape(-1)
    if flat.any():
        # Nothing to round against: ggml leaves the search's codes, and they decode to −dm like any others.
        codes.reshape(-1, 32)[flat] = found.codes(flat)
    return out, codes.astype(np.uint8)


def _six_bits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """values [n, 8] ≈ d [n] · codes uint8 [n, 8] up to 63, which the largest gets."""
    largest = np.maximum(values.max(axis=1), np.float32(0))
    ratio = np.float32(63) / np.where(largest > 0, largest, np.float32(np.inf))
    # A fit may come out with a negative scale; ggml's cast to a byte wraps it above 63, and so do we.
    codes = np.rint(ratio[:, None] * values).astype(np.int32).astype(np.uint8)
    return largest / np.float32(63), np.minimum(codes, 63)


def _q4_k(x: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
    out, codes = _with_minima(GGMLType.Q4_K, x, 15, -1.0, 20, w)
    out["qs"] = _nibbles(codes.reshape(-1, 4, 64)).reshape(-1, 128)
    return out


def _q5_k(x: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
    out, codes = _with_minima(GGMLType.Q5_K, x, 31, -0.5, 15, w)
    out["qs"] = _nibbles((codes & np.uint8(15)).reshape(-1, 4, 64)).reshape(-1, 128)
    out["qh"] = _join_planes(codes >> np.uint8(4), 1)
    return out


def _q6_k(x: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
    n = len(x)
    found = search_scale(x.reshape(-1, 16), 32, None if w is None else w.reshape(-1, 16))
    scale = found.scale.reshape(n, 16)
    largest = np.take_along_axis(scale, np.abs(scale).argmax(axis=1, keepdims=True), axis=1)
    # Below ggml's threshold the whole block is zero bytes.
    alive = np.abs(largest) >= np.float32(1e-15)
    ratio = np.float32(-128) / np.where(alive, largest, np.float32(-128))
    scales = np.minimum(np.rint(ratio * scale), np.float32(127)).astype(np.int8)
    out = _blocks(GGMLType.Q6_K, d=(np.float32(1) / ratio)[:, 0], scales=scales)

    d = (out["d"].astype(np.float32)[:, None] * out["scales"])[:, :, None]
    q = np.rint(x.reshape(n, 16, 16) / np.where(d == 0, np.float32(1), d)).clip(-32, 31) + 32
    flat = (d == 0).reshape(-1)
    if flat.any():
        q.reshape(-1, 16)[flat] = found.codes(flat)
    q = q.astype(np.uint8).reshape(n, 2, 4, 32)
    low = q & np.uint8(15)
    out["ql"] = (low[:, :, :2] | low[:, :, 2:] << np.uint8(4)).reshape(n, 128)
    out["qh"] = _join_planes((q >> np.uint8(4)).reshape(-1, 4, 32), 2).reshape(n, 64)
    out[~alive[:, 0]] = np.zeros((), out.dtype)
    return out


def weigh(
    type: GGMLType, x: np.ndarray, importance: np.ndarray, row_square: np.ndarray
) -> np.ndarray:
    """The weights of x [n, block_size] in its search: importance [n, block_size] of the columns times, but for Q6_K,
    √(σ² + x²), σ² the mean square of the row, row_square [n], or, in the other K-types, twice that of the block."""
    if type == GGMLType.Q6_K:
        return importance
    square = row_square
    if type.block_size == 256:
        square = np.float32(2) * sum_rows(np.ascontiguousarray((x * x).T)) / np.float32(256)
    return importance * np.sqrt(square[:, None] + x * x)


WEIGHTED = frozenset(
    (
        *(GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_0, GGMLType.Q5_1),
        *(GGMLType.Q4_K, GGMLType.Q5_K, GGMLType.Q6_K),
    )
)
PACK: dict[GGMLType, Callable[..., np.ndarray]] = {
    GGMLType.F32: _f32,
    GGMLType.F16: _f16,
    GGMLType.BF16: _bf16,
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
}
