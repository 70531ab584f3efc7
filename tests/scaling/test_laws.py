"""Closed forms against published numbers and the properties that define them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.errors import RequestError
from gristmill.scaling import (
    BESIROGLU,
    HOFFMANN,
    KAPLAN,
    MUENNIGHOFF,
    PUBLISHED,
    Chinchilla,
    training_flops,
)
from gristmill.scaling.laws import (
    HOFFMANN_TEX,
    KAPLAN_COMPUTE,
    KAPLAN_PARAMS,
    KAPLAN_TOKENS,
    PF_DAY,
    kaplan_critical_batch,
)

laws = st.builds(
    Chinchilla,
    E=st.floats(0.5, 3),
    A=st.floats(10, 2000),
    B=st.floats(10, 5000),
    alpha=st.floats(0.15, 0.8),
    beta=st.floats(0.15, 0.8),
)


@pytest.mark.parametrize(
    ("law", "losses"),
    [
        (HOFFMANN, (1.9366, 2.0023, 1.9485)),
        (HOFFMANN_TEX, (1.9208, 1.9764, 1.9436)),
        (BESIROGLU, (1.9739, 2.0085, 2.0221)),
    ],
)
def test_published_losses(law: Chinchilla, losses: tuple[float, ...]) -> None:
    runs = ((70e9, 1.4e12), (175e9, 300e9), (8e9, 15e12))
    for (params, tokens), loss in zip(runs, losses, strict=True):
        assert law.loss(params, tokens) == pytest.approx(loss, abs=6e-5)


@pytest.mark.parametrize(
    ("law", "flops", "params", "tokens", "ratio"),
    [
        (HOFFMANN, 5.76e23, 32.19e9, 2.982e12, 92.65),
        (BESIROGLU, 5.76e23, 72.25e9, 1.329e12, 18.39),
        (BESIROGLU, 1e21, 2.778e9, 59.99e9, 21.59),
    ],
)
def test_published_optima(law, flops, params, tokens, ratio) -> None:
    found = law.optimum(flops)
    assert (found.params, found.tokens) == pytest.approx((params, tokens), rel=3e-4)
    assert found.tokens_per_param == pytest.approx(ratio, abs=0.006)


def test_exponents() -> None:
    assert pytest.approx(0.4516, abs=1e-4) == HOFFMANN.exponent
    assert pytest.approx(0.5126, abs=1e-4) == BESIROGLU.exponent
    assert PUBLISHED["besiroglu"] is BESIROGLU


@given(laws, st.floats(15, 26))
def test_no_other_size_is_better(law: Chinchilla, decade: float) -> None:
    flops = 10**decade
    best = law.optimum(flops)
    assert training_flops(best.params, best.tokens) == pytest.approx(flops)
    for factor in (0.5, 0.99, 1.01, 2.0):
        other = law.loss(best.params * factor, best.tokens / factor)
        assert other >= best.loss * (1 - 1e-12)
    assert law.params_for(best.tokens) == pytest.approx(best.params, rel=1e-6)


@given(laws, st.floats(16, 22))
def test_tokens_for_a_loss_is_the_inverse(law: Chinchilla, decade: float) -> None:
    best = law.optimum(10**decade)
    assert law.tokens_for(best.params, best.loss) == pytest.approx(best.tokens, rel=1e-5)
    assert law.tokens_for(best.params, law.E) == math.inf


def test_training_flops_of_known_models() -> None:
    assert training_flops(175e9, 300e9) == pytest.approx(3.15e23)
    assert training_flops(405e9, 15.6e12) == pytest.approx(3.79e25, rel=1e-3)


def test_inference_makes_models_smaller() -> None:
    found = HOFFMANN.for_inference(1.9366, 1e12)
    assert (found.params, found.tokens) == pytest.approx((25.68e9, 3.222e12), rel=3e-4)
    assert found.flops + found.inference == pytest.approx(5.478e23, rel=3e-4)
    best = HOFFMANN.optimum(1e21)
    assert HOFFMANN.for_inference(best.loss, 0.0).params == pytest.approx(best.params, rel=1e-3)
    with pytest.raises(RequestError, match=r"floor E is 1\.69"):
        HOFFMANN.for_inference(1.5, 0.0)


def test_repeated_data() -> None:
    worth = [MUENNIGHOFF.effective_tokens(epochs, 1.0) for epochs in (1, 2, 8, 40, 1e9)]
    assert worth == pytest.approx([1, 1.968199, 6.624119, 15.167465, 16.387756], abs=5e-7)
    # The values that the authors' README prints.
    assert MUENNIGHOFF.loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, abs=1e-12)
    assert MUENNIGHOFF.loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, abs=1e-12)


def test_with_all_new_data_repeated_is_the_plain_law() -> None:
    params, tokens = np.array([1e8, 1e9]), np.array([1e10, 1e11])
    found = MUENNIGHOFF.loss(params, tokens, tokens * 100)
    assert found == pytest.approx(MUENNIGHOFF.base.loss(params, tokens))


def test_with_little_data_smaller_and_longer_is_best() -> None:
    flops = training_flops(8.67e9, 178e9)
    free, scarce = MUENNIGHOFF.base.optimum(flops), MUENNIGHOFF.optimum(flops, 25e9)
    assert scarce.params < free.params and scarce.loss > free.loss
    sizes = np.geomspace(scarce.params / 10, scarce.params * 10, 4001)
    assert scarce.loss <= MUENNIGHOFF.loss(sizes, flops / 6 / sizes, 25e9).min() + 1e-9


def test_kaplan() -> None:
    assert KAPLAN_PARAMS.at(124e6) == pytest.approx(2.78407, abs=5e-6)
    assert KAPLAN_TOKENS.at(1e10) == pytest.approx(2.26244, abs=5e-6)
    assert KAPLAN.loss(124e6, 1e10) == pytest.approx(2.74678, abs=5e-6)
    assert KAPLAN_COMPUTE.at(3.1e8 * PF_DAY) == pytest.approx(1.0)
    assert kaplan_critical_batch(1.0) == 2e8
    # 6ND of 124e6 and 1e10 is 0.0861 PF-days
    assert training_flops(124e6, 1e10) / PF_DAY == pytest.approx(0.08611, abs=1e-5)
