"""Ctrl-C, and steps that fail, at any moment: what was under way ends, nobody waits for ever, the engine goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import FrameType

import pytest

from gristmill.engine import Engine, core, turns
from gristmill.engine.core import EngineCore
from gristmill.engine.turns import Turns
from gristmill.errors import WorkError
from gristmill.lm import Request, SamplingParams
from tests.tiny_model import PROMPTS


def request(i: int, **kept) -> Request:
    params = dict(max_tokens=3, temperature=0.0, seed=i, ignore_eos=True) | kept
    return Request(PROMPTS[i], SamplingParams(**params))


@contextmanager
def struck(at: int, error: BaseException) -> Iterator[list[int]]:
    """Raise `error` before the line of that number of turns.py and core.py; how many lines there were until then.

    Not in `take`: there, signals are not seen before every line, and that is what it stands on.
    """
    lines = [0]

    def trace(frame: FrameType, event: str, _):
        code = frame.f_code
        if code.co_filename not in (turns.__file__, core.__file__) or code.co_name == "take":
            return None
        lines[0] += event == "line"
        if event == "line" and lines[0] == at:
            raise error
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("how", ["generate", "stream"])
def test_ctrl_c_at_any_line(model, how):
    """A stream that another thread might read gets its whole text or an error, and later requests their answers."""
    engine = Engine(model)
    asked = [request(0, max_tokens=6), request(1, n=1 + (how == "generate")), request(2)]
    expected = engine.generate(asked)
    lost = at = 0
    while True:
        at += 1 if at < 40 else 7
        stream = engine.stream(asked[0])
        chunks = [next(stream)]
        with struck(at, KeyboardInterrupt()) as lines, suppress(KeyboardInterrupt):
            _ = engine.generate([asked[1]]) if how == "generate" else list(engine.stream(asked[1]))
        with struck(20_000, AssertionError("it spins")):
            try:
                chunks += stream
                assert chunks[-1].completion == expected[0]
                assert "".join(chunk.text for chunk in chunks) == expected[0].text
            except WorkError:
                lost += 1
            assert engine.generate([asked[2]]) == [expected[2]]
        assert not engine.busy
        if lines[0] < at:  # it had ended before
            break
    assert at > 200 and lost > 20


def test_who_ended_in_the_step_that_failed_is_told(model, monkeypatch):
    engine = Engine(model)
    short, long = (engine.stream(request(i, max_tokens=m)) for i, m in ((0, 3), (1, 30)))
    for stream in (long, short):
        next(stream)
    record = EngineCore._record

    def broken(self: EngineCore, plan, spans, seconds) -> None:
        record(self, plan, spans, seconds)
        if any(work.generation.completion for work in plan.work):
            raise RuntimeError("the step broke")

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="the step broke"):
        patched.setattr(EngineCore, "_record", broken)
        list(long)
    with pytest.raises(WorkError, match="the engine's step failed"):
        list(short)
    assert engine.generate([request(2)]) == Engine(model).generate([request(2)])


def test_a_stream_whose_end_another_took_says_so(model):
    engine = Engine(model)
    stream = engine.stream(request(0))
    next(stream)
    while engine.busy:
        engine.step()
    with pytest.raises(WorkError, match=r"Engine\.step"):
        list(stream)


@pytest.mark.parametrize("added", [False, True])
def test_ctrl_c_as_a_request_goes_to_the_core_neither_loses_nor_doubles_it(
    model, added, monkeypatch
):
    engine = Engine(model)
    generation = engine.prepare(request(0))
    engine.add(generation)
    add = EngineCore.add

    def interrupted(self: EngineCore, g) -> None:
        if added:
            add(self, g)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(EngineCore, "add", interrupted)
        engine.step()
    assert generation.ended is added
    while engine.busy:
        engine.step()
    assert generation.ended
    assert (generation.completion is None) is added  # else it ended with what went wrong
    assert engine.stats.requests == (not added)


@pytest.mark.parametrize("task", ["generate", "score", "embed"])
def test_who_is_interrupted_in_waiting_leaves_nothing_to_compute(model, task, monkeypatch):
    engine = Engine(model)

    def interrupted(work):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(engine._turns, "take", interrupted)
        getattr(engine, task)([request(0, n=3), request(1)] if task == "generate" else PROMPTS[:2])
    assert engine.busy
    engine.step()
    assert not engine.busy and engine.stats.computed == 0


# The turn itself.


def free(held: Turns) -> bool:
    """Whether another thread gets a turn."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(held._room.acquire, timeout=1.0).result()


@pytest.fixture
def held(model) -> Turns:
    return Engine(model)._turns


def test_ctrl_c_just_after_a_turn_began_gives_it_back(held):
    class Interrupted:
        """Signals are looked for when a call returns."""

        def __init__(self, room) -> None:
            self.room, self.release = room, room.release

        def acquire(self) -> None:
            self.room.acquire()
            raise KeyboardInterrupt

    room = held._room
    held._room = Interrupted(room)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        held.take(lambda: pytest.fail("it has no turn"))
    held._room = room
    assert not held._door.locked() and free(held)


def test_ctrl_c_while_another_has_the_turn_leaves_it_to_him(held):
    class Interrupted:
        def __init__(self, room) -> None:
            self.release = room.release

        def acquire(self) -> None:
            raise KeyboardInterrupt

    begun, go = threading.Event(), threading.Event()
    room = held._room
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(held.take, lambda: (begun.set(), go.wait(10))[1])
        assert begun.wait(10)
        held._room = Interrupted(room)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            held.take(lambda: pytest.fail("it has no turn"))
        held._room = room
        assert not held._door.locked() and not room.acquire(timeout=0.05)
        go.set()
        assert other.result()
    assert free(held)


def test_what_a_turn_raises_is_passed_on_and_the_next_one_is_free(held):
    with pytest.raises(ZeroDivisionError):
        held.take(lambda: 1 / 0)
    assert held.take(lambda: 7) == 7 and free(held)
