"""Each operation of the sampler against transformers' own, and the draw against exact probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gristmill.engine.philox import child_seed, exponentials, philox
from gristmill.engine.sampler import History, draw, left, process, sample, token_logprob
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
    out = torch.full_like(logits, -math.inf)
    for row, got in zip(logits, out, strict=True):
        ids, kept = left(row, SamplingParams(**params))
        got[torch.from_numpy(ids)] = torch.from_numpy(kept)
    return out


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


@pytest.mark.parametrize("p", [0.3, 0.95, 0.9999])
def test_top_p_of_a_large_vocabulary(p: float) -> None:
    """Where only the likeliest are sorted, what is kept is what sorting all keeps."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(30, 20_000, generator=generator) * torch.linspace(0.6, 6, 30)[:, None]
    rows[:5] = rows[:5].round()  # ties across the edge
    expected = TopPLogitsWarper(p)(NO_IDS[:30], rows.clone().double()).float()
    assert_same_cut(filtered(rows, top_p=p)[5:], expected[5:])
    got, expected = filtered(rows[:5], top_p=p), expected[:5]
    assert_same_cut(got, expected, ties=True)


def test_a_row_is_a_function_of_itself() -> None:
    """64 rows with every kind of parameter at once, and each alone: tokens and log-probabilities, bit for bit."""
    kinds = [
        dict(),
        dict(temperature=0.0),
        dict(top_k=3),
        dict(top_p=0.5, temperature=0.7),
        dict(min_p=0.2, temperature=0.5),
        dict(repetition_penalty=1.4),
        dict(frequency_penalty=0.4, presence_penalty=-0.3, logit_bias={3: 2.0}),
        dict(min_tokens=4),
    ]
    rows = [
        History(SamplingParams(**kinds[i % 8]), [1, 2, i % 40], [5, 5, i % 30], i, frozenset({7}))
        for i in range(64)
    ]
    together = sample(LOGITS[:64], rows)
    for i, row in enumerate(rows):
        alone = sample(LOGITS[i : i + 1], [row])
        assert (alone[0][0], alone[1][0]) == (together[0][i], together[1][i])
    lone = [token_logprob(LOGITS[i], 3, 5) for i in range(64)]
    assert lone == [token_logprob(row, 3, 5) for row in LOGITS[:64].clone()]


def test_repetition_penalty_is_transformers_and_counts_prompt_and_output() -> None:
    ids = torch.randint(0, VOCABULARY, (1000, 9), generator=torch.Generator().manual_seed(1))
    expected = RepetitionPenaltyLogitsProcessor(1.7)(ids, LOGITS.clone())
    before = LOGITS.clone()
    params = SamplingParams(repetition_penalty=1.7)
    rows = [History(params, row[:5], row[5:]) for row in ids.tolist()]
    assert torch.equal(process(LOGITS, rows), expected)
    assert torch.equal(LOGITS, before), "the caller's logits are left alone"


def test_frequency_and_presence_penalties_count_the_output_only() -> None:
    logits = torch.zeros(1, 5)
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    got = process(logits, [History(params, [0, 0, 1], [1, 2, 2, 2])])
    assert got.tolist() == [[0.0, -0.75, -1.75, 0.0, 0.0]]


