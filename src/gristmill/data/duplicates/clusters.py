"""Which of similar documents stay: leaders (nobody goes without a similar one that stays), or one a component.

Both are functions of the pairs and the ranks alone, whatever the order of the pairs: rounds over arrays, in which
each document looks at its neighbours.
"""

from __future__ import annotations

import numpy as np

_UNDECIDED, _STAYS, _GOES = 0, 1, 2


def leaders(pairs: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """The greedy choice in the order of `rank`: a document goes if one that stays before it is similar to it.

    pairs: int64 [m, 2] of document numbers; rank: int64 [n], all different, the lowest is the best.
    Returns bool [n]: who goes. Equal to going through the documents by rank one at a time; documents without a
    pair stay.
    """
    better, worse = by_rank(pairs, rank)
    state = np.full(len(rank), _STAYS, np.int8)
    state[worse] = _UNDECIDED  # only who has a better neighbour can go
    while len(worse):
        state[worse[state[better] == _STAYS]] = _GOES
        undecided = state[worse] == _UNDECIDED
        waiting = np.zeros(len(rank), bool)
        waiting[worse[undecided & (state[better] == _UNDECIDED)]] = True
        free = worse[undecided]
        state[free[~waiting[free]]] = _STAYS  # all its better neighbours go
        matters = (state[worse] == _UNDECIDED) & (state[better] != _GOES)
        better, worse = better[matters], worse[matters]
    return state == _GOES


def components(pairs: np.ndarray, count: int) -> np.ndarray:
    """int64 [count]: the lowest document number that each document is connected to, directly or through others.

    Minimum-label hooking with pointer jumping: O(log n) rounds over the pairs.
    """
    root = np.arange(count, dtype=np.int64)
    a, b = pairs[:, 0], pairs[:, 1]
    while len(a):
        low = np.minimum(root[a], root[b])
        before = root.copy()
        np.minimum.at(root, root[a], low)
        np.minimum.at(root, root[b], low)
        while not np.array_equal(root, root[root]):
            root = root[root]
        if np.array_equal(root, before):
            break
    return root


def by_rank(pairs: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The better and the worse document of each pair."""
    a, b = pairs[:, 0], pairs[:, 1]
    first = rank[a] < rank[b]
    return np.where(first, a, b), np.where(first, b, a)
