"""Data order as a pure function of (seed, step): the loader's whole state is one integer.

A permutation of any size with random access: a four-round Feistel network on the next power of four,
walked until it lands inside the range (Black & Rogaway 2002, cycle walking). No table, no state.
"""

from __future__ import annotations

import hashlib

import numpy as np


def _keys(seed: int, name: str) -> list[int]:
    digest = hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=32).digest()
    return [int.from_bytes(digest[i : i + 8], "little") for i in range(0, 32, 8)]


def permute(index: np.ndarray, size: int, seed: int, name: str) -> np.ndarray:
    """Where `index` (int64, 0 <= index < size) goes under the permutation keyed by (seed, name)."""
    half_bits = max(1, ((max(size - 1, 1)).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    keys = [np.uint64(key) for key in _keys(seed, name)]
    out = np.asarray(index, dtype=np.uint64).copy()
    todo = np.ones(out.shape, dtype=bool)
    while todo.any():
        value = out[todo]
        left, right = value >> shift, value & mask
        with np.errstate(over="ignore"):
            for key in keys:
                mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
                mixed ^= mixed >> np.uint64(29)
                mixed *= np.uint64(0xBF58476D1CE4E5B9)
                left, right = right, left ^ ((mixed >> np.uint64(32)) & mask)
        out[todo] = (left << shift) | right
        todo &= out >= np.uint64(size)
    return out.astype(np.int64)


def epoch_order(first: int, count: int, size: int, seed: int, name: str) -> np.ndarray:
    """Items `first .. first+count-1` of an endless stream that visits 0..size-1 once an epoch.

    Every epoch has its own permutation; the k-th item depends on nothing but (k, size, seed, name).
    """
    return visits(np.arange(first, first + count, dtype=np.int64), size, seed, name)


def visits(position: np.ndarray, size: int, seed: int, name: str) -> np.ndarray:
    """The items at these positions (int64, any order) of the stream of `epoch_order`."""
    epochs = position // size
    out = np.empty(len(position), dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = permute(position[here] % size, size, seed, f"{name}|epoch {epoch}")
    return out


def mixture(first: int, count: int, weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Which source each of the items `first .. first+count-1` of a mixed stream comes from.

    Returns (source, position in that source's own stream), both int64 [count]. Item k goes to the source
    whose share is furthest behind; within a cycle of 1,000 items each source gets its largest-remainder
    share exactly and at least one item, spread evenly, so a position is a closed form of k.
    """
    cycle = 1000
    share = np.asarray(weights, dtype=np.float64) / sum(weights) * cycle
    quota = np.floor(share).astype(np.int64)
    for source in np.argsort(-(share - quota), kind="stable")[: cycle - int(quota.sum())]:
        quota[source] += 1
    for source in np.flatnonzero((quota == 0) & (share > 0)):  # a small source is still seen
        quota[source] += 1
        quota[quota.argmax()] -= 1
    slots = [
        ((turn + 0.5) / count_, source, turn)
        for source, count_ in enumerate(quota.tolist())
        for turn in range(count_)
    ]
    plan = np.array([(source, turn) for _, source, turn in sorted(slots)], dtype=np.int64)
    position = np.arange(first, first + count, dtype=np.int64)
    source, turn = plan[position % cycle].T
    return source, turn + (position // cycle) * quota[source]
