"""SmoothQuant: its closed form, and what it is for: 8-bit activations with outlier channels."""

from __future__ import annotations

import pytest
import torch

from gristmill.quantize import quantize_rows
from gristmill.quantize.awq import fold, scale_pairs
from gristmill.quantize.smooth import smooth_scales
from tests.quantize.tiny_networks import network


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outliers() -> tuple[torch.Tensor, torch.Tensor]:
    """x [256, 64] with three channels sixty times the others, and weight [48, 64]."""
    x = random(256, 64)
    x[:, [3, 17, 40]] *= 60
    return x, random(48, 64, seed=1) * 0.1


def test_at_one_half_both_sides_become_equally_hard():
    x, weight = outliers()
    scale = smooth_scales(x.abs().amax(0), [weight])
    torch.testing.assert_close((x / scale).abs().amax(0), (weight * scale).abs().amax(0))


@pytest.mark.parametrize(("alpha", "side"), [(0.0, "weights"), (1.0, "activations")])
def test_at_the_ends_one_side_becomes_flat(alpha, side):
    x, weight = outliers()
    scale = smooth_scales(x.abs().amax(0), [weight[:20], weight[20:]], alpha)
    flat = weight * scale if side == "weights" else x / scale
    torch.testing.assert_close(flat.abs().amax(0), torch.ones(64))


def test_channels_without_values_are_left_alone():
    x, weight = outliers()
    x[:, 5], weight[:, 6] = 0, 0
    scale = smooth_scales(x.abs().amax(0), [weight], 0.8)
    assert scale[5] == 1 and scale[6] == 1 and scale.isfinite().all() and (scale > 0).all()


def test_eight_bit_products_lose_less_with_it():
    """Weights rounded per output channel, activations per token: both are `quantize_rows`."""
    x, weight = outliers()

    def lost(x: torch.Tensor, weight: torch.Tensor) -> float:
        (qx, sx), (qw, sw) = quantize_rows(x), quantize_rows(weight)
        return ((qx.float() @ qw.float().T) * sx * sw.T - x @ weight.T).square().mean().item()

    scale = smooth_scales(x.abs().amax(0), [weight])
    assert lost(x / scale, weight * scale) < 0.1 * lost(x, weight)


@torch.no_grad()
def test_it_folds_into_a_network_by_the_pairs_of_awq():
    built = network("llama")
    tokens = torch.arange(20)[None]
    before = built(tokens)
    for block in built.model.layers:
        for pair in scale_pairs(block):
            width = pair.consumers[0].in_features
            fold(pair, smooth_scales(random(width).abs() + 0.1, [c.weight for c in pair.consumers]))
    assert (built(tokens) - before).abs().max() < 1e-5
