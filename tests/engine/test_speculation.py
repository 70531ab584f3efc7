"""Whatever is drafted, the answer is that of plain decoding: tokens, text, reasons, log-probabilities."""

from __future__ import annotations

import pytest
import torch

from gristmill.engine import Engine
from gristmill.errors import RequestError
from gristmill.formats import Model
from gristmill.lm import Completion, Request, SamplingParams
from gristmill.model import initialize
from tests.tiny_model import PROMPTS, random_model


@pytest.fixture(scope="module")
def other() -> Model:
    """The same tokenizer, random weights of its own: a terrible draft."""
    made = random_model()
    initialize(made.network, seed=99)
    return made


def requests() -> list[Request]:
    """Greedy and drawn, cut by max_tokens, by a stop string, by a stop token, by the context."""
    repeated = "for i in range(3): print(i)\n" * 4
    kinds = [
        dict(temperature=0.0),
        dict(temperature=0.8, top_p=0.9),
        dict(temperature=1.0, repetition_penalty=1.3, frequency_penalty=0.5),
        dict(temperature=0.0, stop=("e", "  ")),
        dict(temperature=0.0, stop_token_ids=(5, 105, 200)),
        dict(temperature=1.5, min_p=0.05, top_k=20),
    ]
    return (
        [
            Request(
                prompt,
                SamplingParams(max_tokens=5 + 17 * (i % 3), seed=i, logprobs=1, **kind),  # type: ignore[arg-type]
            )
            for i, kind in enumerate(kinds)
            for prompt in (*PROMPTS[:3], repeated)
        ]
        + [Request(token_ids=[65, 66] * 92, params=SamplingParams(max_tokens=50, temperature=0.0))]
    )


def same(plain: list[Completion], drafted: list[Completion], exact: bool) -> None:
    for a, b in zip(plain, drafted, strict=True):
        assert a.token_ids == b.token_ids
        assert (a.text, a.finish_reason) == (b.text, b.finish_reason)
        for x, y in zip(a.logprobs or (), b.logprobs or (), strict=True):
            assert x == y if exact else x.logprob == pytest.approx(y.logprob, abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("kind", ["ngram", "itself", "another", "early-exit"])
def test_the_answer_is_that_of_plain_decoding(model, other, kind, count):
    plain = Engine(model)
    draft = {"itself": model, "another": other}.get(kind, kind)
    engine = Engine(model, draft=draft, draft_tokens=count, adaptive_drafts=False)
    expected = plain.generate(requests())
    same(expected, engine.generate(requests()), plain.runner.exact)
    assert engine.stats.spec_drafted > 0
    if kind == "itself":
        assert engine.stats.spec_accepted_per_examined == 1.0
    if kind == "ngram":
        assert engine.stats.spec_accepted > 0


def test_drafts_in_a_tiny_cache(model, other):
    """Rows are put back and begin anew while their drafts are verified."""
    params = SamplingParams(max_tokens=60, temperature=0.7, seed=3, ignore_eos=True, logprobs=0)
    asked = [Request(token_ids=[65 + i] * 14, params=params) for i in range(12)]
    expected = Engine(model).generate(asked)
    sizes = dict(cache_tokens=384, max_rows=12, draft_tokens=4, adaptive_drafts=False)
    small = Engine(model, draft=other, **sizes)
    same(expected, small.generate(asked), small.runner.exact)
    assert small.stats.preemptions > 0


def test_a_draft_that_never_fits_is_given_up(model, other):
    engine = Engine(model, draft=other, draft_tokens=4)
    params = SamplingParams(max_tokens=150, temperature=0.0, ignore_eos=True)
    engine.generate([Request("x", params)])
    assert engine.stats.spec_drafted < 60


def test_a_draft_with_another_tokenizer_is_refused(model):
    from gristmill.tokenizer import train_bpe

    stranger = Model(model.network, train_bpe(iter(["some other text, quite different"] * 9), 300))
    with pytest.raises(RequestError, match="tokenizer"):
        Engine(model, draft=stranger)


def test_pace_follows_acceptance_and_cost():
    from gristmill.engine.pace import Pace

    pace = Pace()
    for tokens in (1, 5, 1, 5, 1, 5):
        pace.times.record(tokens, 0.010 + 0.0002 * tokens)  # memory-bound: more rows cost little
    good, bad = pace.newcomer(), pace.newcomer()
    for _ in range(30):
        pace.verified(good, 4, 4)
        pace.verified(bad, 1, 0)
    assert pace.drafts(good, 1, 8) == 8
    tried = [pace.drafts(bad, 1, 8) for _ in range(200)]
    assert 1 <= sum(tried) <= 8 and set(tried) == {0, 1}
    for tokens in (1, 5) * 60:
        pace.times.record(tokens, 0.010 * tokens)  # compute-bound: a row costs a step
    middling = pace.newcomer()
    for _ in range(30):
        pace.verified(middling, 2, 1)
    assert pace.drafts(middling, 1, 8) == 0


def test_the_line_through_step_times():
    from gristmill.engine.pace import StepTimes

    times = StepTimes()
    for tokens in (1, 2, 9, 4):
        times.record(tokens, 0.02 + 0.003 * tokens)
    assert times.line() == pytest.approx((0.02, 0.003))


def test_lookup_proposes_what_followed():
    from gristmill.engine.lookup import Ngrams

    text = Ngrams()
    assert text.propose([1, 2, 3, 4, 1, 2], 3) == [3, 4, 1]
    assert text.propose([1, 2, 3, 4, 1, 2, 9], 3) == []
    assert Ngrams().propose([7, 8, 7, 8], 5) == [7, 8, 7, 8, 7]  # on and on
    assert Ngrams().propose([5, 1, 2, 6, 3, 1, 2, 7, 5, 1, 2], 1) == [6]  # the longer match wins
    assert Ngrams().propose([1], 4) == []
    torch.manual_seed(0)
    tokens = torch.randint(0, 4, (300,)).tolist()
    grown = Ngrams()
    for end in range(1, 300):
        assert grown.propose(tokens[:end], 4) == Ngrams().propose(tokens[:end], 4)
