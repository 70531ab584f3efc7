"""8-bit products against fp64 ones of the same rounded numbers, and a run in them against one in fp32."""

from __future__ import annotations

import pytest
import torch

from gristmill.model.layers import Linear
from gristmill.train import fp8, pretrain
from tests.train.corpus import corpus, random_network, tiny_pretrain


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x in 8 bits under one scale, in fp64: what the products should be exact products of."""
    scale = x.abs().max().float() / torch.finfo(dtype).max
    return (x / scale).to(dtype).double() * scale.double()


@pytest.mark.parametrize("rows", [16, 37])
def test_products_are_those_of_the_rounded_numbers(rows):
    linear = Linear(64, 48, bias=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(48, 64, generator=generator))
        linear.bias.copy_(torch.randn(48, generator=generator))
    x = torch.randn(rows, 64, generator=generator, requires_grad=True)
    grad = torch.randn(rows, 48, generator=generator)
    y = fp8._forward(linear, x)
    y.backward(grad)
    x8, w8 = (rounded(t.detach(), torch.float8_e4m3fn) for t in (x, linear.weight))
    g8 = rounded(grad, torch.float8_e5m2)
    for found, wanted in (
        (y, x8 @ w8.T + linear.bias.double()),
        (x.grad, g8 @ w8),
        (linear.weight.grad, g8.T @ x8),
        (linear.bias.grad, grad.double().sum(0)),
    ):
        assert found is not None
        assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_blocks_take_it_and_the_head_does_not():
    network = random_network(tie_embeddings=False)
    assert fp8.apply(network) == 2 * 7
    assert "forward" not in vars(network.lm_head)


def test_a_run_learns_about_as_well(tmp_path):
    inputs = corpus(tmp_path)
    losses = {}
    for name, on in (("fp32", False), ("fp8", True)):
        config = tiny_pretrain(fp8=on, warm_start="none", lr_embedding_peak=0.01)
        history = pretrain.run(config, inputs, tmp_path / name).metrics["history"]
        losses[name] = history[-1]["heldout_loss"]
    assert losses["fp8"] != losses["fp32"]
    assert losses["fp8"] == pytest.approx(losses["fp32"], rel=0.02)
