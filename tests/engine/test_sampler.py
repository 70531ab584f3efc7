"""Each operation of the sampler against transformers' own, and the draw against exact probabilities."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gristmill.engine.sampler import History, apply_penalties, draw, filter_logits, sample, uniform
from gristmill.lm import SamplingParams

VOCABULARY = 48


def rows_of_every_kind() -> torch.Tensor:
    """1,000 rows [B, V]: ordinary, sharp, flat, tied, one-hot, and with -inf among them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, VOCABULARY, generator=generator) * torch.rand(
        1000, 1, generator=generator
    ).mul(8)
    logits[100:200] = logits[100:200].round()  # many ties
    logits[200:220] = 1.5  # all equal
    logits[220:240] = -math.inf
    logits[220:240, 7] = 0.0  # all mass on one token
    holes = torch.rand(100, VOCABULARY, generator=generator) < 0.5
    holes[:, 0] = False
    logits[240:340] = logits[240:340].masked_fill(holes, -math.inf)
    return logits


LOGITS = rows_of_every_kind()
NO_IDS = torch.zeros(1000, 1, dtype=torch.long)


def filtered(logits: torch.Tensor, **params) -> torch.Tensor:
    return filter_logits(logits, [SamplingParams(**params)] * len(logits))


def assert_same_cut(got: torch.Tensor, expected: torch.Tensor, ties: bool = False) -> None:
    """The same tokens are kept, with the same values. With `ties`, which of equals are kept may differ."""
    if ties:
        got, expected = got.sort(dim=-1).values, expected.sort(dim=-1).values
    assert torch.equal(got, expected)


@pytest.mark.parametrize("k", [1, 2, 7, VOCABULARY - 1, VOCABULARY, 1000])
def test_top_k(k: int) -> None:
    assert_same_cut(filtered(LOGITS, top_k=k), TopKLogitsWarper(k)(NO_IDS, LOGITS.clone()))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_top_p(p: float) -> None:
    expected = TopPLogitsWarper(p)(NO_IDS, LOGITS.clone())
    assert_same_cut(filtered(LOGITS, top_p=p), expected, ties=True)
    untied = torch.cat((LOGITS[:100], LOGITS[340:]))
    assert_same_cut(filtered(untied, top_p=p), TopPLogitsWarper(p)(NO_IDS, untied.clone()))


def test_top_p_keeps_the_lower_ids_of_equals() -> None:
    kept = filtered(torch.full((1, VOCABULARY), 0.25), top_p=0.5).isfinite()[0]
    assert kept.nonzero()[:, 0].tolist() == list(range(VOCABULARY // 2))


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 1.0])
def test_min_p(p: float) -> None:
    assert_same_cut(filtered(LOGITS, min_p=p), MinPLogitsWarper(p)(NO_IDS, LOGITS.clone()))


@pytest.mark.parametrize("t", [0.1, 0.7, 1.9])
def test_temperature(t: float) -> None:
    expected = TemperatureLogitsWarper(t)(NO_IDS, LOGITS.clone())
    assert torch.equal(filtered(LOGITS, temperature=t), expected)


def test_the_order_is_temperature_min_p_top_k_top_p() -> None:
    untied = torch.cat((LOGITS[:100], LOGITS[340:]))
    expected = untied.clone()
    for warper in (
        TemperatureLogitsWarper(1.4),
        MinPLogitsWarper(0.03),
        TopKLogitsWarper(11),
        TopPLogitsWarper(0.8),
    ):
        expected = warper(NO_IDS, expected)
    got = filtered(untied, temperature=1.4, min_p=0.03, top_k=11, top_p=0.8)
    assert torch.equal(got, expected)


def test_a_row_is_not_changed_by_what_its_neighbours_cut() -> None:
    several = [
        SamplingParams(),
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.5),
        SamplingParams(min_p=0.2, temperature=0.5),
    ]
    together = filter_logits(LOGITS, [several[i % 4] for i in range(1000)])
    for i, params in enumerate(several):
        alone = filter_logits(LOGITS[i::4], [params] * 250)
        # A neighbour's top-p may take a token of probability 0 from a row; nothing else.
        same = torch.where(together[i::4].isneginf(), -math.inf, alone)
        assert torch.equal(together[i::4], same)
        assert torch.equal(together[i::4].softmax(-1) > 0, alone.softmax(-1) > 0)


def test_repetition_penalty_is_transformers_and_counts_prompt_and_output() -> None:
    ids = torch.randint(0, VOCABULARY, (1000, 9), generator=torch.Generator().manual_seed(1))
    expected = RepetitionPenaltyLogitsProcessor(1.7)(ids, LOGITS.clone())
    before = LOGITS.clone()
    params = SamplingParams(repetition_penalty=1.7)
    rows = [History(params, row[:5], row[5:]) for row in ids.tolist()]
    assert torch.equal(apply_penalties(LOGITS, rows), expected)
    assert torch.equal(LOGITS, before), "the caller's logits are left alone"


def test_frequency_and_presence_penalties_count_the_output_only() -> None:
    logits = torch.zeros(1, 5)
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    got = apply_penalties(logits, [History(params, [0, 0, 1], [1, 2, 2, 2])])
    assert got.tolist() == [[0.0, -0.75, -1.75, 0.0, 0.0]]


def test_greedy_takes_the_lowest_of_equals_and_obeys_penalties() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.9]])
    greedy = SamplingParams(temperature=0.0)
    assert sample(logits, [History(greedy, [], [])]) == [1]
    penalized = SamplingParams(temperature=0.0, repetition_penalty=1.5)
    assert sample(logits, [History(penalized, [1], [2])]) == [3]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 6},
        {"top_p": 0.7},
        {"min_p": 0.1, "temperature": 1.5},
    ],
)
def test_draws_follow_the_exact_distribution(params: dict) -> None:
    """Chi-square over 50,000 (seed, position) pairs; p is computed in float64 from the kept logits."""
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(3)) * 1.5
    kept = filter_logits(logits, [SamplingParams(**params)])
    exact = kept.double().softmax(-1)[0]
    draws = 50_000
    numbers = [uniform(i // 500, i % 500) for i in range(draws)]
    counts = torch.bincount(torch.tensor(draw(kept.expand(draws, -1), numbers)), minlength=20)
    assert counts[exact == 0].sum() == 0
    support = exact > 0
    expected = exact[support] * draws
    statistic = float(((counts[support] - expected) ** 2 / expected).sum())
    free = int(support.sum()) - 1
    # The 99.9th percentile of chi-square (Wilson and Hilferty 1931).
    assert statistic < free * (1 - 2 / (9 * free) + 3.09 * math.sqrt(2 / (9 * free))) ** 3


def test_the_ends_of_the_unit_interval_draw_tokens_that_can_be_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]] * 2)
    assert draw(logits, [0.0, (2**52 - 1) / 2**52]) == [1, 2]


def test_sample_is_keyed_by_seed_and_position_alone() -> None:
    logits = torch.zeros(6, 1000)

    def history(seed: int, prompt: int, output: int) -> History:
        return History(SamplingParams(seed=seed), [1] * prompt, [1] * output)

    rows = [history(0, 5, 2), history(0, 3, 4), history(1, 5, 2), history(0, 5, 3)]
    tokens = sample(logits[:4], rows)
    assert tokens[0] == tokens[1], "the same seed at the same position"
    assert len(set(tokens)) == 3
    assert sample(logits[:1], rows[2:3]) == tokens[2:3]
