"""The importance of inputs is their mean square, however the tokens come."""

from __future__ import annotations

import torch

from gristmill.quantize.importance import Importance


def test_it_is_the_mean_square_over_all_tokens():
    x = torch.randn(1000, 24, generator=torch.Generator().manual_seed(0)) * torch.arange(24)
    importance = Importance(24)
    for piece in (x[:1], x[:0], x[1:700], x[700:]):
        importance.add(piece)
    assert importance.tokens == 1000
    torch.testing.assert_close(importance.mean, x.double().square().mean(0).float())


def test_half_precision_activations_are_squared_in_float32():
    importance = Importance(2)
    importance.add(torch.full((4, 2), 300.0, dtype=torch.float16))
    assert (importance.mean == 90_000).all()
