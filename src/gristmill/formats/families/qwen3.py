"""Qwen 3: a norm on each head of q and k."""

from __future__ import annotations

from typing import Any

from gristmill.formats.families.family import Family, llama_like, llama_like_keys
from gristmill.formats.families.qwen2 import window_keys, windows
from gristmill.formats.keys import Keys
from gristmill.model import ModelConfig


def read(keys: Keys) -> ModelConfig:
    bias = keys.flag("attention_bias", False)
    return llama_like(
        keys,
        "qwen3",
        kv_heads=32,
        width=128,
        context=32_768,
        qk_norm=True,
        attention_bias=bias,
        output_bias=bias,
        **windows(keys),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return {
        **llama_like_keys(config),
        **window_keys(config),
        "attention_bias": config.attention_bias,
    }


FAMILY = Family("qwen3", "Qwen3ForCausalLM", read, write)
