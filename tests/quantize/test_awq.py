"""AWQ: the search against brute force in numpy, folding against the network before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import RequestError, WorkError
from gristmill.model import Linear
from gristmill.quantize.awq import fewer_rows, fold, scale_pairs, search_clip, search_scales
from gristmill.quantize.grid import round_to_nearest
from tests.quantize.tiny_networks import FAMILIES, network

TOKENS = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(1))
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUT, DOWN = ("self_attn.o_proj",), ("mlp.down_proj",)
UP, GATE_UP = ("mlp.up_proj",), ("mlp.gate_proj", "mlp.up_proj")
LATENT = [("self_attn.q_b_proj",), ("self_attn.kv_b_proj",)]
FROM_NORM = ("self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa")
# What can be scaled together: read off the networks by hand, not from the code under test.
PAIRS: dict[str, list[tuple[str, ...]]] = {
    "llama": [QKV, OUT, GATE_UP, DOWN],
    "llama, grouped": [QKV, GATE_UP, DOWN],
    "qwen2": [QKV, GATE_UP, DOWN],
    "qwen3": [QKV, GATE_UP, DOWN],
    "gemma2": [QKV, OUT, GATE_UP, DOWN],
    "gemma3": [QKV, GATE_UP, DOWN],
    "olmo2": [OUT, DOWN],
    "gpt2": [QKV, OUT, UP],
    "gpt_neox": [QKV, OUT, UP],
    "llama, biases": [QKV, OUT, GATE_UP, DOWN],
    "gpt_oss, dense": [QKV, OUT, GATE_UP],
    "mixtral": [QKV],
    "deepseek": [FROM_NORM, *LATENT, GATE_UP, DOWN],
    "deepseek, plain queries": [
        ("self_attn.q_proj", "self_attn.kv_a_proj_with_mqa"),
        LATENT[1],
        GATE_UP,
        DOWN,
    ],
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_folding_alone_changes_nothing_that_is_computed(family):
    built = network(family)
    before = built(TOKENS)
    for block in built.model.layers:
        pairs = scale_pairs(block)
        assert [pair.names for pair in pairs] == PAIRS[family]
        for number, pair in enumerate(pairs):
            width = pair.consumers[0].in_features
            untouched = [consumer.weight.clone() for consumer in pair.consumers]
            scale = (0.5 * random(width, seed=number)).exp()
            fold(pair, scale)
            for consumer, weight in zip(pair.consumers, untouched, strict=True):
                torch.testing.assert_close(consumer.weight, weight * scale)
            for name, consumer in zip(pair.names, pair.consumers, strict=True):
                assert block.get_submodule(name) is consumer
    assert (built(TOKENS) - before).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_judge_is_downstream_of_its_consumers(family):
    """Its output changes when a consumer's weight does: it can tell scales apart."""
    built = network(family)
    block = built.model.layers[0]
    for pair in scale_pairs(block):
        seen: list[torch.Tensor] = []
        hook = pair.judge.register_forward_hook(lambda *given, seen=seen: seen.append(given[2]))
        for consumer in pair.consumers:
            built(TOKENS)
            consumer.weight.mul_(1.1)
            built(TOKENS)
            assert not torch.allclose(seen[-1], seen[-2])
        hook.remove()


def numpy_rounded(weight: np.ndarray, group: int) -> np.ndarray:
    """The asymmetric 4-bit grid: scale in fp16, zero a code."""
    grouped = weight.reshape(len(weight), -1, group)
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    s = ((high - low) / np.float32(15)).astype(np.float16).astype(np.float32)[..., None]
    z = np.rint(-low[..., None] / s).clip(0, 15)
    return (s * ((np.rint(grouped / s) + z).clip(0, 15) - z)).reshape(weight.shape)


