"""Searching suffix arrays: how long a text goes on verbatim from each of its tokens, and where.

Binary search with what is known of the prefixes on both sides (Manber and Myers 1993), for all starts of a text at
once. Names: i counts starts; `stops` is where in the text a comparison may go no further.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gristmill.data.trace.index import MOST_TOKENS, Index, Part
from gristmill.errors import RequestError

_BLOCK = 8  # tokens that are compared at a time; doubled while they are equal
_LONGEST_BLOCK = 256


@dataclass(frozen=True)
class Match:
    """A run of the text's tokens that the shards hold: text[begin:end], `places` times.

    ranges: of each part, where the suffixes that begin with it lie: suffixes[low:high].
    """

    begin: int
    end: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def places(self) -> int:
        return sum(high - low for low, high in self.ranges)


def longest_matches(index: Index, text: np.ndarray) -> np.ndarray:
    """int64 [len(text)]: the length of the longest run of `text` from each token on that stands in one training
    document. Raises RequestError for a text of more than MOST_TOKENS tokens."""
    if len(text) > MOST_TOKENS:
        raise RequestError(
            f"the text has {len(text):,} tokens; give at most {MOST_TOKENS:,} at a time"
        )
    text = np.asarray(text, np.int64)
    stops = _stops(text, index)
    lengths = np.zeros(len(text), np.int64)
    starts = np.flatnonzero(stops > np.arange(len(text)))
    if len(starts):
        for part in index.parts:
            _, length = _bound(part, text, starts, stops[starts], after=False)
            lengths[starts] = np.maximum(lengths[starts], length)
    return lengths


def maximal(lengths: np.ndarray, least: int = 1) -> np.ndarray:
    """Starts of the matches of `least` tokens or more that no match of another start contains."""
    ends = np.arange(len(lengths)) + lengths
    before = np.concatenate([[-1], np.maximum.accumulate(ends)[:-1]])[: len(ends)]
    return np.flatnonzero((lengths >= max(1, least)) & (ends > before))


def find(index: Index, text: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> list[Match]:
    """Every place where text[start : start + length] stands, for each of `starts`."""
    text, stops = np.asarray(text, np.int64), starts + lengths
    bounds = []
    if len(starts):
        for part in index.parts:
            low, _ = _bound(part, text, starts, stops, after=False)
            high, _ = _bound(part, text, starts, stops, after=True)
            bounds.append(list(zip(low.tolist(), high.tolist(), strict=True)))
    return [
        Match(int(start), int(stop), tuple(bound[i] for bound in bounds))
        for i, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]


def _stops(text: np.ndarray, index: Index) -> np.ndarray:
    """Where a match from each token must end: at the next separator, so that none crosses documents. An id that the
    shards cannot hold ends it too."""
    barred = (text == index.separator) | (text < 0) | (text >= index.vocab_size)
    marks = np.where(barred, np.arange(len(text)), len(text))
    return np.minimum.accumulate(marks[::-1])[::-1]


def _bound(
    part: Part, text: np.ndarray, starts: np.ndarray, stops: np.ndarray, after: bool
) -> tuple[np.ndarray, np.ndarray]:
    """For each start the rank in the part's suffixes where text[start:stop] belongs, before all that begin with it or
    after them; and how much of it the nearest suffix there begins with."""
    low, high = part.first[text[starts]], part.first[text[starts] + 1]
    empty = low == high
    left, right = np.ones((2, len(starts)), np.int64)  # tokens shared with the suffixes around
    open_ = np.flatnonzero(~empty)
    while len(open_):
        middle = (low[open_] + high[open_]) // 2
        positions = part.suffixes[middle].astype(np.int64)
        known = np.minimum(left[open_], right[open_])
        shared, greater = _compare(
            part.tokens, positions, text, starts[open_], stops[open_], known, after
        )
        up, down = open_[greater], open_[~greater]
        low[up], left[up] = middle[greater] + 1, shared[greater]
        high[down], right[down] = middle[~greater], shared[~greater]
        open_ = open_[low[open_] < high[open_]]
    return low, np.where(empty, 0, np.maximum(left, right))


def _compare(
    tokens: np.ndarray,
    positions: np.ndarray,
    text: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    known: np.ndarray,
    after: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens text[start:stop] shares with tokens[position:], `known` of them without looking, and whether it
    comes after that suffix. A text that ends comes before every suffix that begins with it, or with `after` after them;
    a suffix that ends comes before a text that goes on."""
    shared, greater = known.copy(), np.zeros(len(known), bool)
    at_end = np.int64(1 << 40) if after else np.int64(-2)
    rest, block = np.arange(len(known)), _BLOCK
    while len(rest):
        ahead = shared[rest, None] + np.arange(block)
        in_text, in_tokens = starts[rest, None] + ahead, positions[rest, None] + ahead
        ours = np.where(
            in_text < stops[rest, None], text[np.minimum(in_text, len(text) - 1)], at_end
        )
        theirs = tokens[np.minimum(in_tokens, len(tokens) - 1)].astype(np.int64)
        theirs[in_tokens >= len(tokens)] = -1
        differs = ours != theirs
        first = differs.argmax(1)
        row = np.arange(len(rest))
        found = differs[row, first]
        shared[rest] += np.where(found, first, block)
        greater[rest[found]] = (ours > theirs)[row, first][found]
        rest, block = rest[~found], min(2 * block, _LONGEST_BLOCK)
    return shared, greater
