"""Blocks to numbers: one function a type, from [n] structured blocks to float32 [n, block_size].

Formulas and element order are those of ggml (`ggml-quants.c`, the dequantize_row functions). Products are
taken in the same order, so every result is the same float32, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gristmill.formats.gguf.types import GGMLType

# FP4 (E2M1) values doubled, so that they are whole numbers; the exponent is one lower in exchange.
_FP4_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


def _column(field: np.ndarray) -> np.ndarray:
    """float16 [n] -> float32 [n, 1]."""
    return field.astype(np.float32)[:, None]


def _halves(qs: np.ndarray) -> np.ndarray:
    """Nibbles uint8 [n, k] -> float32 [n, 2k]: all low nibbles, then all high ones."""
    k = qs.shape[1]
    out = np.empty((len(qs), 2 * k), np.float32)
    out[:, :k] = qs & 15
    out[:, k:] = qs >> 4
    return out


def _bit_planes(qh: np.ndarray, planes: int, bits: int) -> np.ndarray:
    """uint8 [n, k] -> uint8 [n, planes, k]: plane j holds `bits` bits from bit `bits`·j of each byte."""
    shifts = np.arange(planes, dtype=np.uint8) * np.uint8(bits)
    return (qh[:, None, :] >> shifts[:, None]) & np.uint8((1 << bits) - 1)


def _fifth_bit(qh: np.ndarray) -> np.ndarray:
    """uint8 [n, 4] -> 0 or 16, uint8 [n, 32]: element e owns bit e of the little-endian word."""
    return np.unpackbits(qh, axis=1, bitorder="little") << np.uint8(4)


def _f32(b: np.ndarray) -> np.ndarray:
    return b["x"][:, None].astype(np.float32)


def _bf16(b: np.ndarray) -> np.ndarray:
    return (b["x"].astype(np.uint32) << np.uint32(16)).view(np.float32)[:, None]


def _q4_0(b: np.ndarray) -> np.ndarray:
    return _column(b["d"]) * (_halves(b["qs"]) - np.float32(8))


def _q4_1(b: np.ndarray) -> np.ndarray:
    return _column(b["d"]) * _halves(b["qs"]) + _column(b["m"])


def _q5_0(b: np.ndarray) -> np.ndarray:
    return _column(b["d"]) * (_halves(b["qs"]) + _fifth_bit(b["qh"]) - np.float32(16))


def _q5_1(b: np.ndarray) -> np.ndarray:
    return _column(b["d"]) * (_halves(b["qs"]) + _fifth_bit(b["qh"])) + _column(b["m"])


def _q8_0(b: np.ndarray) -> np.ndarray:
    return _column(b["d"]) * b["qs"]


def _q2_k(b: np.ndarray) -> np.ndarray:
    """16 sub-blocks of 16, each with a 4-bit scale (low nibble) and a 4-bit minimum."""
    n = len(b)
    scale = _column(b["d"]) * (b["scales"] & 15)
    minimum = _column(b["dmin"]) * (b["scales"] >> 4)
    q = _bit_planes(b["qs"].reshape(2 * n, 32), 4, 2).reshape(n, 16, 16)
    return (scale[:, :, None] * q - minimum[:, :, None]).reshape(n, 256)


def _q3_k(b: np.ndarray) -> np.ndarray:
    """16 sub-blocks of 16; the third bit is inverted: unset means minus four."""
    n = len(b)
    s = b["scales"]
    low = np.concatenate([s[:, :8] & 15, s[:, :8] >> 4], axis=1)
    high = _bit_planes(s[:, 8:], 4, 2).reshape(n, 16)
    scale = _column(b["d"]) * ((low | high << np.uint8(4)).astype(np.float32) - np.float32(32))
    q = _bit_planes(b["qs"].reshape(2 * n, 32), 4, 2).reshape(n, 16, 16).astype(np.float32)
    q += (_bit_planes(b["hmask"], 8, 1) << np.uint8(2)).reshape(n, 16, 16)
    q -= np.float32(4)
    return (scale[:, :, None] * q).reshape(n, 256)


def scales_and_minima(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eight 6-bit scales and minima of Q4_K and Q5_K: uint8 [n, 12] -> two uint8 [n, 8].

    Bytes 0–3 and 4–7 hold the first four whole; their top two bits belong to the last four, whose low
    nibbles share bytes 8–11.
    """
    first_s, first_m, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first_s & 63, (last & 15) | (first_s >> 6) << 4], axis=1)
    minima = np.concatenate([first_m & 63, (last >> 4) | (first_m >> 6) << 4], axis=1)
    return scales, minima


def _with_minima(b: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The shared formula of Q4_K and Q5_K; q is float32 [n, 8, 32]."""
    scales, minima = scales_and_minima(b["scales"])
    q *= (_column(b["d"]) * scales)[:, :, None]
    q -= (_column(b["dmin"]) * minima)[:, :, None]
    return q.reshape(len(b), 256)


def _q4_k(b: np.ndarray) -> np.ndarray:
    return _with_minima(b, _halves(b["qs"].reshape(-1, 32)).reshape(-1, 8, 32))


def _q5_k(b: np.ndarray) -> np.ndarray:
    q = _halves(b["qs"].reshape(-1, 32)).reshape(-1, 8, 32)
    q += _bit_planes(b["qh"], 8, 1) << np.uint8(4)
    return _with_minima(b, q)


def _q6_k(b: np.ndarray) -> np.ndarray:
    """16 sub-blocks of 16 with signed 8-bit scales; low four bits in ql, upper two in qh."""
    n = len(b)
    q = _halves(b["ql"].reshape(-1, 64)).reshape(n, 2, 4, 32)
    q += _bit_planes(b["qh"].reshape(-1, 32), 4, 2).reshape(n, 2, 4, 32) << np.uint8(4)
    q -= np.float32(32)
    scale = _column(b["d"]) * b["scales"]
    return (scale[:, :, None] * q.reshape(n, 16, 16)).reshape(n, 256)


def _mxfp4(b: np.ndarray) -> np.ndarray:
    """2^(e − 128) · doubled FP4; for e < 2 that power is a subnormal float32, made from its bits."""
    e = b["e"].astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << np.minimum(e, 1), (e - np.uint32(1)) << 23)
    codes = np.concatenate([b["qs"] & 15, b["qs"] >> 4], axis=1)
    return bits.astype(np.uint32).view(np.float32)[:, None] * _FP4_DOUBLED[codes]


UNPACK: dict[GGMLType, Callable[[np.ndarray], np.ndarray]] = {
    GGMLType.F32: _f32,
    GGMLType.F16: _f32,
    GGMLType.BF16: _bf16,
    GGMLType.Q4_0: _q4_0,
    GGMLType.Q4_1: _q4_1,
    GGMLType.Q5_0: _q5_0,
    GGMLType.Q5_1: _q5_1,
    GGMLType.Q8_0: _q8_0,
    GGMLType.Q2_K: _q2_k,
    GGMLType.Q3_K: _q3_k,
    GGMLType.Q4_K: _q4_k,
    GGMLType.Q5_K: _q5_k,
    GGMLType.Q6_K: _q6_k,
    GGMLType.MXFP4: _mxfp4,
}