@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_ratio_is_that_of_brute_force(seed):
    """Two layers on one input, judged by a gated product; a few inputs are far larger than the others."""
    x = random(64, 64, seed=seed) * (1.5 * random(64, seed=seed + 50)).exp()
    gate, up = random(24, 64, seed=seed + 1) * 0.1, random(24, 64, seed=seed + 2) * 0.1

    def forward(weights):
        return F.silu(x @ weights[0].T) * (x @ weights[1].T)

    x_mean = x.abs().mean(0)
    found = search_scales(x_mean, [gate, up], forward, group=32)

    groups = torch.cat((gate, up)).abs().view(48, 2, 32).numpy()
    w_mean = (groups / (groups.max(-1, keepdims=True) + 1e-6)).mean(0).reshape(-1)
    expected = forward([gate, up])
    losses: dict[float | None, float] = {}
    for ratio in (None, *(step / 20 for step in range(20))):
        s = np.ones(64, np.float32)
        if ratio is not None:
            s = np.maximum(x_mean.numpy() ** ratio / (w_mean ** (1 - ratio) + 1e-4), 1e-4)
            s /= np.sqrt(s.max() * s.min())
        rounded = [torch.from_numpy(numpy_rounded(w.numpy() * s, 32) / s) for w in (gate, up)]
        losses[ratio] = (forward(rounded) - expected).square().mean().item()
    assert found.ratio == min(losses, key=losses.__getitem__)
    assert found.loss == pytest.approx(losses[found.ratio], rel=1e-3)
    assert found.plain_loss == pytest.approx(losses[None], rel=1e-3)
    assert found.loss < 0.8 * found.plain_loss


def test_it_never_loses_to_plain_rounding():
    """With inputs all alike there is nothing to gain, and the answer may be to leave them."""
    x, weight = random(256, 32), random(16, 32, seed=3)
    weight = torch.where(weight > 0, 1.0, 0.0)  # on the grid already
    found = search_scales(x.abs().mean(0), [weight], lambda weights: x @ weights[0].T, group=32)
    assert found.ratio is None and (found.scale == 1).all()
    assert found.loss == found.plain_loss


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**31))
def test_fewer_rows_judge_a_linear_layer_as_all_tokens_do(tokens, width, out, seed):
    """Against numpy in fp64; inputs of very different size, some of them in step, some always 0."""
    x = random(tokens, width, seed=seed) * (2 * random(width, seed=seed + 1)).exp()
    x[:, width // 2] = x[:, 0]
    x[:, width // 3] = 0
    rows = fewer_rows(x)
    assert len(rows) == min(tokens, width)
    for delta in (random(out, width, seed=seed + 2), random(out, width, seed=seed + 3) / 100):
        expected = (x.double().numpy() @ delta.double().numpy().T) ** 2
        assert (rows @ delta.T).square().mean().item() == pytest.approx(expected.mean(), rel=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_clip_search_is_brute_force_over_tokens(symmetric):
    weight, x = random(300, 64), random(100, 64, seed=1)
    weight[:, 7] *= 4
    found = search_clip(weight, x, group=32, symmetric=symmetric)
    assert found.shape == (300, 2)
    errors = []
    candidates = [1 - step / 20 for step in range(10)]
    for shrink in candidates:
        cut = torch.full((300, 2), shrink)
        rounded = round_to_nearest(weight, group=32, symmetric=symmetric, shrink=cut).matrix()
        delta, inputs = (rounded - weight).view(300, 2, 32), x.view(100, 2, 32)
        errors.append(torch.einsum("ngi,rgi->nrg", inputs, delta).square().mean(0))
    chosen = torch.tensor(candidates)[torch.stack(errors).argmin(0)]
    assert (found == chosen).float().mean() > 0.995  # but for ties in the last digit
    assert len(found.unique()) > 3

    def output_error(shrink: torch.Tensor | None) -> float:
        codes = round_to_nearest(weight, group=32, symmetric=symmetric, shrink=shrink)
        return (x @ (codes.matrix() - weight).T).square().mean().item()

    assert output_error(found) < output_error(None)


def test_errors_name_the_layer():
    x, weight = random(8, 48), random(4, 48)
    with pytest.raises(RequestError, match="layer 3 has 48 inputs, which groups of 32"):
        search_scales(x.abs().mean(0), [weight], lambda w: x @ w[0].T, group=32, name="layer 3")
    with pytest.raises(RequestError, match="layer 3 has 48 inputs"):
        search_clip(weight, x, group=32, name="layer 3")
    with pytest.raises(WorkError, match="judged for layer 3 holds NaN"):
        search_scales(x.abs().mean(0), [weight], lambda w: w[0] / 0, group=None, name="layer 3")


def test_a_layer_in_low_precision_keeps_its_dtype():
    block = network("llama").model.layers[0].bfloat16()
    pair = scale_pairs(block)[1]
    assert isinstance(pair.producer, Linear)
    before = pair.producer.weight.clone()
    fold(pair, torch.full((32,), 2.0))
    assert pair.producer.weight.dtype == torch.bfloat16
    assert torch.equal(pair.producer.weight, before / 2)
