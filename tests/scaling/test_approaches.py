"""Approaches 1 and 2: exact where theory says so, biased by as much as is known, refused where they say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from gristmill.errors import RequestError
from gristmill.scaling import (
    BESIROGLU,
    HOFFMANN,
    Chinchilla,
    envelope,
    fit_chinchilla,
    isoflop,
    parametric,
    profiles,
)
from gristmill.scaling.approaches import compute_law
from tests.scaling.synthetic import isoflop_runs

BUDGETS = np.geomspace(1e17, 1e21, 5)


def test_a_parabola_is_biased_as_published() -> None:
    runs = isoflop_runs(HOFFMANN, BUDGETS, sizes=15, reach=16)
    found = isoflop(runs, samples=0)
    for flops, params, _ in found.front:
        assert params / HOFFMANN.optimum(flops).params == pytest.approx(1.0537, abs=1e-4)
    assert found.exponent == pytest.approx(0.451613, abs=1e-6)
    assert any("reach up to 16.9" in line for line in found.warnings)


def test_narrow_profiles_are_less_biased() -> None:
    found = isoflop(isoflop_runs(HOFFMANN, BUDGETS, sizes=9, reach=2), samples=0)
    assert not found.warnings
    for flops, params, bottom in found.front:
        best = HOFFMANN.optimum(flops)
        assert params == pytest.approx(best.params, rel=0.005)
        assert bottom == pytest.approx(best.loss, rel=1e-4)


def test_all_approaches_agree_on_the_exponent() -> None:
    runs = isoflop_runs(BESIROGLU, BUDGETS, sizes=9, reach=3, noise=0.0005)
    fit = fit_chinchilla(runs, samples=100)
    for growth in (parametric(fit), envelope(runs, samples=100), isoflop(runs, samples=100)):
        low, high = growth.interval
        assert low <= BESIROGLU.exponent <= high, growth.name
        assert growth.exponent == pytest.approx(BESIROGLU.exponent, abs=0.06), growth.name
        best = BESIROGLU.optimum(1e22).params
        assert growth.params(1e22) == pytest.approx(best, rel=0.5)
        low, high = growth.params_interval(1e22)
        assert low < best < high


def test_a_bottom_outside_the_sizes_is_no_bottom() -> None:
    runs = isoflop_runs(BESIROGLU, BUDGETS[:2], sizes=9)
    small = runs.only(
        runs.params < 0.8 * np.array([BESIROGLU.optimum(c).params for c in runs.flops])
    )
    assert {profile.problem for profile in profiles(small)} == {
        "its bottom lies outside the sizes trained"
    }
    with pytest.raises(RequestError, match=r"0 budgets.*outside"):
        isoflop(small)


def test_an_envelope_of_few_is_refused() -> None:
    with pytest.raises(RequestError, match="approach 1 takes 4"):
        envelope(isoflop_runs(BESIROGLU, BUDGETS[:3]))


def test_without_a_floor_the_front_is_a_power_law() -> None:
    """Of A/N^a + B/D^a the best loss falls as C^(-a/2), the best N grows as its root."""
    runs = isoflop_runs(Chinchilla(1e-12, 400.0, 400.0, 0.3, 0.3), BUDGETS)
    growth = isoflop(runs, samples=0)
    assert compute_law(growth).exponent == pytest.approx(0.15, abs=1e-6)
    assert growth.exponent == pytest.approx(0.5, abs=1e-6)
