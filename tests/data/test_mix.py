"""Mixing: the sums, caps and closed forms of waterfilling, and documents drawn for part of an epoch."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gristmill.data.mix import draws, mixture
from gristmill.errors import RequestError

NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True)


@st.composite
def asked(draw):
    """(sizes, weights, caps) with at least one source that can be drawn from."""
    names = draw(NAMES)
    sizes = {name: draw(st.integers(1, 10**7)) for name in names}
    weights = {name: draw(st.integers(0, 9)) / 10 for name in names}
    assume(any(weights.values()))
    caps = {name: draw(st.sampled_from([0, 0.3, 1, 2.5, 4, 16, math.inf])) for name in names}
    return sizes, weights, caps


def most(sizes, weights, caps) -> float:
    return sum(
        math.inf if math.isinf(caps[n]) else math.floor(Fraction(str(caps[n])) * sizes[n])
        for n in sizes
        if weights[n]
    )


def tokens(found) -> dict[str, int]:
    return {name: share.tokens for name, share in found.items()}


def test_closed_forms():
    sizes = {"web": 1000, "books": 100}
    assert tokens(mixture(sizes, 440)) == {"web": 400, "books": 40}
    even = {"web": 1, "books": 1}
    assert tokens(mixture(sizes, 440, weights=even)) == {"web": 220, "books": 220}
    # books stop at 4 epochs; the web takes what they leave
    found = mixture(sizes, 1000, weights=even)
    assert tokens(found) == {"web": 600, "books": 400}
    assert found["books"].capped and not found["web"].capped
    assert found["books"].epochs == 4 and found["web"].epochs == 0.6
    # weights of square roots, as with temperature 2: sqrt(1000 : 10) = 10 : 1
    tempered = mixture({"a": 1000, "b": 10}, 33, temperature=2, max_epochs=math.inf)
    assert tokens(tempered) == {"a": 30, "b": 3}
    assert tokens(mixture({"a": 9, "b": 1}, 10, temperature=math.inf, max_epochs=9)) == {
        "a": 5,
        "b": 5,
    }
    # two caps bind one after the other: 30 + 30 + 30, then c fills and 10 goes to a and b, then b fills
    three = mixture({"a": 100, "b": 32, "c": 20}, 90, temperature=math.inf, max_epochs=1)
    assert tokens(three) == {"a": 38, "b": 32, "c": 20}


def test_equal_remainders_go_by_name():
    sizes = {"b": 9, "a": 9, "c": 9}
    assert tokens(mixture(sizes, 10)) == {"b": 3, "a": 4, "c": 3}
    assert tokens(mixture(sizes, 11)) == {"b": 4, "a": 4, "c": 3}
    assert list(mixture(sizes, 10)) == ["b", "a", "c"]


@given(asked(), st.integers(0, 10**7))
def test_sums_caps_and_proportions(question, budget):
    sizes, weights, caps = question
    assume(budget <= most(*question))
    found = mixture(sizes, budget, weights=weights, max_epochs=caps)
    assert sum(tokens(found).values()) == budget
    levels = []
    for name, share in found.items():
        assert share.tokens >= 0 and share.epochs == share.tokens / sizes[name]
        assert share.tokens <= caps[name] * sizes[name] + 1e-6
        if not weights[name]:
            assert share.tokens == 0
        elif not share.capped:
            levels.append((share.tokens / weights[name], 1 / weights[name]))
    # λ is the same for all that are not capped, within their rounding, and lies above that of those that are
    for level, slack in levels:
        for other, other_slack in levels:
            assert abs(level - other) <= slack + other_slack + 1e-6
    for name, share in found.items():
        if share.capped and levels:
            assert share.tokens / weights[name] <= min(level + slack for level, slack in levels)


@given(asked(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_larger_budget_takes_nothing_away(question, budget, more):
    sizes, weights, caps = question
    assume(budget + more <= most(*question))
    less = tokens(mixture(sizes, budget, weights=weights, max_epochs=caps))
    greater = tokens(mixture(sizes, budget + more, weights=weights, max_epochs=caps))
    assert all(greater[name] >= less[name] - 1 for name in sizes)  # one token of rounding


@given(asked())
def test_what_the_caps_do_not_let_through_is_refused(question):
    limit = most(*question)
    assume(math.isfinite(limit))
    limit = int(limit)
    sizes, weights, caps = question
    assert sum(tokens(mixture(sizes, limit, weights=weights, max_epochs=caps)).values()) == limit
    with pytest.raises(RequestError, match=rf"give {limit:,} at most"):
        mixture(sizes, limit + 1, weights=weights, max_epochs=caps)


def test_wrong_requests_name_the_cure():
    sizes = {"web": 10, "books": 10, "empty": 0}
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"weights": {"boks": 1.0}}, 'Did you mean "books"'),
        ({"weights": {"web": -1}}, "0 or more"),
        ({"weights": {"web": math.nan}}, "0 or more"),
        ({"weights": {"web": 0}}, "no source has both"),
        ({"weights": {"empty": 1}}, "no tokens"),
        ({"temperature": 0}, "above 0"),
        ({"max_epochs": {"wbe": 1}}, 'Did you mean "web"'),
        ({"max_epochs": -1}, "0 or more"),
    )
    for wrong, says in cases:
        with pytest.raises(RequestError, match=says):
            mixture(sizes, 5, **wrong)
    with pytest.raises(RequestError, match="budget"):
        mixture(sizes, -1)
    assert mixture(sizes, 5)["empty"].tokens == 0
    assert tokens(mixture({"a": 10**9, "b": 1}, 10, temperature=1e-3))["a"] == 10


LENGTHS = st.lists(st.integers(1, 1000), min_size=1, max_size=40)


@given(LENGTHS, st.integers(0, 50_000), st.integers(0, 3))
def test_documents_for_part_of_an_epoch(lengths, wanted, seed):
    ids = [f"d{i}" for i in range(len(lengths))]
    times = draws(ids, lengths, wanted, seed)
    assert abs(int((times * lengths).sum()) - wanted) <= max(lengths) / 2
    assert set(times.tolist()) <= {wanted // sum(lengths), wanted // sum(lengths) + 1}
    more = draws(ids, lengths, wanted + 77, seed)
    assert (more >= times).all()
    # their order in the source decides nothing
    shuffled = np.random.default_rng(0).permutation(len(ids))
    again = draws([ids[i] for i in shuffled], [lengths[i] for i in shuffled], wanted, seed)
    assert (again == times[shuffled]).all()


def test_another_seed_draws_others_and_all_alike_often():
    ids = [f"d{i}" for i in range(400)]
    taken = np.array([draws(ids, [10] * 400, 1000, seed) for seed in range(200)])
    assert (taken.sum(1) == 100).all()
    # each is drawn with probability 1/4: 50 of 200, standard deviation 6.1
    assert abs(taken.sum(0) - 50).max() < 5 * 6.1
    with pytest.raises(RequestError, match="cannot be drawn"):
        draws([], [], 5, 0)
    assert draws([], [], 0, 0).tolist() == []
