"""Data order: permutations are permutations, streams do not depend on how they are cut, shares are exact."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.train.order import epoch_order, mixture, permute

SIZES = st.one_of(st.integers(1, 70), st.integers(1, 5000))


def pieces(cuts: list[int], total: int) -> list[tuple[int, int]]:
    """(first, count) of consecutive stretches of 0..total-1, cut at `cuts`."""
    edges = sorted({0, total, *(cut % (total + 1) for cut in cuts)})
    return [(a, b - a) for a, b in pairwise(edges)]


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(0, 2**40), st.text(max_size=8))
def test_permute_is_a_bijection(size, seed, name):
    found = permute(np.arange(size), size, seed, name)
    assert np.array_equal(np.sort(found), np.arange(size))


@pytest.mark.parametrize("power", range(1, 14))
def test_permute_is_a_bijection_around_powers_of_two(power):
    for size in (2**power - 1, 2**power, 2**power + 1):
        assert np.array_equal(np.sort(permute(np.arange(size), size, 1, "x")), np.arange(size))


def test_permute_reaches_any_index_of_a_huge_range_directly():
    size = 10**12
    index = np.array([0, 1, 5, size - 1])
    found = permute(index, size, 3, "documents")
    assert len(set(found.tolist())) == 4
    assert found.min() >= 0
    assert found.max() < size
    assert np.array_equal(permute(index[2:3], size, 3, "documents"), found[2:3])


def test_permutations_are_keyed_by_seed_and_name_and_leave_few_in_place():
    index = np.arange(1000)
    a, b, c = (
        permute(index, 1000, 0, "a"),
        permute(index, 1000, 1, "a"),
        permute(index, 1000, 0, "b"),
    )
    for one, other in ((a, b), (a, c), (b, c), (a, index)):
        assert (one == other).sum() < 10  # one agreement is expected of random permutations
    # Neighbours are scattered: the mean distance of two random places in 0..n-1 is n/3.
    assert 300 < np.abs(np.diff(a)).mean() < 370


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 99), st.lists(st.integers(0, 10**6), max_size=6))
def test_every_epoch_visits_each_once_however_it_is_cut(size, seed, cuts):
    total = 3 * size
    whole = epoch_order(0, total, size, seed, "n")
    for epoch in whole.reshape(3, size):
        assert np.array_equal(np.sort(epoch), np.arange(size))
    parts = [epoch_order(first, count, size, seed, "n") for first, count in pieces(cuts, total)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_epochs_differ():
    first, second = epoch_order(0, 100, 50, 0, "n").reshape(2, 50)
    assert not np.array_equal(first, second)


WEIGHTS = st.lists(st.integers(1, 400), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(WEIGHTS)
def test_shares_are_exact_over_a_thousand_and_even_on_the_way(weights):
    source, position = mixture(0, 2000, [float(w) for w in weights])
    for number, weight in enumerate(weights):
        mine = source == number
        share = Fraction(weight, sum(weights))
        for thousand in (mine[:1000], mine[1000:]):
            assert abs(int(thousand.sum()) - share * 1000) < 1  # largest remainder
        sofar = np.cumsum(mine)
        ideal = np.arange(1, 2001) * float(share)
        assert np.abs(sofar - ideal).max() <= len(weights)
        # A source's own stream goes on without a gap or a repetition.
        assert np.array_equal(position[mine], np.arange(mine.sum()))


@settings(max_examples=30, deadline=None)
@given(WEIGHTS, st.lists(st.integers(0, 10**6), max_size=6))
def test_mixture_does_not_depend_on_how_it_is_cut(weights, cuts):
    whole = np.stack(mixture(0, 2500, [float(w) for w in weights]))
    parts = [np.stack(mixture(first, count, weights)) for first, count in pieces(cuts, 2500)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
