"""OLMo 2: norms after attention and MLP instead of before, and on the whole of q and k."""

from __future__ import annotations

from typing import Any

from gristmill.formats.families.family import Family, llama_like, llama_like_keys
from gristmill.formats.keys import Keys
from gristmill.model import ModelConfig


def read(keys: Keys) -> ModelConfig:
    bias = keys.flag("attention_bias", False)
    return llama_like(
        keys,
        "olmo2",
        eps=1e-5,
        norm_placement="post",
        qk_norm=True,
        qk_norm_over="projection",
        attention_bias=bias,
        output_bias=bias,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    return {**llama_like_keys(config), "attention_bias": config.attention_bias}


FAMILY = Family("olmo2", "Olmo2ForCausalLM", read, write)
