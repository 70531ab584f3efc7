"""Whole arrays to and from GGUF blocks, a cache-sized piece at a time."""

from __future__ import annotations

import numpy as np

from gristmill.errors import RequestError
from gristmill.formats.gguf.pack import PACK
from gristmill.formats.gguf.types import GGMLType
from gristmill.formats.gguf.unpack import UNPACK

# Elements worked on at once. The searches make some twenty passes over half a dozen arrays of this many
# float32: 2**15 keeps them in a core's second-level cache.
_CHUNK = 1 << 15

# Sums of squares of larger values leave float32; no block type can hold them anyway.
_LIMIT = np.float32(1e9)

WRITABLE = frozenset(PACK)

# The bits of a scale (or of an unblocked value), and those among them that are all set in NaN and infinity.
_EXPONENTS: dict[GGMLType, tuple[str, int]] = {
    **dict.fromkeys(GGMLType, ("<u2", 0x7C00)),
    GGMLType.F32: ("<u4", 0x7F800000),
    GGMLType.BF16: ("<u2", 0x7F80),
    GGMLType.MXFP4: ("u1", 0xFF),
}


def dequantize(raw: np.ndarray, type: GGMLType) -> np.ndarray:
    """uint8 [..., row bytes] -> float32 [..., row elements], writable and newly allocated.

    The values are ggml's, bit for bit. NaN or infinite scales in the blocks give what arithmetic gives.
    Raises RequestError when a row is not a whole number of blocks.
    """
    type = GGMLType(type)
    raw = np.asarray(raw)
    if raw.dtype != np.uint8 or raw.ndim == 0 or raw.shape[-1] % type.block_bytes:
        raise RequestError(
            f"{type.name} is read from uint8 rows of a multiple of {type.block_bytes} bytes, "
            f"not from {raw.dtype} {list(raw.shape)}"
        )
    shape = (*raw.shape[:-1], raw.shape[-1] // type.block_bytes * type.block_size)
    blocks = np.ascontiguousarray(raw).reshape(-1).view(type.layout)
    out = np.empty((len(blocks), type.block_size), np.float32)
    step = _CHUNK // type.block_size
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            out[start : start + step] = UNPACK[type](blocks[start : start + step])
    return out.reshape(shape)


def is_finite(raw: np.ndarray, type: GGMLType) -> bool:
    """Whether no NaN or infinity is among the scales in uint8 [..., row bytes], or, where there are none, among
    the values (F32, F16, BF16)."""
    blocks = np.ascontiguousarray(raw).reshape(-1).view(type.layout)
    bits, exponent = _EXPONENTS[type]
    step = _CHUNK // type.block_size
    for name in ("x", "d", "m", "dmin", "e"):
        if name not in (blocks.dtype.names or ()):
            continue
        field = blocks[name].view(bits)
        for start in range(0, len(field), step):
            if ((field[start : start + step] & exponent) == exponent).any():
                return False
    return True


def quantize(x: np.ndarray, type: GGMLType) -> np.ndarray:
    """Real [..., row elements] (computed in float32) -> uint8 [..., row bytes].

    Q4_0 to Q8_0 and BF16 equal the `gguf` package, the K-types llama.cpp without an importance matrix.
    F32, F16 and BF16 keep NaN and infinity. Raises RequestError for a type that is not written, a row that
    is not whole blocks, NaN or infinity in a block type, and values that the type cannot hold.
    """
    type = GGMLType(type)
    x = np.asarray(x)
    if type not in PACK:
        names = ", ".join(t.name for t in PACK)
        raise RequestError(f"{type.name} is read but not written; written are {names}")
    if x.dtype.kind != "f" or x.ndim == 0 or x.shape[-1] % type.block_size:
        raise RequestError(
            f"{type.name} takes rows of floating-point numbers, a multiple of {type.block_size} a row, "
            f"not {x.dtype} {list(x.shape)}"
        )
    shape = (*x.shape[:-1], x.shape[-1] // type.block_size * type.block_bytes)
    flat = np.ascontiguousarray(x).reshape(-1, type.block_size)
    out = np.empty(len(flat), type.layout)
    step = _CHUNK // type.block_size
    with np.errstate(all="ignore"):
        for start in range(0, len(flat), step):
            piece = flat[start : start + step].astype(np.float32, copy=False)
            out[start : start + step] = _pack(piece, type)
    return out.view(np.uint8).reshape(shape)


def _pack(x: np.ndarray, type: GGMLType) -> np.ndarray:
    """PACK with its results checked: no finite weight turns into an infinity, no NaN into a number."""
    if type.block_size == 1:
        blocks = PACK[type](x)
        if type != GGMLType.F32 and (np.isinf(UNPACK[type](blocks)) & np.isfinite(x)).any():
            raise _too_large(np.abs(x[np.isfinite(x)]).max(), type)
        return blocks
    largest = np.abs(x).max()
    if not np.isfinite(largest):
        raise RequestError(f"NaN or infinity among the values; {type.name} cannot hold these")
    if largest > _LIMIT:
        raise _too_large(largest, type)
    blocks = PACK[type](x)
    for name in ("d", "m", "dmin"):
        if name in (blocks.dtype.names or ()) and not np.isfinite(blocks[name]).all():
            raise _too_large(largest, type)
    return blocks


def _too_large(largest: np.floating, type: GGMLType) -> RequestError:
    return RequestError(f"a value of {largest:.3g} is too large for {type.name}; F32 holds it")
