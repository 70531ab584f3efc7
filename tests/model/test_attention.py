"""Attention with soft caps and sinks, in blocks of queries, against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from gristmill.model.attention import attend


def by_definition(q, k, v, mask, scale, softcap, sinks):
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = torch.where(mask, scores, -torch.inf)
    weights = scores.exp()
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.double().exp().view(1, -1, 1, 1)
    return weights / total @ v


@pytest.mark.parametrize("length", [1, 255, 256, 257, 600])
@pytest.mark.parametrize(("softcap", "sink"), [(5.0, False), (None, True), (3.0, True)])
@pytest.mark.parametrize("window", [None, 40])
def test_blocks(length, softcap, sink, window):
    g = torch.Generator().manual_seed(length)
    q = torch.randn(2, 4, length, 8, generator=g)
    k, v = (torch.randn(2, 2, length, 8, generator=g) for _ in range(2))
    sinks = torch.randn(4, generator=g) if sink else None
    at = torch.arange(length)
    mask = at <= at[:, None]
    if window is not None:
        mask = mask & (at[:, None] - at < window)
    given = None if window is None else mask[None, None]
    found = attend(q, k, v, given, 0.7, softcap, sinks)
    expected = by_definition(q, k, v, mask, 0.7, softcap, sinks)
    assert (found - expected).abs().max() < 1e-5
