"""Qwen 2 and 2.5: Llama with biases on q, k and v; a window from layer `max_window_layers` on, if at all."""

from __future__ import annotations

from typing import Any

from gristmill.formats.families.family import Family, llama_like, llama_like_keys
from gristmill.formats.keys import Keys
from gristmill.model import FULL, SLIDING, ModelConfig


def windows(keys: Keys) -> dict[str, Any]:
    """`layer_types` and `sliding_window`, which count only with `use_sliding_window`."""
    layers = keys.count("num_hidden_layers")
    if not keys.flag("use_sliding_window", False):
        return {}
    first = keys.count("max_window_layers", 28)
    derived = [SLIDING if layer >= first else FULL for layer in range(layers)]
    return keys.windows(layers, derived, 4096)


def window_keys(config: ModelConfig) -> dict[str, Any]:
    sliding = SLIDING in config.layer_types
    types = config.layer_types or (FULL,) * config.num_layers
    return {
        "use_sliding_window": sliding,
        "sliding_window": config.sliding_window,
        "max_window_layers": types.index(SLIDING) if sliding else config.num_layers,
        "layer_types": list(types),
    }


def read(keys: Keys) -> ModelConfig:
    return llama_like(
        keys, "qwen2", kv_heads=32, context=32_768, attention_bias=True, **windows(keys)
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return {**llama_like_keys(config), **window_keys(config)}


FAMILY = Family("qwen2", "Qwen2ForCausalLM", read, write)
