"""Who computes how many tokens in the next step, and in which blocks.

One budget of tokens a step. Rows that decode come first, so that a long prompt delays nobody's next token by
more than a step; what is left, and a quarter at least, is shared evenly among the prompts under way, so that a short
one overtakes a long one and none waits for those who decode. Requests start in the order they came; when blocks run
out the youngest running one gives its own back and starts anew later, so the oldest always goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gristmill.engine.blocks import BlockPool
from gristmill.engine.generation import Generation


@dataclass(frozen=True)
class Work:
    """The next `count` tokens of a request, and how many of its drafts after them."""

    generation: Generation
    count: int
    drafts: int = 0


@dataclass
class Plan:
    """One step: what to compute, which blocks to copy before (source, target), who was put back, who began."""

    work: list[Work] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Generation] = field(default_factory=list)
    admitted: list[Generation] = field(default_factory=list)


class Scheduler:
    """`step_tokens` is the budget, `max_rows` how many requests run at once."""

    def __init__(self, pool: BlockPool, step_tokens: int, max_rows: int) -> None:
        self.pool, self.step_tokens, self.max_rows = pool, step_tokens, max_rows
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []  # the oldest first

    def schedule(self, drafts: Callable[[Generation, int], int]) -> Plan:
        """Plan a step. `drafts` says how many drafted tokens one of so many decoding requests would like verified."""
        plan, budget = Plan(), self.step_tokens
        decoding = [g for g in self.running if g.pending == 1]
        others_wait = bool(self.waiting) or len(decoding) < len(self.running)
        kept = max(1, self.step_tokens // 4) if others_wait else 0
        for i, g in enumerate(decoding):
            if g not in self.running:  # put back for the sake of an older one
                continue
            others = len(decoding) - i - 1  # a token of the budget is kept for each
            wanted = min(drafts(g, len(decoding)), budget - kept - others - 1)
            count = self._reserve(g, 1 + max(0, wanted), plan)
            if count:
                plan.work.append(Work(g, 1, count - 1))
                budget -= count
        budget = max(budget, kept)
        begun = self._admit(budget, plan)
        prefilling = [g for g in self.running if g.pending > 1 or g in begun]
        for i, g in enumerate(prefilling):
            share = -(-budget // (len(prefilling) - i))
            count = min(g.pending, share)
            if count > 0 and g in self.running:
                count = self._reserve(g, count, plan)
                plan.work.append(Work(g, count))
                budget -= count
        plan.work = [w for w in plan.work if w.generation not in plan.preempted and w.count]
        return plan

    def leave(self, g: Generation) -> None:
        """A request ended or was cancelled, in whatever state."""
        if g in self.running:
            self.running.remove(g)
        elif g in self.waiting:
            self.waiting.remove(g)
        self.pool.release(g.table)
        g.table = []

    def fork(self, parent: Generation, child: Generation) -> None:
        """Let `child`, which has the same prompt, share all that `parent` has computed. A row must be free."""
        self.pool.hold(parent.table)
        child.table, child.num_computed = list(parent.table), parent.num_computed
        child.prefix.blocks, child.prefix.serial = parent.prefix.blocks, parent.prefix.serial
        child.cached_tokens = parent.cached_tokens
        self.running.append(child)

    def restart(self, g: Generation) -> None:
        """Put a running request back to the front: what it computed is given up, what it said stays."""
        self.running.remove(g)
        self.pool.release(g.table)
        g.start_anew()
        self.waiting.appendleft(g)

    def _admit(self, budget: int, plan: Plan) -> list[Generation]:
        """Start waiting requests while rows, blocks and budget last; those that began."""
        held: list[Generation] = []
        begun: list[Generation] = []
        most = budget - sum(g.pending > 1 for g in self.running)
        while self.waiting and len(self.running) < self.max_rows and len(begun) + len(held) < most:
            g = self.waiting.popleft()
            found, soon = self._known_beginning(g)
            if (
                soon
            ):  # another is computing what this one begins with: wait for it, do not do it twice
                held.append(g)
                continue
            needed = self.pool.blocks_for(g.num_tokens) - len(found)
            # A block for each running row besides, lest the newcomer be put back at once.
            spare = len(self.running)
            if needed + self.pool.free_among(found) + spare > self.pool.num_free:
                self.waiting.appendleft(g)
                break
            self.pool.hold(found)
            g.table = found + [self.pool.take() for _ in range(needed)]
            self.pool.follow(g.prefix, found)
            g.num_computed = len(found) * self.pool.block_size
            if g.cached_tokens is None:  # not again when it was put back
                g.cached_tokens = g.num_computed
                plan.admitted.append(g)
            self.pool.announce(g.prefix, g.tokens, g.table)
            self.running.append(g)
            begun.append(g)
        self.waiting.extendleft(reversed(held))
        return begun

    def _known_beginning(self, g: Generation) -> tuple[list[int], bool]:
        if g.reads_prompt:  # every row of the prompt is wanted, so none may be skipped
            return [], False
        # At least one token is left to compute: somewhere the logits must come from.
        most = (g.num_tokens - 1) // self.pool.block_size
        return self.pool.find(g.prefix.root, g.tokens, most)

    def _reserve(self, g: Generation, count: int, plan: Plan) -> int:
        """Make the next `count` positions writable; fewer when blocks are short, none when `g` was put back."""
        first = g.num_computed // self.pool.block_size
        for i in range(first, self.pool.blocks_for(g.num_computed + count)):
            shared = i < len(g.table) and self.pool.holders[g.table[i]] > 1
            if i < len(g.table) and not shared:
                continue
            if self.pool.num_free == 0 and i > first:
                return i * self.pool.block_size - g.num_computed  # drafts that find no room
            while self.pool.num_free == 0:
                youngest = self.running[-1]
                self.restart(youngest)
                plan.preempted.append(youngest)
                if youngest is g:
                    return 0
            block = self.pool.take()
            if shared:
                plan.copies.append((g.table[i], block))
                self.pool.release([g.table[i]])
                g.table[i] = block
            else:
                g.table.append(block)
        return count
