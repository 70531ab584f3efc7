"""Gemma 2: norms on both sides, (1 + w) in them, capped scores and logits, local and global layers in turn."""

from __future__ import annotations

from typing import Any

from gristmill.formats.families.family import Family, llama_like, llama_like_keys
from gristmill.formats.keys import Keys
from gristmill.model import FULL, SLIDING, ModelConfig


def gemma(keys: Keys, family: str, pattern: int, context: int, **settings: Any) -> ModelConfig:
    """What Gemma 2 and 3 share; every `pattern`-th layer is global."""
    layers = keys.count("num_hidden_layers")
    keys.refuse(use_bidirectional_attention=False)
    derived = [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(layers)]
    window = keys.windows(layers, derived, 4096)
    bias = keys.flag("attention_bias", False)
    return llama_like(
        keys,
        family,
        kv_heads=4,
        width=256,
        context=context,
        tied=True,
        act_key="hidden_activation",
        act="gelu_pytorch_tanh",
        norm="rms_plus_one",
        norm_placement="both",
        embedding_scale=keys.count("hidden_size") ** 0.5,
        query_scale=keys.number("query_pre_attn_scalar", 256) ** -0.5,
        attention_bias=bias,
        output_bias=bias,
        **window,
        **settings,
    )


def gemma_keys(config: ModelConfig) -> dict[str, Any]:
    kept = {k: v for k, v in llama_like_keys(config).items() if k != "hidden_act"}
    scalar = config.score_scale**-2
    return {
        **kept,
        "hidden_activation": "gelu_pytorch_tanh",
        # whole in every release, and an odd power of a square root away from it here
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        "attention_bias": config.attention_bias,
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "layer_types": list(config.layer_types or (FULL,) * config.num_layers),
    }


def read(keys: Keys) -> ModelConfig:
    return gemma(
        keys,
        "gemma2",
        pattern=2,
        context=8192,
        attention_softcap=keys.optional("attn_logit_softcapping", 50.0),
        logit_softcap=keys.optional("final_logit_softcapping", 30.0),
    )


FAMILY = Family("gemma2", "Gemma2ForCausalLM", read, gemma_keys)
