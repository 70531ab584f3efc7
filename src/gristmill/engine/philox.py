"""Numbers that look random and are a function of (seed, position, token): Philox4x32-10 (Salmon et al. 2011)."""

from __future__ import annotations

import hashlib

import numpy as np

_ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: tuple[np.ndarray, int, int, int], key: tuple[int, int]) -> np.ndarray:
    """uint32 [4, n] for the n counters (counter[0][i], counter[1], counter[2], counter[3])."""
    x0 = counter[0].astype(np.uint64)
    x1, x2, x3 = (np.full_like(x0, c) for c in counter[1:])
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = x0 * _MULTIPLIERS[0], x2 * _MULTIPLIERS[1]
        x0, x1, x2, x3 = (
            (product1 >> _SHIFT) ^ x1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _SHIFT) ^ x3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack((x0, x1, x2, x3)).astype(np.uint32)


def exponentials(seed: int, position: int, ids: np.ndarray) -> np.ndarray:
    """For each token id of `ids` [n], n > 0, an Exp(1) number, float64, never 0 and never infinite."""
    key = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    rest = position & 0xFFFFFFFF, position >> 32, 0
    quartets = int(ids.max()) // 4 + 1  # one counter gives the words of four neighbouring ids
    if quartets <= len(ids):
        words = philox((np.arange(quartets), *rest), key).T.reshape(-1)[ids]
    else:
        words = philox((ids // 4, *rest), key)[ids % 4, np.arange(len(ids))]
    return -np.log((words + 0.5) / 2.0**32)


def child_seed(seed: int, child: int) -> int:
    """The seed of one of several answers to a prompt; the first has the request's own."""
    if child == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}|{child}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
