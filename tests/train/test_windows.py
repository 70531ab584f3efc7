"""Training windows: every one once an epoch, the same rows however they are asked for, exact shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import RequestError
from gristmill.train.windows import Windows
from tests.train.corpus import write_tokens

LENGTH = 16
SIZES = {"notes": 16 * 40 + 9, "stdlib": 16 * 100 + 1, "short": 12}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    """Each group counts upwards from a thousand of its own, so a row says where it was cut."""
    groups = {
        name: np.arange(size) + 10_000 * number for number, (name, size) in enumerate(SIZES.items())
    }
    return write_tokens(tmp_path_factory.mktemp("windows"), {"train": groups, "heldout": {}})


def windows(tokens: Path, weights: dict[str, float] | None = None, seed: int = 0) -> Windows:
    return Windows(tokens, "train", LENGTH, weights or {}, seed)


def group_of(row: np.ndarray) -> str:
    return list(SIZES)[int(row[0]) // 10_000]


def test_a_row_is_consecutive_tokens_of_one_group(tokens):
    rows = windows(tokens).rows(0, 400)
    assert rows.shape == (400, LENGTH + 1)
    assert (np.diff(rows, axis=1) == 1).all()
    assert {group_of(row) for row in rows} == {"notes", "stdlib"}


@pytest.mark.parametrize("group", ["notes", "stdlib"])
def test_every_window_comes_once_an_epoch_and_covers_the_group(tokens, group):
    count = (SIZES[group] - 1) // LENGTH
    starts = windows(tokens, {group: 1.0}).rows(0, 3 * count)[:, 0].reshape(3, count)
    for epoch in starts:
        ordered = np.sort(epoch)
        assert (np.diff(ordered) == LENGTH).all()  # end to end, no overlap, no gap
    assert not np.array_equal(starts[0], starts[1])
    # Only "notes" has room to move: the cuts of its second epoch lie elsewhere.
    moved = starts[1].min() - starts[0].min()
    assert (moved != 0) == (group == "notes")


@settings(max_examples=25, deadline=None)
@given(first=st.integers(0, 5000), counts=st.lists(st.integers(0, 40), min_size=1, max_size=5))
def test_rows_do_not_depend_on_how_they_are_asked_for(tokens, first, counts):
    stream = windows(tokens, {"notes": 1, "stdlib": 2.5})
    whole = stream.rows(first, sum(counts))
    edges = np.cumsum([0, *counts])
    parts = [stream.rows(first + int(a), c) for a, c in zip(edges, counts, strict=False)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_groups_are_mixed_by_weight(tokens):
    rows = windows(tokens, {"notes": 3, "stdlib": 1}).rows(0, 1000)
    assert sum(group_of(row) == "notes" for row in rows) == 750


def test_without_weights_groups_are_mixed_by_size(tokens):
    rows = windows(tokens).rows(0, 1000)
    share = SIZES["notes"] / (SIZES["notes"] + SIZES["stdlib"])
    assert sum(group_of(row) == "notes" for row in rows) == round(1000 * share)


def test_a_group_without_weight_is_left_out(tokens):
    stream = windows(tokens, {"notes": 0, "stdlib": 2})
    assert {group_of(row) for row in stream.rows(0, 200)} == {"stdlib"}
    assert stream.total == SIZES["stdlib"]


def test_another_seed_is_another_order(tokens):
    a, b = (windows(tokens, {"stdlib": 1}, seed).rows(0, 100) for seed in (0, 1))
    assert not np.array_equal(a, b)
    assert np.array_equal(np.sort(a[:, 0]), np.sort(b[:, 0]))


def test_an_unknown_group_is_refused_with_the_nearest(tokens):
    with pytest.raises(RequestError, match=r'names "stdlb".*Did you mean "stdlib"\?'):
        windows(tokens, {"stdlb": 1})


def test_weights_that_leave_nothing_are_refused(tokens):
    with pytest.raises(RequestError, match="leaves no group"):
        windows(tokens, {"stdlib": 0})


def test_a_negative_weight_is_refused(tokens):
    with pytest.raises(RequestError, match=r"pretrain\.weights\.notes must not be negative: -1"):
        windows(tokens, {"stdlib": 1, "notes": -1})


def test_a_corpus_shorter_than_a_window_is_refused(tokens):
    with pytest.raises(RequestError, match="no train group of more than 5000 tokens"):
        Windows(tokens, "train", 5000, {}, 0)
    with pytest.raises(RequestError, match="no heldout group"):
        Windows(tokens, "heldout", LENGTH, {}, 0)