def test_greedy_takes_the_lowest_of_equals_and_obeys_penalties() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.9]])
    greedy = SamplingParams(temperature=0.0)
    assert sample(logits, [History(greedy, [], [])]) == ([1], [0.0])
    penalized = SamplingParams(temperature=0.0, repetition_penalty=1.5)
    assert sample(logits, [History(penalized, [1], [2])])[0] == [3]


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
    exact = filtered(logits, **params).double().softmax(-1)[0]
    draws = 50_000
    ids, kept = left(logits[0], SamplingParams(**params))
    counts = torch.zeros(20, dtype=torch.long)
    for i in range(draws):
        token, logprob = draw(ids, kept, i // 500, i % 500)
        counts[token] += 1
        if i < 20:
            assert math.exp(logprob) == pytest.approx(float(exact[token]), rel=1e-6)
    assert counts[exact == 0].sum() == 0
    support = exact > 0
    assert chi_square_holds(counts[support], exact[support])
    assert not chi_square_holds(counts[support], exact[support].roll(1)), "it has no power"


def chi_square_holds(counts: torch.Tensor, exact: torch.Tensor) -> bool:
    """Below the 99.9th percentile of chi-square (Wilson and Hilferty 1931)."""
    expected = exact * counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    free = len(counts) - 1
    return statistic < free * (1 - 2 / (9 * free) + 3.09 * math.sqrt(2 / (9 * free))) ** 3


def test_two_models_with_the_same_noise_agree_as_often_as_the_closed_form_says() -> None:
    """Σₓ 1 / Σ_y max(p_y/p_x, q_y/q_x): what an accepted draft's probability is (Daliri et al. 2024)."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(24, generator=generator) * 1.5
    other = base + torch.randn(24, generator=generator) * 0.7
    p, q = base.double().softmax(-1), other.double().softmax(-1)
    ratios = torch.maximum(p[None] / p[:, None], q[None] / q[:, None])
    expected = float((1 / ratios.sum(1)).sum())
    ids = np.arange(24)
    draws = 30_000
    same = sum(
        draw(ids, base.numpy(), 9, at)[0] == draw(ids, other.numpy(), 9, at)[0]
        for at in range(draws)
    )
    assert same / draws == pytest.approx(expected, abs=0.01)
    assert expected < float(torch.minimum(p, q).sum())


def test_sample_is_keyed_by_seed_and_position_alone() -> None:
    logits = torch.zeros(6, 1000)

    def history(seed: int, prompt: int, output: int) -> History:
        return History(SamplingParams(), [1] * prompt, [1] * output, seed)

    rows = [history(0, 5, 2), history(0, 3, 4), history(1, 5, 2), history(0, 5, 3)]
    tokens, _ = sample(logits[:4], rows)
    assert tokens[0] == tokens[1], "the same seed at the same position"
    assert len(set(tokens)) == 3
    assert sample(logits[:1], rows[2:3])[0] == tokens[2:3]


def test_bad_words_are_transformers() -> None:
    ids = torch.randint(0, 6, (1000, 5), generator=torch.Generator().manual_seed(6))
    words = [[3], [1, 2], [4, 0, 5]]
    expected = NoBadWordsLogitsProcessor(words, eos_token_id=47)(ids, LOGITS.clone())
    rows = [
        History(SamplingParams(), [], row, bad_words=tuple(map(tuple, words)))
        for row in ids.tolist()
    ]
    assert torch.equal(process(LOGITS, rows), expected)


def test_bias_and_min_tokens_are_transformers() -> None:
    ids = torch.randint(0, VOCABULARY, (1000, 6), generator=torch.Generator().manual_seed(7))
    bias = {3: 4.5, 11: -100.0}
    biased = SequenceBiasLogitsProcessor({(id,): value for id, value in bias.items()})
    rows = [History(SamplingParams(logit_bias=bias), row, []) for row in ids.tolist()]
    assert torch.equal(process(LOGITS, rows), biased(ids, LOGITS.clone()))
    for written in (1, 3, 4, 5):
        prompt, output = ids[:, : 6 - written], ids[:, 6 - written :]
        least = MinNewTokensLengthLogitsProcessor(prompt.shape[1], 4, [7, 9])
        rows = [
            History(SamplingParams(min_tokens=4), a, b, stop_ids=frozenset({7, 9}))
            for a, b in zip(prompt.tolist(), output.tolist(), strict=True)
        ]
        assert torch.equal(process(LOGITS, rows), least(ids, LOGITS.clone()))


def test_allowed_ids_and_masks_leave_only_what_they_allow() -> None:
    rows = [History(SamplingParams(allowed_token_ids=(2, 40)), [], [])] * 1000
    got = process(LOGITS, rows)
    assert torch.equal(got[:, [2, 40]], LOGITS[:, [2, 40]])
    assert got.isneginf().sum(1).ge(VOCABULARY - 2).all()
    masks = torch.zeros(1000, 2, dtype=torch.int32)
    masks[:, 0], masks[:, 1] = (1 << 2) | -(1 << 31), 1 << 8  # 2, 31 and 40
    got = process(LOGITS, [History(SamplingParams(), [], [])] * 1000, masks)
    assert torch.equal(got[:, [2, 31, 40]], LOGITS[:, [2, 31, 40]])
    assert got.isneginf().sum(1).ge(VOCABULARY - 3).all()


def test_log_probabilities_are_the_models_own() -> None:
    for row in LOGITS[:60]:
        expected = row.log_softmax(-1)
        got = token_logprob(row, 5, 3, -0.5)
        assert got.logprob == float(expected[5]) and got.sampled == -0.5
        assert got.rank == 1 + int((row > row[5]).sum())
        assert [value for _, value in got.top] == expected.topk(3).values.tolist()


def test_philox_gives_the_published_numbers() -> None:
    """Known answers of Random123's philox4x32-10."""
    ones = 0xFFFFFFFF
    digits = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    for counter, key, expected in (
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones, ones), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (*digits, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ):
        got = philox((np.array([counter[0]]), *counter[1:]), key)[:, 0]
        assert got.tolist() == list(expected)


def test_noise_depends_on_seed_position_and_token() -> None:
    ids = np.arange(1000)
    noise = exponentials(7, 12, ids)
    assert np.array_equal(noise[[3, 500]], exponentials(7, 12, np.array([3, 500])))
    assert noise.mean() == pytest.approx(1, abs=0.1) and (noise > 0).all()
    others = [exponentials(*key, ids) for key in ((8, 12), (7, 13), (7 + 2**32, 12), (7, 2**32))]
    assert all(abs(np.corrcoef(noise, other)[0, 1]) < 0.1 for other in others)
    assert child_seed(7, 0) == 7 and len({child_seed(7, i) for i in range(50)}) == 50
