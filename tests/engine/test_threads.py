"""One engine and several threads: each gets what it would have had alone."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gristmill.engine import Engine
from gristmill.errors import WorkError
from gristmill.lm import Request, SamplingParams
from tests.engine.test_requests import make_adapter
from tests.tiny_model import PROMPTS, random_model

THREADS = 4


@pytest.fixture(autouse=True)
def often():
    """Threads take turns at every other line."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def request(i: int, **kept) -> Request:
    params = dict(max_tokens=6 + 3 * (i % 4), temperature=float(i % 2), seed=i) | kept
    return Request(PROMPTS[i % len(PROMPTS)], SamplingParams(**params))


def at_once(work: Callable[[int], object]) -> list:
    """The results of `work(0)` and so on, each in a thread of its own, begun together."""
    gate = threading.Barrier(THREADS)

    def begun(i: int) -> object:
        gate.wait()
        return work(i)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begun, range(THREADS)))


def streamed(engine: Engine, asked: Request) -> tuple:
    chunks = list(engine.stream(asked))
    assert chunks[-1].completion is not None
    assert "".join(chunk.text for chunk in chunks) == chunks[-1].completion.text
    return chunks[-1].completion


@pytest.mark.parametrize("kept", [{}, {"max_rows": 2}, {"draft": "ngram"}], ids=str)
def test_threads_get_what_they_would_have_had_alone(model, kept):
    def work(engine: Engine, i: int) -> list:
        own = range(10 * i, 10 * i + 6)
        return [
            engine.generate([request(n) for n in own]),
            [streamed(engine, request(n)) for n in own],
            engine.generate([request(n, n=3) for n in own[:2]]),
            engine.score(PROMPTS[i : i + 3]),
            engine.embed(PROMPTS[i : i + 3]).tolist(),
        ]

    alone = [work(Engine(model, runner="native"), i) for i in range(THREADS)]
    engine = Engine(model, runner="native", **kept)
    for _ in range(2):
        assert at_once(lambda i: work(engine, i)) == alone
    assert not engine.busy
    assert engine.stats.requests == 2 * THREADS * 14


def test_what_one_thread_computes_another_finds(model):
    """A stream that nobody reads goes on with the steps of others, and gives its text later."""
    engine = Engine(model)
    expected = engine.generate([request(1, max_tokens=12), request(2, max_tokens=30)])
    stream = engine.stream(request(1, max_tokens=12))
    chunks = [next(stream)]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: engine.generate([request(2, max_tokens=30)])).result()
    assert other == expected[1:]
    steps = engine.stats.steps
    chunks += stream
    assert engine.stats.steps == steps
    assert chunks[-1].completion == expected[0]
    assert "".join(chunk.text for chunk in chunks) == expected[0].text


def test_streams_that_are_left_do_not_hold_up_the_others(model):
    engine = Engine(model)
    expected = [Engine(model).generate([request(i)])[0] for i in range(THREADS)]

    def work(i: int) -> object:
        for n in range(8):
            stream = engine.stream(request(n, max_tokens=60))
            next(stream)
            stream.close()
        return engine.generate([request(i)])[0]

    assert at_once(work) == expected


def test_a_failing_step_is_everybodys_and_the_next_one_nobodys(model, monkeypatch):
    engine = Engine(model)
    expected = [engine.generate([request(i)])[0] for i in range(THREADS)]
    asked = [request(i, max_tokens=60, ignore_eos=True) for i in range(THREADS)]
    streams = [engine.stream(r) for r in asked]
    for stream in streams:
        next(stream)

    def broken(batch):
        raise RuntimeError("the step broke")

    def work(i: int) -> str:
        with pytest.raises((RuntimeError, WorkError)) as caught:
            list(streams[i])
        return str(caught.value)

    with monkeypatch.context() as patched:
        patched.setattr(engine.runner, "hidden", broken)
        found = at_once(work)
    whole = "the engine's step failed, and with it all that was under way"
    assert sorted(found) == [whole] * (THREADS - 1) + ["the step broke"]
    assert [engine.generate([request(i)])[0] for i in range(THREADS)] == expected


def test_adapters_and_weights_change_while_threads_ask(tmp_path):
    model = random_model()
    make_adapter(model, tmp_path / "a", 1)
    engine = Engine(model)
    engine.load_adapter("kept", tmp_path / "a")

    def asked(i: int) -> Request:
        made = request(i)
        return Request(made.prompt, made.params, adapter="kept" if i % 2 else None)

    expected = [engine.generate([asked(i)])[0] for i in range(THREADS)]
    assert expected[1] != engine.generate([request(1)])[0]

    def work(i: int) -> object:
        if i == 0:
            for _ in range(12):
                engine.load_adapter("other", tmp_path / "a")
                engine.update_weights()
                engine.unload_adapter("other")
            return expected[0]
        return [engine.generate([asked(i)])[0] for _ in range(12)]

    found = at_once(work)
    assert found[1:] == [[e] * 12 for e in expected[1:]]
    assert engine.adapters == ("kept",)
    assert torch.equal(engine.embed(["x"]), Engine(model).embed(["x"]))
