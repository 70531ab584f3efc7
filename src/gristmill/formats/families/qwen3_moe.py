"""Qwen 3 with experts. `num_experts` is written as `num_local_experts` by transformers 5: both are read."""

from __future__ import annotations

from typing import Any

from gristmill.formats.families.family import Family, llama_like, llama_like_keys, moe_layers
from gristmill.formats.keys import Keys
from gristmill.formats.rules import Rule, renamed, stacked
from gristmill.model import SLIDING, ModelConfig, MoEConfig


def read(keys: Keys) -> ModelConfig:
    layers, step = keys.count("num_hidden_layers"), keys.count("decoder_sparse_step", 1)
    plain = set(keys.numbers("mlp_only_layers"))
    dense = [i for i in range(layers) if i in plain or step < 1 or (i + 1) % step]
    moe = MoEConfig(
        num_experts=keys.count("num_experts", keys.count("num_local_experts", 128)),
        experts_per_token=keys.count("num_experts_per_tok", 8),
        intermediate_size=keys.count("moe_intermediate_size", 768),
        normalize=keys.flag("norm_topk_prob", False),
        dense_layers=tuple(dense),
    )
    bias = keys.flag("attention_bias", False)
    window: dict[str, Any] = {}
    if keys.flag("use_sliding_window", False):  # for all layers, unlike in Qwen 3
        window = {"sliding_window": keys.count("sliding_window", 4096)}
        window["layer_types"] = (SLIDING,) * layers
    return llama_like(
        keys,
        "qwen3_moe",
        kv_heads=4,
        context=32_768,
        qk_norm=True,
        attention_bias=bias,
        output_bias=bias,
        moe=moe,
        **window,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    moe = config.moe
    assert moe is not None
    kept = {k: v for k, v in llama_like_keys(config).items() if k != "layer_types"}
    return {
        **kept,
        "attention_bias": config.attention_bias,
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        "num_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "moe_intermediate_size": moe.intermediate_size,
        "norm_topk_prob": moe.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(moe.dense_layers),
    }


def expert_rules(config: ModelConfig) -> list[Rule]:
    """One tensor an expert on disk, and the router under the name `gate`: DeepSeek has the same names."""
    assert config.moe is not None
    found = []
    for layer in moe_layers(config):
        mlp = f"model.layers.{layer}.mlp"
        found.append(renamed(f"{mlp}.gate.weight", f"{mlp}.router.weight"))
        for name in ("gate_proj", "up_proj", "down_proj"):
            names = [f"{mlp}.experts.{e}.{name}.weight" for e in range(config.moe.num_experts)]
            found.append(stacked(names, f"{mlp}.experts.{name}"))
    return found


FAMILY = Family("qwen3_moe", "Qwen3MoeForCausalLM", read, write, expert_rules)
