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

from gristmill.engine.philox import philox
from gristmill.engine.sampler import (
    History,
    draw,
    left,
    process,
    sample,
    sample_torch,
    token_logprob,
)
from gristmill.kernels import has_native
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


def chain(rows: torch.Tensor, ids: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """transformers' processors one after the other; ids are three of a prompt and three of an output."""
    steps = [
        NoBadWordsLogitsProcessor([[3], [1, 2]], eos_token_id=47),
        MinNewTokensLengthLogitsProcessor(3, 4, [7]),
        SequenceBiasLogitsProcessor({(4,): 2.5, (9,): -3.0}),
        RepetitionPenaltyLogitsProcessor(1.3),
        TemperatureLogitsWarper(1.4),
        MinPLogitsWarper(0.03),
        TopKLogitsWarper(11),
        TopPLogitsWarper(0.8),
    ]
    for i in order:
        rows = steps[i](ids, rows)
    return rows


def test_the_whole_chain_in_our_order() -> None:
    untied = torch.cat((LOGITS[:100], LOGITS[340:]))
    ids = torch.randint(0, 12, (len(untied), 6), generator=torch.Generator().manual_seed(8))
    params = SamplingParams(
        min_tokens=4,
        logit_bias={4: 2.5, 9: -3.0},
        repetition_penalty=1.3,
        temperature=1.4,
        min_p=0.03,
        top_k=11,
        top_p=0.8,
    )
    rows = [
        History(params, row[:3], row[3:], 0, frozenset({7}), ((3,), (1, 2))) for row in ids.tolist()
    ]
    got = torch.full_like(untied, -math.inf)
    for logits, kept in zip(process(untied, rows), got, strict=True):
        at, values = left(logits, params)
        kept[torch.from_numpy(at)] = torch.from_numpy(values)
    assert torch.equal(got, chain(untied, ids, tuple(range(8))))
    for other in ((0, 1, 3, 2, 4, 5, 6, 7), (0, 1, 2, 3, 5, 6, 7, 4), (0, 1, 2, 3, 4, 7, 6, 5)):
        assert not torch.equal(got, chain(untied, ids, other)), (
            "another order is seen to be another"
        )


def large_rows() -> torch.Tensor:
    """30 rows of 20,000: from flat to sharp, ties among them, as of half precision, and with most ids banned."""
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(30, 20_000, generator=generator) * torch.linspace(0.6, 6, 30)[:, None]
    rows[:5] = rows[:5].round()  # ties across the edge
    rows[5:10] = rows[5:10].bfloat16().float()
    rows[10:15, 300:] = -math.inf
    return rows


LARGE = large_rows()


@pytest.mark.parametrize("p", [1e-9, 0.3, 0.95, 0.9999])
def test_top_p_of_a_large_vocabulary(p: float) -> None:
    """Where only a bin is sorted, what is kept is what sorting all keeps: of equals the lower ids."""
    got = filtered(LARGE, top_p=p)
    expected = TopPLogitsWarper(p)(NO_IDS[:30], LARGE.clone().double()).float()
    assert_same_cut(got, expected, ties=True)
    assert_same_cut(got[15:], expected[15:])
    for row, kept in zip(LARGE[:10], got[:10].isfinite(), strict=True):
        least = row[kept].min()
        assert kept[row > least].all()
        equals = kept[row == least].tolist()
        assert equals == sorted(equals, reverse=True)


@pytest.mark.parametrize("k", [1, 50, 299, 301, 312, 313, 5000, 19_999])
def test_top_k_of_a_large_vocabulary(k: int) -> None:
    expected = TopKLogitsWarper(k)(NO_IDS[:30], LARGE.clone())
    assert_same_cut(filtered(LARGE, top_k=k), expected)


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
    masks = torch.randint(-(2**31), 2**31, (64, 2), generator=torch.Generator().manual_seed(9))
    masks = masks.to(torch.int32) | 1  # something is allowed
    for given in (None, masks):
        together = sample(LOGITS[:64], rows, given)
        twins = sample_torch(process(LOGITS[:64], rows, given), rows)
        for i, row in enumerate(rows):
            its_mask = None if given is None else given[i : i + 1]
            logits = LOGITS[i : i + 1].clone()
            alone = sample(logits, [row], its_mask)
            assert (alone[0][0], alone[1][0]) == (together[0][i], together[1][i])
            twin = sample_torch(process(logits, [row], its_mask), [row])
            assert (twin[0][0], twin[1][0]) == (twins[0][i], twins[1][i])
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


def race(ids: np.ndarray, logits: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """What `draw` gives at the positions 0 to draws - 1, all at once: the rule written down a second time."""
    quartets = np.arange(int(ids.max()) // 4 + 1)
    first, position = np.tile(quartets, draws), np.repeat(np.arange(draws), len(quartets))
    words = philox((first, position, 0, 0), (seed, 0))  # type: ignore[arg-type]
    uniform = (words.T.reshape(draws, -1)[:, ids] + 0.5) / 2**32
    gumbel = -np.log(-np.log(uniform))
    return ids[(logits.astype(np.float64) + gumbel).argmax(1)]


CUTS = [
    {},
    {"temperature": 0.6},
    {"temperature": 2.0},
    {"top_k": 6},
    {"top_p": 0.7},
    {"top_p": 0.9, "temperature": 0.5},
    {"min_p": 0.1, "temperature": 1.5},
    {"min_p": 0.01, "top_k": 30, "top_p": 0.9, "temperature": 1.2},
]


@pytest.mark.parametrize("params", CUTS, ids=str)
def test_draws_follow_the_exact_distribution(params: dict) -> None:
    """Chi-square over 100,000 positions; p is computed in float64 from the logits that transformers keeps."""
    logits = torch.randn(1, 64, generator=torch.Generator().manual_seed(3)) * 1.5
    expected = logits.clone()
    for name, warper in (
        ("temperature", TemperatureLogitsWarper),
        ("min_p", MinPLogitsWarper),
        ("top_k", TopKLogitsWarper),
        ("top_p", TopPLogitsWarper),
    ):
        if name in params:
            expected = warper(params[name])(NO_IDS[:1], expected)
    exact = expected.double().softmax(-1)[0]
    ids, kept = left(logits[0], SamplingParams(**params))
    tokens = race(ids, kept, 11, 100_000)
    rows = [History(SamplingParams(**params), [0] * at, [], 11) for at in range(300)]
    for draws in (sample(logits.expand(300, -1), rows), sample_torch(logits.expand(300, -1), rows)):
        assert draws[0] == tokens[:300].tolist()
        assert draws[1] == pytest.approx(exact[draws[0]].log().tolist(), abs=2e-6)
    counts = torch.from_numpy(np.bincount(tokens, minlength=64))
    assert counts[exact == 0].sum() == 0
    support = exact > 0
    assert chi_square_holds(counts[support], exact[support])
    assert not chi_square_holds(counts[support], exact[support].roll(1)), "it has no power"
    warmer = (expected.double() / 1.03).softmax(-1)[0]
    assert not chi_square_holds(counts[support], warmer[support]), "3% of temperature are seen"


@pytest.mark.skipif(not has_native, reason="the extension was not built")
@pytest.mark.parametrize("params", [*CUTS, {"temperature": 0.0}], ids=str)
def test_native_code_and_its_twin_draw_the_same(params: dict) -> None:
    for logits in (LOGITS, LARGE):
        rows = [
            History(SamplingParams(**params), [1] * (i % 9), [2], i) for i in range(len(logits))
        ]
        (tokens, shares), (others, other_shares) = sample(logits, rows), sample_torch(logits, rows)
        assert tokens == others
        assert shares == pytest.approx(other_shares, abs=2e-6)


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
    ids, draws = np.arange(24), 200_000
    ours, theirs = race(ids, base.numpy(), 9, draws), race(ids, other.numpy(), 9, draws)
    for at in range(100):
        assert draw(ids, base.numpy(), 9, at)[0] == ours[at]
    assert (ours == theirs).mean() == pytest.approx(expected, rel=0.01)
    apart = race(ids, other.numpy(), 10, draws)
    assert (ours == apart).mean() < expected * 0.7, (
        "with noise of its own it agrees by chance alone"
    )
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
