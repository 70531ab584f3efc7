"""Drafts from the request's own text: what followed the last time its latest tokens occurred."""

from __future__ import annotations

from collections.abc import Sequence

_SIZES = (6, 4, 3, 2)  # of what is looked up; a longer match is likelier to go on alike


class Ngrams:
    """Where each n-gram of a growing text last ended, for the sizes in `_SIZES`."""

    def __init__(self) -> None:
        self._after: list[dict[tuple[int, ...], int]] = [{} for _ in _SIZES]
        self._known = 0  # n-grams that end before this index are entered

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that may follow. `tokens` begins as it did in the last call."""
        for end in range(self._known, len(tokens) - 1):  # the last one has nothing after it yet
            for size, after in zip(_SIZES, self._after, strict=True):
                if end + 1 >= size:
                    after[tuple(tokens[end + 1 - size : end + 1])] = end + 1
        self._known = max(self._known, len(tokens) - 1)
        for size, after in zip(_SIZES, self._after, strict=True):
            at = after.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if at is not None:
                drafts: list[int] = []
                for i in range(at, at + count):  # past the end it goes on in what was just drafted
                    drafts.append(tokens[i] if i < len(tokens) else drafts[i - len(tokens)])
                return drafts
        return []
