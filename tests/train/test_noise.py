"""The gradient noise scale against problems whose noise is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gristmill.train.noise import NoiseMeter, estimate

# Loss of an example x at w: ½ (w - x)ᵀ H (w - x), x ~ N(μ, C). Its gradient H (w - x) has mean H (w - μ) and
# covariance H C H.
H = np.diag([1.0, 3.0, 0.5, 2.0])
C = np.diag([0.5, 0.2, 4.0, 1.0])
AWAY = np.array([0.7, -0.4, 1.0, 0.3])  # w - μ
SQUARE = float(((H @ AWAY) ** 2).sum())
TRACE = float(np.trace(H @ C @ H))


def test_estimates_are_exact_for_expected_squares():
    for small, big in ((1, 2), (8, 64), (100, 300)):
        found = estimate(SQUARE + TRACE / small, SQUARE + TRACE / big, small, big)
        assert found == pytest.approx((SQUARE, TRACE))


@pytest.mark.parametrize(("examples", "micro_batches"), [(2, 2), (12, 3)])
def test_estimates_are_unbiased_on_a_quadratic_problem(examples, micro_batches):
    """Real backward passes, many steps: sums over steps approach the closed form within their own spread."""
    draw = np.random.default_rng(0)
    w = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    curvature = torch.from_numpy(H)
    meter = NoiseMeter([w])
    steps, squares, traces = 200, [], []
    for _ in range(steps):
        x = draw.multivariate_normal(-AWAY, C, examples)
        for piece in np.array_split(x, micro_batches):
            apart = w - torch.from_numpy(piece)
            (0.5 * (apart @ curvature * apart).sum()).backward()
        meter.forget()
        meter.end_step(examples, micro_batches)
        squares.append(meter.square)
        traces.append(meter.trace)
        w.grad = None
    for found, wanted in ((squares, SQUARE), (traces, TRACE)):
        error = np.std(found) / steps**0.5
        assert abs(np.mean(found) - wanted) < 4 * error
        assert error < 0.3 * wanted  # so that the line above says something


def test_the_scale_of_many_steps():
    """B_simple over several parameters, one of them used twice in a pass, and with a step that is not taken."""
    draw = np.random.default_rng(1)
    a = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    diagonal = torch.from_numpy(np.diag(H).copy())
    meter = NoiseMeter([a, b])

    def step(examples: int, micro_batches: int, scale: float = 1.0) -> None:
        x = draw.multivariate_normal(-AWAY, C, examples)
        for piece in np.array_split(torch.from_numpy(x), micro_batches):
            apart = torch.cat((a, b)) - piece
            loss = 0.25 * (diagonal * apart**2).sum()
            loss = loss + 0.25 * (diagonal * (torch.cat((a, b)) - piece) ** 2).sum()
            (scale * loss).backward()

    for _ in range(300):
        step(16, 4)
        meter.end_step(16, 4)
        a.grad = b.grad = None
        step(16, 4, scale=1e6)
        meter.end_step(16, 4, keep=False)
        a.grad = b.grad = None
    assert meter.tokens == pytest.approx(TRACE / SQUARE, rel=0.25)
    meter.forget()
    assert meter.tokens is None


def test_pure_noise_has_no_scale():
    meter = NoiseMeter([])
    meter.square, meter.trace = -0.1, 3.0
    assert meter.tokens is None
