"""Learning-rate schedules against their closed forms."""

from __future__ import annotations

import math

import pytest

from gristmill.train.schedule import lr_scale


def scale(step: int, steps: int = 100, **settings) -> float:
    return lr_scale(
        step, steps, **{"schedule": "wsd", "warmup_steps": 10, "decay_fraction": 0.5, **settings}
    )


def test_warmup_is_linear_and_complete_at_its_last_step():
    found = [scale(step, schedule="constant") for step in range(12)]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0])


def test_wsd_holds_and_then_falls_linearly_to_one_step_above_zero():
    found = [scale(step) for step in range(100)]
    assert found[10:51] == pytest.approx([1.0] * 41)
    assert found[50:] == pytest.approx([(100 - step) / 50 for step in range(50, 100)])
    assert found[-1] == pytest.approx(1 / 50)


def test_cosine():
    assert scale(25, schedule="cosine") == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert scale(50, schedule="cosine") == pytest.approx(0.5)
    assert scale(75, schedule="cosine") == pytest.approx(0.5 - math.sqrt(0.5) / 2)


def test_no_warmup_and_no_decay():
    assert scale(0, warmup_steps=0, schedule="constant") == 1.0
    assert scale(99, decay_fraction=0.0) == 1.0


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_every_step_moves_and_none_exceeds_the_peak(schedule, steps):
    for step in range(steps):
        found = scale(step, steps, schedule=schedule, decay_fraction=1.0)
        assert 0 < found <= 1
