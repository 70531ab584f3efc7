"""Llama 1 to 3.3."""

from __future__ import annotations

from typing import Any

from gristmill.formats.families.family import Family, llama_like, llama_like_keys
from gristmill.formats.keys import Keys
from gristmill.model import ModelConfig


def read(keys: Keys) -> ModelConfig:
    bias = keys.flag("attention_bias", False)
    return llama_like(
        keys,
        "llama",
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=keys.flag("mlp_bias", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return {
        **llama_like_keys(config),
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
    }


FAMILY = Family("llama", "LlamaForCausalLM", read, write)
