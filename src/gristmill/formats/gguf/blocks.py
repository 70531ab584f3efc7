"""Whole arrays to and from GGUF blocks, a cache-sized piece at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gristmill.errors import RequestError
from gristmill.formats.gguf.pack import PACK, WEIGHTED, weigh
from gristmill.formats.gguf.search import sum_rows
from gristmill.formats.gguf.types import GGMLType
from gristmill.formats.gguf.unpack import UNPACK

# Elements worked on at once. The searches make some twenty passes over half a dozen arrays of this many
# float32: 2**15 keeps them in a core's second-level cache.
_CHUNK = 1 << 15

# The same where threads share the work: they meet at the interpreter's lock in each of some three hundred calls a
# chunk. With 2**15 two were no faster than one, with 2**17 1.5 times (Q4_K, 1 MB of second-level cache).
_SHARED_CHUNK = 1 << 17

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


def quantize(
    x: np.ndarray, type: GGMLType, importance: np.ndarray | None = None, threads: int = 1
) -> np.ndarray:
    """Real [..., row elements] (computed in float32) -> uint8 [..., row bytes], the same with any number of threads.

    Q4_0 to Q8_0 and BF16 equal the `gguf` package, the K-types llama.cpp. importance float32 [row elements]: how much
    each column matters, its mean squared activation; the bytes are then those of llama.cpp with that importance
    matrix (but for a block in 20,000 where it is 0 nearly everywhere, and the fit hangs on the last digit). Types
    outside WEIGHTED (floats, Q8_0) take no notice of it, as there.
    F32, F16 and BF16 keep NaN and infinity. Raises RequestError for a type that is not written, a row that
    is not whole blocks, NaN or infinity in a block type, values that the type cannot hold, and importance that is
    negative, not finite or of another length.
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
    step = (_CHUNK if threads == 1 else _SHARED_CHUNK) // type.block_size
    share = max(step, -(-len(flat) // threads))
    weights = _Weights(x, type, importance) if importance is not None and type in WEIGHTED else None

    def pack(begin: int) -> None:
        end = min(begin + share, len(flat))
        with np.errstate(all="ignore"):  # holds in the thread that says it
            for start in range(begin, end, step):
                stop = min(start + step, end)
                piece = flat[start:stop].astype(np.float32, copy=False)
                weight = None if weights is None else weights.of(piece, start)
                out[start:stop] = _pack(piece, type, weight)

    shares = range(0, len(flat), share)
    if len(shares) > 1:
        with ThreadPoolExecutor(len(shares)) as pool:  # numpy lets go of the interpreter's lock
            list(pool.map(pack, shares))
    else:
        list(map(pack, shares))
    return out.view(np.uint8).reshape(shape)


class _Weights:
    """What `weigh` needs of the columns and rows of x [..., row elements], found again for any of its blocks."""

    def __init__(self, x: np.ndarray, type: GGMLType, importance: np.ndarray) -> None:
        width = x.shape[-1]
        columns = np.ascontiguousarray(importance, np.float32)
        if columns.shape != (width,):
            raise RequestError(
                f"rows of {width} need an importance of as many columns, not {list(columns.shape)}"
            )
        if not (columns >= 0).all() or not np.isfinite(columns).all():
            raise RequestError("importance is a mean of squares: it must be finite and not below 0")
        self.type, self.columns = type, columns.reshape(-1, type.block_size)
        rows = x.reshape(-1, width)
        self.squares = np.empty(len(rows), np.float32)
        step = max(1, _CHUNK // width)
        for start in range(0, len(rows), step):
            piece = np.ascontiguousarray(rows[start : start + step].T, np.float32)
            self.squares[start : start + step] = sum_rows(piece * piece) / np.float32(width)

    def of(self, x: np.ndarray, start: int) -> np.ndarray:
        """The weights of x [n, block_size], the blocks from number `start`."""
        row, column = np.divmod(np.arange(start, start + len(x)), len(self.columns))
        return weigh(self.type, x, self.columns[column], self.squares[row])


def _pack(x: np.ndarray, type: GGMLType, weight: np.ndarray | None) -> np.ndarray:
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
    blocks = PACK[type](x) if weight is None else PACK[type](x, weight)
    for name in ("d", "m", "dmin"):
        if name in (blocks.dtype.names or ()) and not np.isfinite(blocks[name]).all():
            raise _too_large(largest, type)
    return blocks


def _too_large(largest: np.floating, type: GGMLType) -> RequestError:
    return RequestError(f"a value of {largest:.3g} is too large for {type.name}; F32 holds it")
