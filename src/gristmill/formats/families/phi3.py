"""Phi-3 and Phi-4: Llama with q, k, v in one tensor, gate and up in another, and LongRoPE."""

from __future__ import annotations

from typing import Any

from gristmill.formats.families.family import Family, llama_like, llama_like_keys
from gristmill.formats.families.mistral import window_key, window_of_all
from gristmill.formats.keys import Keys
from gristmill.formats.rules import Rule, fused
from gristmill.model import ModelConfig


def read(keys: Keys) -> ModelConfig:
    if "original_max_position_embeddings" not in keys.hf:  # which counts for longrope alone
        keys = Keys({**keys.hf, "original_max_position_embeddings": 4096}, keys.file)
    return llama_like(keys, "phi3", context=4096, eps=1e-5, **window_of_all(keys, None))


def write(config: ModelConfig) -> dict[str, Any]:
    kept = {
        k: v for k, v in llama_like_keys(config).items() if k not in ("layer_types", "head_dim")
    }
    kept = {**kept, **window_key(config)}
    if config.rope_scaling is not None:
        kept["original_max_position_embeddings"] = config.rope_scaling.original_max_seq_len
    if config.rotated != config.head_dim:
        kept["partial_rotary_factor"] = config.rotated / config.head_dim
    return kept


def rules(config: ModelConfig) -> list[Rule]:
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    found = []
    for layer in range(config.num_layers):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        qkv = [f"{attention}.{name}_proj.weight" for name in "qkv"]
        found.append(fused(f"{attention}.qkv_proj.weight", qkv, (queries, keys, keys)))
        halves = [f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"]
        found.append(fused(f"{mlp}.gate_up_proj.weight", halves, (config.intermediate_size,) * 2))
    return found


FAMILY = Family("phi3", "Phi3ForCausalLM", read, write, rules)
