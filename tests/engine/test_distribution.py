"""What comes out of the whole engine has the model's own distribution, with each drafter; and the acceptance is
what the two distributions say."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from gristmill.engine import Engine
from gristmill.formats import Model
from gristmill.lm import Request, SamplingParams
from tests.tiny_model import PROMPTS, random_model

IDS = (65, 70, 99, 105, 120, 200, 300, 411)
PROMPT = [7, 30, 99]
DRAWS = 6000


@cache
def target() -> Model:
    return random_model()


@cache
def similar() -> Model:
    """A draft that is near, but not the same: every weight a little off."""
    made = random_model()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
    return made


def shares(model: Model, tokens: list[int], temperature: float, top_p: float) -> torch.Tensor:
    """The probabilities of IDS next, float64, from the network itself."""
    with torch.inference_mode():
        logits = model.network(torch.tensor([tokens]))[0, -1, list(IDS)].double() / temperature
    p = logits.softmax(-1)
    values, order = p.sort(descending=True, stable=True)
    kept = values.cumsum(-1) - values < top_p
    return torch.where(kept[order.argsort()], p, 0.0) / values[kept].sum()


def statistic(counts: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """Chi-square and its 99.9th percentile (Wilson and Hilferty 1931); cells expected under 5 times are pooled."""
    expected = exact * counts.sum()
    small = expected < 5
    groups = [(counts[small].sum(), expected[small].sum())] if bool(small.any()) else []
    pairs = [(c, e) for c, e in groups if float(e) > 0]
    pairs += list(zip(counts[~small], expected[~small], strict=True))
    value = sum(float((c - e) ** 2 / e) for c, e in pairs)
    free = len(pairs) - 1
    return value, free * (1 - 2 / (9 * free) + 3.09 * math.sqrt(2 / (9 * free))) ** 3


@pytest.mark.parametrize("draft", [None, "ngram", "early-exit", "similar"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.5, 0.9), (0.5, 1.0)])
def test_the_first_two_tokens(draft, temperature, top_p):
    drafter = similar() if draft == "similar" else draft
    engine = Engine(target(), draft=drafter, draft_tokens=3, adaptive_drafts=False)
    asked = [
        Request(
            token_ids=PROMPT,
            params=SamplingParams(
                max_tokens=2,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                allowed_token_ids=IDS,
            ),
        )
        for seed in range(DRAWS)
    ]
    counts = torch.zeros(8, 8, dtype=torch.float64)
    for out in engine.generate(asked):
        first, second = (IDS.index(token) for token in out.token_ids)
        counts[first, second] += 1
    first = shares(target(), PROMPT, temperature, top_p)
    exact = torch.stack(
        [
            first[i] * shares(target(), [*PROMPT, token], temperature, top_p)
            for i, token in enumerate(IDS)
        ]
    )
    assert counts[exact == 0].sum() == 0
    value, limit = statistic(counts.flatten(), exact.flatten())
    assert value < limit
    wrong, limit = statistic(counts.flatten(), exact.t().flatten().clamp(min=1e-9))
    assert wrong > limit, "it has no power"


def test_acceptance_is_what_the_two_distributions_say():
    """Of a first draft after each of many beginnings: Σₓ 1/Σ_y max(p_y/p_x, q_y/q_x), within 2%."""
    engine = Engine(target(), draft=similar(), draft_tokens=1, adaptive_drafts=False)
    generator = torch.Generator().manual_seed(0)
    expected, asked = [], []
    for seed in range(4000):
        prompt = torch.randint(3, 500, (3,), generator=generator).tolist()
        params = SamplingParams(max_tokens=3, seed=seed, allowed_token_ids=IDS)
        asked.append(Request(token_ids=prompt, params=params))
    for request, out in zip(asked, engine.generate(asked), strict=True):
        if len(expected) < 800:  # the second token is the first that is drafted
            tokens = [*request.token_ids, out.token_ids[0]]
            p, q = shares(target(), tokens, 1, 1), shares(similar(), tokens, 1, 1)
            ratios = torch.maximum(p[None] / p[:, None], q[None] / q[:, None])
            expected.append(float((1 / ratios.sum(1)).sum()))
    mean = sum(expected) / len(expected)
    assert 0.3 < mean < 0.95
    assert engine.stats.spec_accepted_per_examined == pytest.approx(mean, rel=0.03)


@pytest.mark.parametrize("draft", ["ngram", "early-exit", "similar"])
def test_fifty_prompts_of_128_tokens_greedily(draft):
    drafter = similar() if draft == "similar" else draft
    text = " ".join(PROMPTS)
    params = SamplingParams(max_tokens=128, temperature=0.0, ignore_eos=True, seed=0)
    asked = [Request(text[7 * i : 7 * i + 60], params) for i in range(50)]
    engine = Engine(target(), draft=drafter, draft_tokens=4, adaptive_drafts=False)
    found = engine.generate(asked)
    plain = Engine(target()).generate(asked)
    assert [out.token_ids for out in found] == [out.token_ids for out in plain]
    assert {len(out.token_ids) for out in found} == {128} and engine.stats.spec_drafted > 1000
