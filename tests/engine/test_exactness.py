"""The same request gives the same tokens and, on the native runner, the same bits, whatever runs beside it."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from gristmill.engine import Engine
from gristmill.engine.native import NativeRunner
from gristmill.formats import Model
from gristmill.lm import Completion, Request, SamplingParams
from gristmill.tokenizer import train_bpe
from tests.tiny_model import PROMPTS, random_model

LONG = [7, 30, 99, 12, 65] * 24  # 120 tokens


def asked() -> list[Request]:
    kinds = [
        dict(temperature=0.0),
        dict(temperature=1.0, top_p=0.9, repetition_penalty=1.2),
        dict(temperature=0.7, top_k=30, min_p=0.02, frequency_penalty=0.3),
    ]
    prompts: list[dict] = [dict(prompt=p) for p in PROMPTS[:6]] + [dict(token_ids=LONG)]
    return [
        Request(**prompt, params=SamplingParams(max_tokens=24, seed=i, logprobs=3, **kind))  # type: ignore[arg-type]
        for i, prompt in enumerate(prompts)
        for kind in kinds
    ]


@cache
def model() -> Model:
    return random_model()


@cache
def alone() -> tuple[Completion, ...]:
    """Each with an engine of its own: nothing before it, nothing beside it."""
    return tuple(Engine(model(), max_rows=1).generate([request])[0] for request in asked())


def check(found: list[Completion]) -> None:
    assert NativeRunner.unsupported(model().network) is None
    for a, b in zip(alone(), found, strict=True):
        assert a.token_ids == b.token_ids
        assert a == b  # log-probabilities and all alternatives, bit for bit


def test_in_a_batch_of_32():
    company = [Request(p, SamplingParams(max_tokens=40, seed=9)) for p in PROMPTS] * 2
    check(Engine(model(), max_rows=32).generate([*asked(), *company])[: len(asked())])


def test_after_a_prefix_hit():
    engine = Engine(model())
    first = engine.generate(asked())
    again = engine.generate(asked())
    check(first)
    check(again)
    assert sum(c.cached_tokens for c in again) > sum(c.cached_tokens for c in first)
    assert again[-1].cached_tokens == 112


@pytest.mark.parametrize("step_tokens", [1, 7, 16])
def test_with_chunked_prefill(step_tokens):
    check(Engine(model(), step_tokens=step_tokens, prefix_caching=False).generate(asked()))


def test_after_preemption():
    engine = Engine(model(), cache_tokens=256, max_rows=21)
    check(engine.generate(asked()))
    assert engine.stats.preemptions > 0


@pytest.mark.parametrize("draft", ["ngram", "early-exit", "itself"])
def test_with_speculation(draft):
    drafter = model() if draft == "itself" else draft
    engine = Engine(model(), draft=drafter, draft_tokens=5, adaptive_drafts=False)
    check(engine.generate(asked()))
    assert engine.stats.spec_drafted > 0


@pytest.mark.parametrize("threads", [1, 2])
def test_with_other_threads_and_blocks(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(Engine(model(), block_size=64, max_rows=5).generate(asked()))
    finally:
        torch.set_num_threads(before)


def test_scores_and_prompt_logprobs_are_the_same_bits():
    engine = Engine(model(), step_tokens=16)
    (whole,) = Engine(model()).score([LONG])
    assert engine.score([PROMPTS[5], LONG, PROMPTS[1]])[1] == whole
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=2)
    (out,) = engine.generate([Request(token_ids=LONG, params=params)])
    assert out.prompt_logprobs is not None and out.prompt_logprobs[0] is None
    found = [t.logprob for t in out.prompt_logprobs[1:] if t]
    assert found == pytest.approx(whole.logprobs[1:], abs=1e-6)
    with torch.inference_mode():
        expected = model()(torch.tensor([LONG]))[0].log_softmax(-1)
    for at, entry in enumerate(out.prompt_logprobs[1:]):
        assert entry is not None and entry.token_id == LONG[at + 1]
        assert entry.logprob == pytest.approx(float(expected[at, LONG[at + 1]]), abs=1e-4)
        assert [i for i, _ in entry.top] == expected[at].topk(2).indices.tolist()


def test_across_longrope_s_switch(tmp_path):
    """Rows that outgrow the switch are computed anew, alike in company and in chunks."""
    from gristmill.formats import load_network
    from tests.families import saved

    _, directory = saved("phi3, longrope", tmp_path)
    own = Model(load_network(directory), train_bpe(iter(["def f(x):\n    return x\n" * 9]), 330))
    params = SamplingParams(max_tokens=30, temperature=0.0, logprobs=0)
    requests = [Request(token_ids=list(range(5, 5 + n)), params=params) for n in (20, 40, 47, 60)]
    expected = [Engine(own).generate([request])[0] for request in requests]
    together = Engine(own, draft="ngram", adaptive_drafts=False, step_tokens=9).generate(requests)
    for a, b in zip(expected, together, strict=True):
        assert a.token_ids == b.token_ids
        for x, y in zip(a.logprobs or (), b.logprobs or (), strict=True):
            assert x.logprob == pytest.approx(y.logprob, abs=1e-4)
