"""The search of benchmarks.train for the tokens that a peer needs, on learning curves known in closed form."""

from __future__ import annotations

import math

import pytest

from benchmarks.train import LONGEST, tokens_to_reach


@pytest.mark.parametrize("needed", [300, 999, 1000, 1001, 1700, 2000, 5600, 7999])
def test_finds_where_a_curve_crosses_the_target(needed: int) -> None:
    def loss(tokens: float) -> float:
        return 9 - 0.5 * math.log(tokens)

    found, tried = tokens_to_reach(loss(needed), 1000, loss)
    assert found == pytest.approx(needed, rel=1e-3)
    assert min(tokens for tokens, _ in tried) <= needed <= max(tokens for tokens, _ in tried)


def test_what_is_never_reached_is_infinite_and_what_is_reached_at_once_is_the_shortest_run() -> (
    None
):
    found, tried = tokens_to_reach(1.0, 1000, lambda tokens: 5.0)
    assert found == math.inf
    assert max(tokens for tokens, _ in tried) <= LONGEST * 1000
    found, tried = tokens_to_reach(1.0, 1000, lambda tokens: 0.5)
    assert found == min(tokens for tokens, _ in tried) >= 1000 / LONGEST
