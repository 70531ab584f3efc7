"""The loop, the scheduler and the block pool under random traffic: nobody's answer changes, nothing leaks."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gristmill.engine.blocks import BlockPool
from gristmill.engine.core import EngineCore
from gristmill.engine.drafting import Drafter
from gristmill.engine.generation import Generation
from gristmill.lm import SamplingParams
from tests.engine.fake_runner import VOCAB, FakeRunner, alone

SIZE = 4  # small blocks: many of them, many boundaries


class NoText:
    """Stands where the text of an answer is made."""

    stopped, text, stop_string = False, "", None

    def push(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


class Guess(Drafter):
    """Drafts that are sometimes right: the request's own true continuation, spoilt here and there."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def room(self, g: Generation) -> int:
        return 3

    def propose(self, asked) -> float:
        for g, count in asked:
            g.drafts = [
                t if self.chance.random() < 0.7 else self.chance.randrange(VOCAB)
                for t in alone(g.tokens, count)
            ]
        return 0.0

    def verified(self, g: Generation, accepted: int) -> None:
        assert 0 <= accepted <= len(g.drafts)


def make(prompt: list[int], count: int) -> Generation:
    params = SamplingParams(max_tokens=count, temperature=0.0)
    return Generation(prompt, params, 0, NoText(), frozenset(), root="")  # type: ignore[arg-type]


def core_of(blocks: int, chance: random.Random, **kept) -> EngineCore:
    options = dict(vocab_size=VOCAB, context=64, step_tokens=chance.choice((1, 3, 8, 64)))
    options |= dict(max_rows=chance.choice((1, 2, 5)))
    caching = chance.random() < 0.8
    return EngineCore(
        FakeRunner(blocks, SIZE), BlockPool(blocks, SIZE, caching), **(options | kept)
    )


def check(core: EngineCore) -> None:
    """What is always true of the pool, counted anew from those who run."""
    pool = core.scheduler.pool
    owners = Counter(block for g in core.scheduler.running for block in g.table)
    assert pool.holders == [owners[block] for block in range(pool.num_blocks)]
    assert set(pool._free) == {block for block in range(pool.num_blocks) if not owners[block]}
    assert not any(g.table for g in core.scheduler.waiting)
    for key, block in pool._known.items():
        assert pool._key[block] == key


def drive(seed: int) -> int:
    """One trace, every step of it checked; how many requests came to their end."""
    chance = random.Random(seed)
    blocks = chance.choice((6, 8, 12, 40))
    drafter = Guess(chance) if chance.random() < 0.5 else None
    core = core_of(blocks, chance, drafter=drafter, max_drafts=3, adaptive_drafts=False)
    beginnings = [[chance.randrange(VOCAB) for _ in range(10)] for _ in range(2)]
    coming = []
    for _ in range(chance.randint(2, 7)):
        prompt = chance.choice(beginnings)[: chance.randint(1, 10)]
        prompt = prompt + [chance.randrange(VOCAB) for _ in range(chance.randint(0, 3))]
        g = make(prompt, chance.randint(1, blocks * SIZE - len(prompt) if blocks < 8 else 9))
        g.siblings = [make(prompt, 3) for _ in range(chance.choice((0, 0, 0, 2)))]
        coming.append(g)
    everyone = [g for first in coming for g in (first, *first.siblings)]
    steps = 0
    while coming or core.busy:
        if coming and chance.random() < 0.5:
            core.add(coming.pop())
        if steps < 30 and chance.random() < 0.05:  # later it would hide who is stuck
            chance.choice(everyone).cancelled = True
        oldest = core.scheduler.running[0] if core.scheduler.running else None
        for g, _ in core.step():
            if g.completion is not None:
                assert not g.table
                if chance.random() < 0.5 and g.num_tokens + 6 < min(blocks * SIZE, 60):
                    coming.append(make([*g.tokens, *g.drafts, 1][:-1], 4))  # goes on from it
                    everyone.append(coming[-1])
        if oldest is not None and oldest.completion is None:
            assert core.scheduler.running[0] is oldest, "the oldest was put back"
        check(core)
        steps += 1
        assert steps < 1000, "no end: somebody starves"
    for g in everyone:
        assert g.completion is not None
        expected = alone(g.prompt, len(g.output))
        assert g.output == expected
        if not g.cancelled:
            assert g.completion.finish_reason == "length", g.completion
            assert len(g.output) == g.params.max_tokens
    assert core.scheduler.pool.num_free == blocks
    return sum(not g.cancelled for g in everyone)


@pytest.mark.parametrize("part", range(10))
def test_random_traffic(part):
    ended = [drive(seed) for seed in range(1000 * part, 1000 * (part + 1))]
    assert sum(ended) > 3000, "most are cancelled, and little was tried"


def test_a_known_beginning_is_computed_once():
    core = EngineCore(
        FakeRunner(64, SIZE),
        BlockPool(64, SIZE),
        vocab_size=VOCAB,
        context=64,
        step_tokens=64,
        max_rows=8,
    )
    shared = list(range(16))
    for i in range(8):
        core.add(make([*shared, i], 1))
    while core.busy:
        core.step()
    assert core.runner.computed == 17 + 7  # type: ignore[attr-defined]


def test_a_long_prompt_delays_nobody():
    """A request that decodes gains a token every step; a short prompt overtakes a long one."""
    core = core_of(100, random.Random(0), step_tokens=8, max_rows=4, context=400)
    decoding, long, short = make([1], 60), make(list(range(16)) * 12, 1), make([2, 3, 4], 1)
    core.add(decoding)
    core.step()
    core.add(long)
    core.add(short)
    ended = []
    for _ in range(40):
        before = len(decoding.output)
        ended += [g for g, chunk in core.step() if chunk.completion]
        assert len(decoding.output) == before + 1
    assert ended[:2] == [short, long]
