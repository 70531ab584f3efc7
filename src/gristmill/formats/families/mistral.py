"""Mistral: Llama whose layers all see a sliding window, where `sliding_window` is given."""

from __future__ import annotations

from typing import Any

from gristmill.formats.families.family import Family, llama_like, llama_like_keys
from gristmill.formats.keys import Keys
from gristmill.model import SLIDING, ModelConfig


def window_of_all(keys: Keys, default: int | None) -> dict[str, Any]:
    """`sliding_window` for every layer: absent means `default`, null means that there is none."""
    window = default if "sliding_window" not in keys.hf else keys.get("sliding_window")
    if window is None:
        return {}
    window = keys.count("sliding_window", default)
    return {
        "sliding_window": window,
        "layer_types": (SLIDING,) * keys.count("num_hidden_layers"),
    }


def window_key(config: ModelConfig) -> dict[str, Any]:
    """Null where there is no window: left out, transformers would put its default."""
    return {"sliding_window": config.sliding_window}


def read(keys: Keys) -> ModelConfig:
    window = window_of_all(keys, 4096)
    return llama_like(keys, "mistral", kv_heads=8, context=131_072, **window)


def write(config: ModelConfig) -> dict[str, Any]:
    kept = {k: v for k, v in llama_like_keys(config).items() if k != "layer_types"}
    return {**kept, **window_key(config)}


FAMILY = Family("mistral", "MistralForCausalLM", read, write)
