"""Numbers to blocks: one function a type, from float32 [n, block_size] to [n] structured blocks.

Here are the types whose rounding is a closed form; the K-types' search is in `search.py`, their packing here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gristmill.formats.gguf.search import search_scale, search_scale_and_minimum
from gristmill.formats.gguf.types import GGMLType


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


def _q4_0(x: np.ndarray) -> np.ndarray:
    d, q = _signed(x, 4)
    return _blocks(GGMLType.Q4_0, d=d, qs=_nibbles(q))


def _q4_1(x: np.ndarray) -> np.ndarray:
    d, m, q = _unsigned(x, 4)
    return _blocks(GGMLType.Q4_1, d=d, m=m, qs=_nibbles(q))


def _fifth_bits(q: np.ndarray) -> np.ndarray:
    return np.packbits(q >> np.uint8(4), axis=1, bitorder="little")


def _q5_0(x: np.ndarray) -> np.ndarray:
    d, q = _signed(x, 5)
    return _blocks(GGMLType.Q5_0, d=d, qh=_fifth_bits(q), qs=_nibbles(q & np.uint8(15)))


def _q5_1(x: np.ndarray) -> np.ndarray:
    d, m, q = _unsigned(x, 5)
    return _blocks(GGMLType.Q5_1, d=d, m=m, qh=_fifth_bits(q), qs=_nibbles(q & np.uint8(15)))


def _q8_0(x: np.ndarray) -> np.ndarray:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    whole = np.trunc(scaled)
    # Half away from zero. Adding 0.5 first would round 0.49999997 up: the remainder is exact instead.
    q = whole + np.trunc((scaled - whole) * np.float32(2))
    return _blocks(GGMLType.Q8_0, d=d[:, 0], qs=q.astype(np.int8))


def _with_minima(
    type: GGMLType, x: np.ndarray, top: int, first: float, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of Q4_K or Q5_K with d, dmin and scales filled in, and the codes uint8 [n, 8, 32] still to pack.

    Two levels: the search gives each sub-block of 32 a scale and a minimum; these are rounded to six bits
    of a float16 each; then every element is rounded once more against what will be read back.
    """
    found = search_scale_and_minimum(x.reshape(-1, 32), top, first, steps)
    scale, minimum = found.scale.reshape(-1, 8), found.minimum.reshape(-1, 8)
    top_scale = np.maximum(scale.max(axis=1), np.float32(0))
    top_minimum = np.maximum(minimum.max(axis=1), np.float32(0))

    def six_bits(values: np.ndarray, largest: np.ndarray) -> np.ndarray:
        ratio = np.float32(63) / np.where(largest > 0, largest, np.float32(np.inf))
        # A fit may come out with a negative scale; ggml's cast to a byte wraps it above 63, and so do we.
        return np.minimum(np.rint(ratio[:, None] * values).astype(np.int32).astype(np.uint8), 63)

    ls, lm = six_bits(scale, top_scale), six_bits(minimum, top_minimum)
    packed = np.empty((len(x), 12), np.uint8)
    packed[:, :4] = ls[:, :4] | (ls[:, 4:] >> 4) << 6
    packed[:, 4:8] = lm[:, :4] | (lm[:, 4:] >> 4) << 6
    packed[:, 8:] = (ls[:, 4:] & 15) | (lm[:, 4:] & 15) << 4
    out = _blocks(
        type, d=top_scale / np.float32(63), dmin=top_minimum / np.float32(63), scales=packed
    )

    d = (out["d"].astype(np.float32)[:, None] * ls)[:, :, None]
    dm = (out["dmin"].astype(np.float32)[:, None] * lm)[:, :, None]
    codes = np.rint((x.reshape(-1, 8, 32) + dm) / np.where(d == 0, np.float32(1), d))
    codes = codes.clip(0, top)
    flat = (d == 0).reshape(-1)
    if flat.any():
        # Nothing to round against: ggml leaves the search's codes, and they decode to −dm like any others.
        codes.reshape(-1, 32)[flat] = found.codes(flat)
    return out, codes.astype(np.uint8)


def _q4_k(x: np.ndarray) -> np.ndarray:
    out, codes = _with_minima(GGMLType.Q4_K, x, 15, -1.0, 20)
    out["qs"] = _nibbles(codes.reshape(-1, 4, 64)).reshape(-1, 128)
    return out


def _q5_k(x: np.ndarray) -> np.ndarray:
    out, codes = _with_minima(GGMLType.Q5_K, x, 31, -0.5, 15)
    out["qs"] = _nibbles((codes & np.uint8(15)).reshape(-1, 4, 64)).reshape(-1, 128)
    out["qh"] = _join_planes(codes >> np.uint8(4), 1)
    return out


def _q6_k(x: np.ndarray) -> np.ndarray:
    n = len(x)
    found = search_scale(x.reshape(-1, 16), 32)
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


PACK: dict[GGMLType, Callable[[np.ndarray], np.ndarray]] = {
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
