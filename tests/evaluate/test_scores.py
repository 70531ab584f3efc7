"""Check values come from lm-eval 0.4.13, run with a scripted model."""

from __future__ import annotations

import math

import pytest

from gristmill.errors import RequestError
from gristmill.evaluate import scores

CHOICES = [("no", "yes indeed"), ("café", "tea", "cocoa"), ("alpha", "be")]
LOGPROBS = [(-4, -6), (-5, -4.5, -6), (-1, -2.5)]
ALONE = [(-2, -9), (-3, -1, -7), (-1.5, -2)]
GOLD = [1, 0, 0]


def accuracy(rows: list[list[float]]) -> list[float]:
    return [float(scores.best(row) == gold) for row, gold in zip(rows, GOLD, strict=True)]


def test_multiple_choice_scores_are_those_of_lm_eval() -> None:
    plain = accuracy([list(row) for row in LOGPROBS])
    assert scores.mean_and_stderr(plain) == pytest.approx((1 / 3, 0.333333), abs=1e-6)
    rows = list(zip(LOGPROBS, CHOICES, strict=True))
    assert sum(accuracy([scores.by_characters(*row) for row in rows])) == 2
    assert sum(accuracy([scores.by_bytes(*row) for row in rows])) == 3
    pairs = zip(LOGPROBS, ALONE, strict=True)
    assert sum(accuracy([scores.mutual_information(*pair) for pair in pairs])) == 2


def test_brier_score_is_that_of_lm_eval() -> None:
    two = scores.brier([LOGPROBS[0], LOGPROBS[2]], [GOLD[0], GOLD[2]])
    assert two == pytest.approx(0.809083, abs=1e-6)
    assert scores.brier([LOGPROBS[1]], [GOLD[1]]) == pytest.approx(0.760482, abs=1e-6)


def test_the_first_of_equals_wins() -> None:
    assert scores.best([-1.0, -0.5, -0.5]) == 1


def test_standard_errors() -> None:
    # Miller 2024's formula on the reference's example: three clusters of three.
    values = [1.0, 1, 0, 1, 0, 0, 1, 1, 1]
    mean, plain = scores.mean_and_stderr(values)
    assert (mean, plain) == pytest.approx((0.666667, 0.166667), abs=1e-6)
    _, clustered = scores.clustered_mean_and_stderr(values, list("aaabbbccc"))
    assert clustered == pytest.approx(0.157135, abs=1e-6)
    assert math.isnan(scores.mean_and_stderr([1.0])[1])
    assert math.isnan(scores.clustered_mean_and_stderr([1.0, 0.0], ["a", "a"])[1])


def test_an_answer_that_is_no_choice_is_refused_by_place() -> None:
    with pytest.raises(RequestError, match="line 3: the answer is choice 4"):
        scores.check_answer(4, ["a", "b"], "choices.jsonl, line 3")
    with pytest.raises(RequestError):
        scores.check_answer(-1, ["a", "b"], "x")
