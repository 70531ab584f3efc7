"""The DPO loss at published check values, and its gradient by the identity."""

from __future__ import annotations

import math

import pytest
import torch

from gristmill.align import dpo_loss


def test_check_pair():
    """log π −10 and −14, reference −12 and −13, β 0.1; value and gradient as TRL 1.16 computes them."""
    chosen = torch.tensor([-10.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-14.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-12.0]), torch.tensor([-13.0])
    loss = dpo_loss(chosen, rejected, *reference, beta=0.1)
    assert loss.item() == pytest.approx(0.554355, abs=5e-7)
    loss.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.0425557, abs=5e-8)
    assert rejected.grad.item() == pytest.approx(0.0425557, abs=5e-8)


def test_a_policy_equal_to_its_reference_loses_ln_2():
    logp = torch.tensor([-3.0, -70.0]), torch.tensor([-5.0, -2.0])
    assert dpo_loss(*logp, *logp, beta=0.3).tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_gradient_identity(beta):
    """∂L/∂h_c = −β σ(−βΔ)."""
    draw = torch.Generator().manual_seed(0)
    values = [torch.randn(9, generator=draw, dtype=torch.float64) * 5 for _ in range(4)]
    chosen, rejected = values[0].requires_grad_(), values[1]
    dpo_loss(chosen, rejected, values[2], values[3], beta).sum().backward()
    margin = (chosen - values[2]) - (rejected - values[3])
    wanted = -beta / (1 + torch.exp(beta * margin))
    assert chosen.grad is not None
    assert torch.allclose(chosen.grad, wanted.detach(), atol=1e-12)


def test_a_hopeless_pair_costs_its_margin_and_does_not_overflow():
    loss = dpo_loss(*(torch.tensor([x]) for x in (-20_000.0, 0.0, 0.0, 0.0)), beta=0.1)
    assert loss.item() == pytest.approx(2000.0)
