"""Tiny random networks of the shapes of families, for what is done to norms and projections from outside."""

from __future__ import annotations

from typing import Any

import torch

from gristmill.model import LatentConfig, ModelConfig, MoEConfig, Transformer

SHAPE: dict[str, Any] = dict(
    vocab_size=97,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    intermediate_size=64,
    max_seq_len=64,
    qk_norm=False,
)
GEMMA: dict[str, Any] = dict(
    norm="rms_plus_one",
    norm_placement="both",
    activation="gelu_tanh",
    embedding_scale=32**0.5,
    attention_softcap=50.0,
    logit_softcap=30.0,
)
GPT2: dict[str, Any] = dict(
    norm="layer", gated=False, activation="gelu_tanh", positions="learned", mlp_bias=True
)
# family -> what its configuration sets beyond SHAPE
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": dict(tie_embeddings=False),
    "llama, grouped": dict(num_kv_heads=2),
    "qwen2": dict(attention_bias=True, num_kv_heads=2),
    "qwen3": dict(qk_norm=True, num_kv_heads=2),
    "gemma2": dict(**GEMMA),
    "gemma3": dict(**GEMMA, qk_norm=True, num_kv_heads=1),
    "olmo2": dict(norm_placement="post", qk_norm=True, qk_norm_over="projection"),
    "gpt2": dict(**GPT2, attention_bias=True, output_bias=True),
    "gpt_neox": dict(**GPT2 | dict(positions="rope"), attention_bias=True, parallel_residual=True),
    "llama, biases": dict(attention_bias=True, output_bias=True, mlp_bias=True),
    "gpt_oss, dense": dict(activation="swiglu_clamped", attention_sinks=True),
    "mixtral": dict(moe=MoEConfig(4, 2, 16), num_kv_heads=2),
    "deepseek": dict(latent=LatentConfig(16, 8, 8), rotary_dim=4),
    "deepseek, plain queries": dict(latent=LatentConfig(None, 8, 8), rotary_dim=4),
}


def network(family: str) -> Transformer:
    """fp32; every parameter random, norms away from the identity and biases from 0."""
    built = Transformer(ModelConfig(**SHAPE | FAMILIES[family])).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            near = 0.0 if "bias" in name or built.config.norm == "rms_plus_one" else 1.0
            one = near + 0.3 * noise
            parameter.copy_(one if parameter.ndim == 1 else noise * parameter.shape[-1] ** -0.5)
    return built
