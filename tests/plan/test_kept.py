"""What a forward pass keeps, against what PyTorch holds: every tensor that autograd saves, by its storage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from gristmill.kernels import training as kernels
from gristmill.model import (
    SLIDING,
    LatentConfig,
    ModelConfig,
    MoEConfig,
    Transformer,
    initialize,
    meta_network,
)
from gristmill.plan import presets
from gristmill.plan.kept import Piece, kept_at_the_end, kept_by_all, kept_by_layer

ROWS, CONTEXT = 2, 272
BASE = ModelConfig(
    vocab_size=128,
    hidden_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=352,
    max_seq_len=512,
    tie_embeddings=False,
)
GPT: dict[str, Any] = dict(norm="layer", gated=False, qk_norm=False, num_kv_heads=4)
CASES: dict[str, ModelConfig] = {
    "qwen3": BASE,
    "llama": replace(BASE, qk_norm=False),
    "gpt2": replace(BASE, **GPT, positions="learned", mlp_bias=True, attention_bias=True),
    "neox": replace(BASE, **GPT, parallel_residual=True, activation="gelu"),
    "olmo2": replace(BASE, norm_placement="post", qk_norm_over="projection"),
    "gemma2": replace(
        BASE, norm="rms_plus_one", norm_placement="both", qk_norm=False, attention_softcap=50.0
    ),
    "windows": replace(
        BASE, qk_norm=False, layer_types=(SLIDING, "full_attention"), sliding_window=64
    ),
    "experts": replace(BASE, moe=MoEConfig(4, 2, 96)),
    "deepseek": replace(
        BASE,
        latent=LatentConfig(48, 64, 16),
        rotary_dim=16,
        num_kv_heads=4,
        qk_norm=False,
        moe=MoEConfig(8, 2, 64, "sigmoid", shared_intermediate_size=64, dense_layers=(0,)),
    ),
}


def held(config: ModelConfig, dtype: torch.dtype) -> float:
    """Bytes for each token that autograd keeps of a forward pass, weights and their casts aside."""
    network = initialize(Transformer(config), 0)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    shapes = {tuple(p.shape) for p in meta_network(config).parameters()}
    shapes |= {shape[1:] for shape in shapes if len(shape) == 3}  # an expert of a stack
    kept: dict[int, torch.Tensor] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        # A cast of a weight, seen as it is or turned.
        shape = tuple(t.shape)
        cast = t.dtype != torch.float32 and (shape in shapes or shape[::-1] in shapes)
        if t.untyped_storage().data_ptr() not in weights and not cast:
            kept.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    tokens = torch.arange(ROWS * CONTEXT).reshape(ROWS, CONTEXT) % config.vocab_size
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = network.hidden(tokens, dtype=dtype)
    assert hidden.requires_grad
    return sum(t.untyped_storage().nbytes() for t in kept.values()) / (ROWS * CONTEXT)


@pytest.mark.parametrize("kind", ["native", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", list(CASES))
def test_the_list_is_what_autograd_keeps(case: str, dtype, kind, monkeypatch) -> None:
    if kind == "cpu":
        monkeypatch.setattr(kernels, "extension", None)
    elif kernels.extension is None:
        pytest.skip("the native kernels are not built")
    config = CASES[case]
    piece = Piece(ROWS, CONTEXT, dtype.itemsize, kind)
    rows = [
        kept for layer in range(config.num_layers) for kept in kept_by_layer(config, layer, piece)
    ]
    # The loss keeps the last entry, the gradient of its input.
    rows += kept_by_all(config, piece) + kept_at_the_end(config, piece)[:-1]
    assert sum(k.bytes for k in rows) == pytest.approx(held(config, dtype), rel=0.02)


def test_a_gpt_block_is_the_papers() -> None:
    """34·s·b·h bytes a layer with a fused attention, of which 2 are dropout's masks (Korthikanti et al. 2022)."""
    config = presets()["gpt-3-175b"].config
    piece = Piece(1, 2048, 2)
    layers = sum(k.bytes for k in kept_by_layer(config, 0, piece)) * config.num_layers * 2048
    paper = 34 * 2048 * 12_288 * 96
    assert paper / 2**30 == pytest.approx(76.5, abs=0.05)
    assert layers == pytest.approx(paper * 32 / 34, rel=2e-3)


def test_documents_apart_cost_a_mask_for_each_row() -> None:
    config = CASES["llama"]
    plain, apart = Piece(4, 512, 2), Piece(4, 512, 2, apart=True)
    sizes = [sum(k.bytes for k in kept_by_layer(config, 0, piece)) for piece in (plain, apart)]
    assert sizes[1] - sizes[0] == 512 * 2
