"""Gemma 3 (text): Gemma 2 without caps, with norms on q and k, and a rotary base of its own for local layers."""

from __future__ import annotations

from typing import Any

from gristmill.formats.families.family import Family
from gristmill.formats.families.gemma2 import gemma, gemma_keys
from gristmill.formats.keys import Keys, rope_to_hf
from gristmill.model import FULL, SLIDING, ModelConfig


def read(keys: Keys) -> ModelConfig:
    width = keys.count("head_dim", 256)
    theta = keys.number("rope_theta", 1_000_000.0)
    nested = keys.get("rope_parameters")
    local = keys.number("rope_local_base_freq", 10_000.0)
    if isinstance(nested, dict) and SLIDING in nested:
        own = Keys({**keys.hf, "rope_scaling": None}, keys.file)  # which is for the global layers
        inner = own.rope(width, 10_000.0, layer_type=SLIDING)
        if inner["rope_scaling"] is not None:
            raise keys.error("scaled positions in local layers are not supported")
        local = inner["rope_theta"]
    return gemma(
        keys,
        "gemma3_text",
        pattern=keys.count("sliding_window_pattern", keys.count("_sliding_window_pattern", 6)),
        context=131_072,
        theta=theta,
        qk_norm=True,
        rope_theta_local=local,
        attention_softcap=keys.optional("attn_logit_softcapping"),
        logit_softcap=keys.optional("final_logit_softcapping"),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    assert config.rope_theta_local is not None
    return {
        **gemma_keys(config),
        "rope_local_base_freq": config.rope_theta_local,
        "rope_parameters": {
            FULL: rope_to_hf(config.rope_theta, config.rope_scaling),
            SLIDING: rope_to_hf(config.rope_theta_local, None),
        },
    }


FAMILY = Family("gemma3_text", "Gemma3ForCausalLM", read, write)
