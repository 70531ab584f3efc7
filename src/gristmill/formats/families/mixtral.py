"""Mixtral: Mistral with experts, whose tensors keep their first names (w1 gate, w3 up, w2 down)."""

from __future__ import annotations

from typing import Any

from gristmill.formats.families.family import Family, llama_like, moe_layers
from gristmill.formats.families.mistral import window_of_all
from gristmill.formats.families.mistral import write as write_mistral
from gristmill.formats.keys import Keys
from gristmill.formats.rules import Rule, renamed, stacked
from gristmill.model import ModelConfig, MoEConfig


def read(keys: Keys) -> ModelConfig:
    moe = MoEConfig(
        num_experts=keys.count("num_local_experts", 8),
        experts_per_token=keys.count("num_experts_per_tok", 2),
        intermediate_size=keys.count("intermediate_size"),
    )
    return llama_like(
        keys,
        "mixtral",
        kv_heads=8,
        context=131_072,
        eps=1e-5,
        theta=1_000_000.0,
        moe=moe,
        **window_of_all(keys, None),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    assert config.moe is not None
    return {
        **write_mistral(config),
        "num_local_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.experts_per_token,
    }


def rules(config: ModelConfig) -> list[Rule]:
    assert config.moe is not None
    found = []
    for layer in moe_layers(config):
        disk, ours = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        found.append(renamed(f"{disk}.gate.weight", f"{ours}.router.weight"))
        for theirs, name in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
            names = [f"{disk}.experts.{e}.{theirs}.weight" for e in range(config.moe.num_experts)]
            found.append(stacked(names, f"{ours}.experts.{name}_proj"))
    return found


FAMILY = Family("mixtral", "MixtralForCausalLM", read, write, rules)
