"""The cache's blocks: who holds which, and which hold the keys and values of a known beginning.

A full block is known by (what stands before it, its tokens). What stands before is the serial number of the
block before, or the request's `root` for the first; serials are never used twice, and dictionaries compare
whole keys, so a hit is always right.

Always true: a block is either free or held (`holders` counts by how many); one that several hold is never
written; what a free block holds can be hit until the block is handed out again, the longest free first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count

Key = tuple[Hashable, tuple[int, ...]]


@dataclass
class Prefix:
    """Where a request stands in the index: its first `blocks` blocks are known, the last under `serial`."""

    root: Hashable
    blocks: int = 0
    serial: Hashable = None

    def __post_init__(self) -> None:
        self.serial = self.root


class BlockPool:
    """`num_blocks` blocks of `block_size` positions. `caching`: whether full blocks can be found again."""

    def __init__(self, num_blocks: int, block_size: int, caching: bool = True) -> None:
        self.num_blocks, self.block_size, self.caching = num_blocks, block_size, caching
        self.holders = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._known: dict[Key, int] = {}
        self._key: list[Key | None] = [None] * num_blocks
        self._serial: list[int] = [0] * num_blocks
        self._computing: set[int] = set()  # announced: someone is about to fill them
        self._serials = count(1)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def find(self, root: Hashable, tokens: Sequence[int], most: int) -> tuple[list[int], bool]:
        """The blocks that hold the longest known beginning, at most `most`; whether the next is being computed."""
        found: list[int] = []
        before: Hashable = root
        while self.caching and len(found) < most:
            at = len(found) * self.block_size
            block = self._known.get((before, tuple(tokens[at : at + self.block_size])))
            if block is None:
                break
            if block in self._computing:
                return found, True
            found.append(block)
            before = self._serial[block]
        return found, False

    def free_among(self, blocks: Sequence[int]) -> int:
        return sum(self.holders[block] == 0 for block in blocks)

    def hold(self, blocks: Sequence[int]) -> None:
        """One more holder for each; free ones are revived with what they hold."""
        for block in blocks:
            if self.holders[block] == 0:
                del self._free[block]
            self.holders[block] += 1

    def take(self) -> int:
        """A block of one's own; what it held is forgotten. The caller has checked `num_free`."""
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self.holders[block] = 1
        return block

    def release(self, table: Sequence[int]) -> None:
        """Give blocks back, the last first: without its beginning the end of a prefix is worth nothing."""
        for block in reversed(table):
            self.holders[block] -= 1
            if self.holders[block] == 0:
                if block in self._computing:
                    self._forget(block)  # it was never filled
                self._free[block] = None

    def announce(self, prefix: Prefix, tokens: Sequence[int], table: Sequence[int]) -> None:
        """Say that the full blocks of `tokens` beyond the prefix are about to be filled, so that others wait."""
        if not self.caching:
            return
        before = prefix.serial
        for i in range(prefix.blocks, len(tokens) // self.block_size):
            before = self._enter(before, self._tokens(tokens, i), table[i], computing=True)

    def publish(
        self, prefix: Prefix, tokens: Sequence[int], table: Sequence[int], computed: int
    ) -> None:
        """Make the full blocks of the first `computed` tokens known. They are never written again."""
        while self.caching and (prefix.blocks + 1) * self.block_size <= computed:
            i = prefix.blocks
            serial = self._enter(prefix.serial, self._tokens(tokens, i), table[i], computing=False)
            prefix.blocks, prefix.serial = i + 1, serial

    def follow(self, prefix: Prefix, blocks: Sequence[int]) -> None:
        """Move the prefix over blocks that `find` gave."""
        if blocks:
            prefix.blocks, prefix.serial = len(blocks), self._serial[blocks[-1]]

    def forget_all(self) -> None:
        """Nothing is known any more: the weights have changed."""
        for block in range(self.num_blocks):
            self._forget(block)

    def _tokens(self, tokens: Sequence[int], block: int) -> tuple[int, ...]:
        return tuple(tokens[block * self.block_size : (block + 1) * self.block_size])

    def _enter(
        self, before: Hashable, tokens: tuple[int, ...], block: int, computing: bool
    ) -> Hashable:
        """Know `block` by its key, unless another with the same content is; the serial of the known one."""
        key = (before, tokens)
        known = self._known.get(key)
        if known is None:
            self._forget(block)
            self._known[key], self._key[block] = block, key
            self._serial[block] = next(self._serials)
            known = block
            if computing:
                self._computing.add(block)
        if not computing and known == block:
            self._computing.discard(block)
        return self._serial[known]

    def _forget(self, block: int) -> None:
        key = self._key[block]
        if key is not None:
            del self._known[key]
            self._key[block] = None
        self._computing.discard(block)
