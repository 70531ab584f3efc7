"""gpt-oss: attention sinks, windows in every other layer, experts with biases and gate and up interleaved.

Read and written in full precision; the MXFP4 blocks of the released files are not (their GGUF is).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gristmill.formats.families.family import Family, llama_like, llama_like_keys
from gristmill.formats.keys import Keys
from gristmill.formats.rules import Rule, each, renamed
from gristmill.model import FULL, SLIDING, ModelConfig, MoEConfig

# transformers' default where config.json says nothing.
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
_ROPE |= {"original_max_position_embeddings": 4096}


def read(keys: Keys) -> ModelConfig:
    keys.refuse(swiglu_limit=7.0, swiglu_alpha=1.702, hidden_act="silu")
    if not keys.get("rope_scaling") and not keys.get("rope_parameters"):
        keys = Keys({**keys.hf, "rope_parameters": _ROPE}, keys.file)
    layers = keys.count("num_hidden_layers")
    derived = [FULL if i % 2 else SLIDING for i in range(layers)]
    window = keys.windows(layers, derived, 128)
    bias = keys.flag("attention_bias", True)
    moe = MoEConfig(
        num_experts=keys.count("num_local_experts", keys.count("num_experts", 128)),
        experts_per_token=keys.count("num_experts_per_tok", 4),
        intermediate_size=keys.count("intermediate_size"),
        scoring="softmax_chosen",
        normalize=False,
        bias=True,
    )
    return llama_like(
        keys,
        "gpt_oss",
        kv_heads=8,
        width=64,
        context=131_072,
        eps=1e-5,
        theta=150_000.0,
        attention_bias=bias,
        output_bias=bias,
        attention_sinks=True,
        moe=moe,
        activation="swiglu_clamped",
        **window,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    assert config.moe is not None
    return {
        **llama_like_keys(config),
        "hidden_act": "silu",
        "swiglu_limit": 7.0,
        "attention_bias": config.attention_bias,
        "layer_types": list(config.layer_types or (FULL,) * config.num_layers),
        "num_local_experts": config.moe.num_experts,
        "num_experts_per_tok": config.moe.experts_per_token,
    }


def rules(config: ModelConfig) -> list[Rule]:
    def apart(tensors: list[Tensor]) -> list[Tensor]:  # [E, D, 2I] to two of [E, I, D]
        return [tensors[0][..., i::2].transpose(-1, -2) for i in range(2)]

    def together(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack([t.transpose(-1, -2) for t in tensors], dim=-1).flatten(-2)]

    def bias_apart(tensors: list[Tensor]) -> list[Tensor]:
        return [tensors[0][..., i::2] for i in range(2)]

    def bias_together(tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack(tensors, dim=-1).flatten(-2)]

    def turned(tensor: Tensor) -> Tensor:
        return tensor.transpose(-1, -2)

    found = []
    for layer in range(config.num_layers):
        experts = f"model.layers.{layer}.mlp.experts"
        halves, biases = ("gate_proj", "up_proj"), ("gate_bias", "up_bias")
        found += [
            Rule(
                (f"{experts}.gate_up_proj",),
                tuple(f"{experts}.{h}" for h in halves),
                apart,
                together,
            ),
            Rule(
                (f"{experts}.gate_up_proj_bias",),
                tuple(f"{experts}.{b}" for b in biases),
                bias_apart,
                bias_together,
            ),
            each(f"{experts}.down_proj", f"{experts}.down_proj", turned, turned),
            renamed(f"{experts}.down_proj_bias", f"{experts}.down_bias"),
        ]
    return found


FAMILY = Family("gpt_oss", "GptOssForCausalLM", read, write, rules)
