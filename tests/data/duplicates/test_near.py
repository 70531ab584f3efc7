"""Near duplicates against the formula of banding, brute force over all pairs, and one-at-a-time algorithms."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from corpus import labels_of

from gristmill.data.duplicates.bands import BUCKET, pairs_in
from gristmill.data.duplicates.clusters import components, leaders
from gristmill.data.duplicates.near import NearConfig, drop_near
from gristmill.data.duplicates.similar import jaccard_pairs, jaccard_pairs_plain
from gristmill.data.text import shingles

SOURCES = Path(np.__file__).parent  # real text in files that resemble each other


@pytest.mark.parametrize("shared", [200, 225, 247, 257, 267, 284, 292])
def test_recall_is_what_banding_promises(tmp_path: Path, shared: int) -> None:
    """600 pairs of sets of 300 at a Jaccard of 0.5 to 0.95; the interval is 4.5 standard deviations wide."""
    draw = np.random.default_rng(shared)
    pairs, sets = 600, []
    for _ in range(pairs):
        drawn = draw.integers(0, 2**64, 600 - shared, np.uint64, endpoint=False)
        sets += [np.unique(drawn[:300]), np.unique(drawn[300 - shared :])]
    labels = labels_of(tmp_path, sets, [1] * len(sets))
    drop_near(labels, NearConfig(threshold=0.01), tmp_path)
    similarity = shared / (600 - shared)
    promised = 1 - (1 - similarity**5) ** 22
    error = 4.5 * sqrt(promised * (1 - promised) / pairs) + 1 / pairs
    assert abs((~labels.kept).mean() * 2 - promised) <= error
    gone = np.flatnonzero(~labels.kept)
    assert (labels.of[gone] == gone - 1).all()
    assert labels.similarity[gone] == pytest.approx(similarity, abs=1e-6)


def edited_pages(count: int) -> list[str]:
    """Pages of real sources, each with up to two copies in which some lines are others."""
    draw = np.random.default_rng(1)
    lines = [
        line
        for path in sorted(SOURCES.rglob("*.py"))[:400]
        for line in path.read_text("utf-8", "replace").splitlines()
        if line.strip()
    ]
    out: list[str] = []
    at = 0
    while len(out) < count:
        page = lines[at : at + 30]
        at = (at + 30) % (len(lines) - 30)
        out.append("\n".join(page))
        for _ in range(int(draw.integers(0, 3))):
            copy = list(page)
            for _ in range(int(draw.integers(0, 7))):
                copy[int(draw.integers(30))] = lines[int(draw.integers(len(lines)))]
            out.append("\n".join(copy))
    return out[:count]


def similar_pairs(sets: list[np.ndarray]) -> dict[tuple[int, int], float]:
    """Every pair that shares a shingle, by an inverted index."""
    holders: dict[int, list[int]] = defaultdict(list)
    for number, one in enumerate(sets):
        for shingle in one.tolist():
            holders[shingle].append(number)
    both = Counter(
        (a, b) for held in holders.values() for i, b in enumerate(held) for a in held[:i]
    )
    return {(a, b): n / (len(sets[a]) + len(sets[b]) - n) for (a, b), n in both.items()}


def test_three_thousand_real_pages_against_all_pairs(tmp_path: Path) -> None:
    texts = edited_pages(3000)
    sets = [shingles(text) for text in texts]
    sizes = [len(text) for text in texts]
    labels = labels_of(tmp_path, sets, sizes)
    drop_near(labels, NearConfig(), tmp_path)

    true = similar_pairs(sets)
    alike: dict[int, list[int]] = defaultdict(list)
    for (a, b), similarity in true.items():
        if similarity >= 0.8:
            alike[a].append(b)
            alike[b].append(a)
    stays: set[int] = set()
    for number in sorted(range(3000), key=lambda n: (-sizes[n], n)):
        if not stays.intersection(alike[number]):
            stays.add(number)
    expected = set(range(3000)) - stays
    dropped = set(np.flatnonzero(~labels.kept).tolist())
    assert len(expected) > 400  # enough for the shares below to mean something
    assert len(expected & dropped) >= 0.99 * len(expected)
    assert len(dropped - expected) <= 0.005 * len(dropped)
    for number in dropped:  # what is named is similar, truly, and stays
        of = int(labels.of[number])
        assert labels.kept[of]
        pair = (min(number, of), max(number, of))
        assert true[pair] >= 0.8
        assert labels.similarity[number] == pytest.approx(true[pair], abs=1e-6)


def test_order_and_parts_decide_nothing(tmp_path: Path) -> None:
    texts = edited_pages(400)
    sets = [shingles(text) for text in texts]
    draw = np.random.default_rng(2)
    sizes = draw.permutation(400).tolist()  # all different, so that no tie is left to the order
    found = []
    for turn, part_rows in enumerate((1000, 37)):
        order = np.arange(400) if turn == 0 else draw.permutation(400)
        shuffled = [sets[at] for at in order]
        labels = labels_of(
            tmp_path / str(turn), shuffled, [sizes[at] for at in order], part_rows=part_rows
        )
        drop_near(labels, NearConfig(), tmp_path)
        gone = np.flatnonzero(~labels.kept)
        found.append({int(order[at]): int(order[labels.of[at]]) for at in gone})
    assert found[0] == found[1]
    assert len(found[0]) > 50


def test_quality_comes_before_length_and_length_before_order(tmp_path: Path) -> None:
    same = np.arange(50, dtype=np.uint64)
    labels = labels_of(tmp_path / "q", [same] * 3, [9, 5, 5], [0.1, 0.9, 0.9])
    drop_near(labels, NearConfig(), tmp_path)
    assert labels.kept.tolist() == [False, True, False]
    labels = labels_of(tmp_path / "l", [same] * 3, [5, 9, 9])
    drop_near(labels, NearConfig(), tmp_path)
    assert labels.kept.tolist() == [False, True, False]


def test_boilerplate_by_the_thousand_stays_linear(tmp_path: Path) -> None:
    count = 20_000
    pairs = pairs_in(np.zeros(count, np.uint64))
    assert len(pairs) <= BUCKET * count
    assert len(np.unique(components(pairs, count))) == 1
    same = np.arange(20, dtype=np.uint64)
    labels = labels_of(tmp_path, [same] * 3000, [1] * 3000)
    drop_near(labels, NearConfig(), tmp_path)
    assert np.flatnonzero(labels.kept).tolist() == [0]


graphs = st.integers(1, 24).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=60),
        st.permutations(range(n)),
    )
)


def as_pairs(edges: list[tuple[int, int]]) -> np.ndarray:
    return np.array([e for e in edges if e[0] != e[1]], np.int64).reshape(-1, 2)


@settings(max_examples=200, deadline=None)
@given(graphs)
def test_leaders_are_those_of_one_at_a_time(
    graph: tuple[int, list[tuple[int, int]], list[int]],
) -> None:
    count, edges, rank = graph
    pairs = as_pairs(edges)
    near = {frozenset(pair) for pair in pairs.tolist()}
    stays: list[int] = []
    for document in sorted(range(count), key=lambda at: rank[at]):
        if not any(frozenset((document, other)) in near for other in stays):
            stays.append(document)
    goes = leaders(pairs, np.array(rank))
    assert np.flatnonzero(~goes).tolist() == sorted(stays)


@settings(max_examples=200, deadline=None)
@given(graphs)
def test_components_are_those_of_a_walk(
    graph: tuple[int, list[tuple[int, int]], list[int]],
) -> None:
    count, edges, _ = graph
    pairs = as_pairs(edges)
    neighbours: dict[int, set[int]] = defaultdict(set)
    for a, b in pairs.tolist():
        neighbours[a].add(b)
        neighbours[b].add(a)
    expected = [-1] * count
    for first in range(count):
        reached = [first] if expected[first] < 0 else []
        while reached:
            at = reached.pop()
            if expected[at] < 0:
                expected[at] = first
                reached += neighbours[at]
    assert components(pairs, count).tolist() == expected


@pytest.mark.parametrize("jaccard", [jaccard_pairs, jaccard_pairs_plain])
@settings(max_examples=100, deadline=None)
@given(sets=st.lists(st.sets(st.integers(0, 30)), min_size=2, max_size=6))
def test_jaccard_is_that_of_sets(jaccard, sets: list[set[int]]) -> None:
    flat = np.array([v for one in sets for v in sorted(one)], np.uint64)
    offsets = np.cumsum([0, *map(len, sets)])
    pairs = np.array([(a, b) for a in range(len(sets)) for b in range(a)], np.int64)
    expected = [len(sets[a] & sets[b]) / max(1, len(sets[a] | sets[b])) for a, b in pairs.tolist()]
    assert jaccard(flat, offsets, pairs).tolist() == expected


def test_a_pair_of_no_set_is_refused() -> None:
    flat, offsets = np.arange(4, dtype=np.uint64), np.array([0, 2, 4])
    for pair in ((0, 2), (-1, 0)):
        with pytest.raises(IndexError, match="pairs of 2 sets"):
            jaccard_pairs(flat, offsets, np.array([pair]))
    assert jaccard_pairs(flat, offsets, np.empty((0, 2), np.int64)).tolist() == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=60))
def test_pairs_are_all_that_share_a_hash(hashes: list[int]) -> None:
    expected = {(a, b) for b in range(len(hashes)) for a in range(b) if hashes[a] == hashes[b]}
    found = pairs_in(np.array(hashes, np.uint64))
    assert len(found) == len(expected)
    assert {tuple(pair) for pair in found.tolist()} == expected
